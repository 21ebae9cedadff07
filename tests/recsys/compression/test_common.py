"""Guarantees of every entry of COMPRESSORS: the budget, the bytes of the file, the logits, the record.

One small planted problem with two views, a numeric feature and a list feature, pruned by each method.
"""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from data.synthetic import planted_frame
from features.registry import FeatureRegistry
from recsys.compression import COMPRESSORS
from recsys.config import Experiment
from recsys.dataset import Split
from recsys.embedding.mask import Mask, MaskGate
from recsys.evaluation.predict import predict
from recsys.runs.evaluate import export_run
from recsys.runs.parity import parity_of
from recsys.runs.prune import prune_run
from recsys.runs.run_directory import RunDirectory
from recsys.runs.train import train_run
from serving.bundle import Bundle
from serving.scorer import Scorer
from tests.planted import write_dataset

BUDGET = 2200
"""Less than all rows that are read take, so that every method has to choose."""
QUICK = {
    "optembed": [
        "compression.settings.search.generations=2",
        "compression.settings.tuning_steps=2",
        "compression.settings.supernet=true",
    ],
    "opt_fs": ["compression.settings.epochs=2"],
}
"""Settings that make a method quick."""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A finished run, with its dataset and the raw test rows."""
    directory = tmp_path_factory.mktemp("base")
    rows = planted_frame(4000, seed=3, num_features=4, num_distinct=60, num_numeric=1, num_lists=1)
    registry = FeatureRegistry.of(
        features={
            **{f"f0{number}": "categorical" for number in range(4)},
            "x00": {"type": "numeric", "transform": "standardize"},
            "l00": {"type": "categorical_list", "separator": "|", "pooling": "mean"},
        }
    )
    splits = {"train": rows[:3000], "valid": rows[3000:3500], "test": rows[3500:]}
    dataset = write_dataset(directory, registry, splits)
    experiment = Experiment.model_validate(
        {
            "name": "base",
            "model": {
                "name": "final_mlp",
                "mlp1_hidden": [16],
                "mlp2_hidden": [8],
                "num_heads": 2,
                "fs1_context": ["f00"],
            },
            "embedding": {"num_rows": 400, "width": 4, "probes": 2, "l2": 1e-4},
            "trainer": {"epochs": 2, "batch_size": 512, "learning_rate": 0.01},
        }
    )
    train_run(experiment, dataset, directory / "run", track=False)
    return directory


@pytest.fixture(scope="module", params=list(COMPRESSORS))
def pruned(request, base, tmp_path_factory) -> Path:
    """The run of each method in turn."""
    out = tmp_path_factory.mktemp(request.param) / "run"
    dtype = "int4" if request.param == "quantized" else "int8"
    prune_run(
        base / "run",
        out,
        method=request.param,
        target_bytes=BUDGET,
        table_dtype=dtype,
        overrides=QUICK.get(request.param, []),
        track=False,
    )
    return out


def test_j6_bytes_are_those_on_the_disk_and_within_the_budget(pruned):
    metrics, bundle = RunDirectory(pruned).metrics(), Bundle.open(pruned / "bundle")
    files = [
        path for path in (pruned / "bundle").iterdir() if path.name in ("table.safetensors", "vocabulary.safetensors")
    ]
    on_disk = sum(path.stat().st_size for path in files)
    assert metrics["compression"]["bytes_after"] == on_disk <= BUDGET
    assert bundle.manifest.compression is not None
    assert bundle.manifest.compression["method"] == RunDirectory(pruned).experiment().compression.method  # pyright: ignore[reportOptionalMemberAccess]


def test_a_mask_takes_away_cells_that_are_read(pruned):
    run = RunDirectory(pruned)
    if run.mask_path.exists() and not run.experiment().compression.compressor().keeps_every_row:  # pyright: ignore[reportOptionalMemberAccess]
        is_read = torch.from_numpy(np.load(run.trained_rows_path))
        mask = run.ranker(quantized=False).embedding.mask
        assert mask is not None
        assert 0 < mask.num_cells < int(is_read.sum()) * run.ranker().embedding.layout.width


def test_j4_the_bundle_gives_the_runs_probabilities(pruned, base):
    result = parity_of(pruned, pruned / "bundle", [str(base / "test.parquet")])
    assert result["ids_equal"]
    assert result["ok"], result


def test_o9_fewer_bytes_hold_the_same_model_as_the_mask(pruned, base):
    run = RunDirectory(pruned)
    ranker = run.ranker(quantized=False)
    if ranker.embedding.mask is None:
        assert not run.mask_path.exists()
        return
    bundle = export_run(pruned, pruned.parent / "exact", table_dtype="fp32", overwrite=True)
    mask, table = ranker.embedding.mask, ranker.embedding.table.detach()
    stored = bundle.table.gather(np.arange(len(table)))
    kept = (torch.arange(table.shape[1]) < mask.row_widths[:, None]).numpy()
    assert np.array_equal(stored[kept], table.numpy()[kept])
    assert not stored[~kept].any()
    quantized = Scorer(pruned.parent / "exact").score(pl.read_parquet(base / "test.parquet"))
    trained = predict(ranker, Split(base / "dataset", "test").batches(500)).probabilities
    assert np.abs(quantized - trained).max() <= 2 * bundle.golden_tolerance


def test_the_figures_are_those_of_what_is_served(pruned, base):
    run = RunDirectory(pruned)
    metrics = run.metrics()
    labels, probabilities, _, _ = predict(run.ranker(), Split(base / "dataset", "test").batches(500))
    order = np.argsort(probabilities, kind="stable")
    ranks = np.empty(len(order))
    ranks[order] = np.arange(1, len(order) + 1)
    num_positive = int(labels.sum())
    auc = (
        (ranks[labels == 1].sum() - num_positive * (num_positive + 1) / 2) / num_positive / (len(labels) - num_positive)
    )
    # Rounding may turn round pairs of rows whose probabilities are as good as equal: 1.6e-5 each, of 500 rows.
    assert metrics["test"]["auc"] == pytest.approx(auc, abs=1e-4)
    assert metrics["compression"]["test_auc_after"] == metrics["test"]["auc"]
    assert metrics["compression"]["test_auc_before"] == RunDirectory(base / "run").metrics()["test"]["auc"]


def test_a_finished_run_is_returned_and_its_settings_are_written_down(pruned, base):
    run = RunDirectory(pruned)
    experiment, before = run.experiment(), (pruned / "metrics.json").stat().st_mtime_ns
    assert experiment.compression is not None
    method = experiment.compression.method
    again = prune_run(
        base / "run",
        pruned,
        method=method,
        target_bytes=BUDGET,
        table_dtype=experiment.compression.table_dtype,
        overrides=QUICK.get(method, []),
        track=False,
    )
    assert again == run.metrics()
    assert (pruned / "metrics.json").stat().st_mtime_ns == before
    document = yaml.safe_load((pruned / "experiment.yaml").read_text())
    assert document["compression"]["target_bytes"] == BUDGET
    assert document["compression"]["settings"] == experiment.compression.settings.model_dump(mode="json")
    assert type(experiment.compression.settings) is COMPRESSORS[method].Config


def test_j2_j3_a_mask_removes_what_no_slot_keeps(pruned):
    ranker = RunDirectory(pruned).ranker(quantized=False)
    gate = ranker.embedding.gate
    if not isinstance(gate, MaskGate):
        return
    mask = gate.mask
    layout = ranker.embedding.layout
    assert Mask(*mask).check(layout) is not None
    table = ranker.embedding.table.detach()
    beyond = torch.arange(layout.width) >= mask.row_widths[:, None]
    assert table[beyond].abs().sum() == 0  # trained under the mask, and still zero
