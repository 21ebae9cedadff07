"""`muxrec train` and `muxrec prune` that are over at once: they leave a finished run behind, with made-up metrics."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from experiments.runs import RUNS
from experiments.studies import compression, table_kinds
from experiments.studies.runner import Processes, RunStore, log_of
from features.dataset.info import read_dataset
from recsys.config import Experiment, validated, with_overrides
from recsys.runs.run_directory import RunDirectory


class FakeProcesses(Processes):
    """Processes that note the words of their commands; `errors` holds what to raise instead, by a part of the words."""

    def __init__(self, work: Path, bundle: Path) -> None:
        super().__init__(RunStore(work))
        self.bundle = bundle
        self.words: list[list[str]] = []
        self.errors: dict[str, Exception] = {}

    def muxrec(self, words: Sequence[str], out: Path) -> None:
        """Leave a finished run in `out`, or raise."""
        self.words.append(list(words))
        for part, error in self.errors.items():
            if part in " ".join(words):
                log_of(out).parent.mkdir(parents=True, exist_ok=True)
                log_of(out).write_text(f"something first\n{error}\n")
                raise error
        experiment, digest = _trained(words) if words[0] == "train" else _pruned(words)
        out.mkdir(parents=True, exist_ok=True)
        test = {"auc": 0.7, "logloss": 0.5, "gauc": 0.6, "ece": 0.01}
        perf = {"epochs": 3, "samples_per_s": 1234.5, "train_seconds": 4.0}
        metrics = {"valid": {**test, "auc": 0.71}, "test": test, "perf": perf}
        (out / "experiment.yaml").write_text(experiment.to_yaml())
        (out / "run.json").write_text(json.dumps({"dataset_digest": digest}))
        (out / "metrics.json").write_text(json.dumps(metrics))
        shutil.copytree(self.bundle, out / "bundle", dirs_exist_ok=True)

    @property
    def trained(self) -> list[str]:
        """The last override of each `muxrec train`."""
        return [words[words.index("--data") - 1] for words in self.words if words[0] == "train"]


def _trained(words: Sequence[str]) -> tuple[Experiment, str]:
    end = words.index("--data")
    info, _ = read_dataset(words[end + 1])
    return with_overrides(RUNS[words[1]](), words[2:end]), info.digest


def _pruned(words: Sequence[str]) -> tuple[Experiment, str]:
    base, settings = RunDirectory(words[1]), dict(zip(words[2:8:2], words[3:8:2], strict=True))
    how: dict[str, Any] = {"method": settings["--method"], "target_bytes": int(settings["--target-bytes"])}
    how["table_dtype"] = settings["--table-dtype"]
    document = {**base.experiment().model_dump(mode="json"), "compression": how}
    return with_overrides(validated(document, "pruned"), words[8:]), base.run_info()["dataset_digest"]


@pytest.fixture
def processes(run, tmp_path) -> FakeProcesses:
    """Fake processes whose runs are in a folder of the test."""
    return FakeProcesses(tmp_path / "work", run / "bundle")


@pytest.fixture
def small(monkeypatch) -> None:
    """Replace the tuned networks by ones that train in a second."""
    settings = {"model.hidden": [8], "trainer.epochs": 1, "trainer.batch_size": 512}
    for data in ("movielens", "frappe"):
        monkeypatch.setitem(table_kinds.NETWORKS, (data, "mlp"), ("mlp", settings))
        monkeypatch.setitem(compression.FRONTIERS, data, ("mlp", "unified 4x4", 0.001))
