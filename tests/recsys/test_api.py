"""Training from Python is the command's training, with the same files and numbers."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import recsys
from experiments.frappe import frappe
from features.errors import InputError
from recsys import Dataset, FeatureRegistry, Run, Scorer, infer_registry, prepare, train
from recsys.api import resolve_experiment
from recsys.runs import train as train_module

ROOT = Path(__file__).parents[2]
SMALL = {
    "trainer": {"epochs": 2, "batch_size": 512},
    "embedding": {"num_rows": 500},
    "model": {"mlp1_hidden": [20], "mlp2_hidden": (10,), "fs1_context": ["f02", "x00"]},
}
"""The settings of the fixture `run`, which the command trained."""
SAME = (
    "checkpoint/best.safetensors",
    "checkpoint/trained_rows.npy",
    "experiment.yaml",
    "registry.json",
    "profile.json",
)


def assert_same(one: Path, other: Path) -> None:
    for name in (*SAME, "bundle/table.safetensors", "bundle/dense.onnx"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    metrics = [json.loads((path / "metrics.json").read_text()) for path in (one, other)]
    assert metrics[0]["valid"] == metrics[1]["valid"]
    assert metrics[0]["test"] == metrics[1]["test"]


def test_importing_recsys_loads_neither_torch_nor_mlflow():
    code = """
import sys, recsys
from recsys import FeatureRegistry, Scorer, infer_registry, prepare, train
assert not {"torch", "mlflow", "pandas"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_public_names_are_listed_and_others_refused():
    assert set(recsys.__all__) <= set(dir(recsys))
    assert recsys.Scorer is Scorer
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        recsys.fit  # noqa: B018


def test_training_equals_the_command_bit_for_bit(run, dataset, tmp_path):
    trained = train("final_mlp", data=dataset, out=tmp_path / "run", track=False, **SMALL)
    assert_same(trained.path, run)
    assert trained.metrics["test"]["auc"] == Run(run).metrics["test"]["auc"]


def test_a_run_that_was_cut_off_is_resumed_by_the_same_call(run, dataset, tmp_path, monkeypatch):
    finish = train_module.finish_run

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "finish_run", stop)
    with pytest.raises(KeyboardInterrupt):
        train("final_mlp", data=dataset, out=tmp_path / "run", track=False, **SMALL)
    with pytest.raises(InputError, match="expected a finished run"):
        Run(tmp_path / "run")
    monkeypatch.setattr(train_module, "finish_run", finish)
    assert_same(train("final_mlp", data=str(dataset), out=tmp_path / "run", track=False, **SMALL).path, run)


def test_without_out_a_run_has_a_directory_of_its_own(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"track": False, "trainer.epochs": 1, "embedding.num_rows": 100}
    run = train("logistic_regression", data=dataset, **settings)
    assert run.path.parent == Path("work", "runs")
    assert run.path.name.startswith("logistic_regression-")
    written = (run.path / "metrics.json").stat().st_mtime_ns
    assert train("logistic_regression", data=dataset, **settings).path == run.path
    assert (run.path / "metrics.json").stat().st_mtime_ns == written
    other = train("logistic_regression", data=dataset, seed=2, **settings)
    assert other.path != run.path
    assert not Path("mlflow.db").exists()


def test_a_run_is_logged_to_mlflow_unless_told_otherwise(dataset, tmp_path):
    run = train("logistic_regression", data=dataset, out=tmp_path / "run", trainer={"epochs": 1})
    assert json.loads((run.path / "run.json").read_text())["mlflow_run_id"]


def test_a_run_has_its_settings_metrics_and_bundle(run, dataset, project, tmp_path):
    opened = Run(run)
    rows = pl.read_parquet(project / "test.parquet")
    assert repr(opened) == f"Run({str(run)!r})"
    assert opened.path == run
    assert opened.experiment.trainer.epochs == 2
    assert [record["epoch"] for record in opened.history] == [1, 2]
    found = opened.evaluate("test", by="f00")
    assert found.metrics == opened.metrics["test"]
    assert {segment.feature for segment in found.segments} == {"f00"}
    assert opened.evaluate("valid", data=Dataset(dataset, None)).metrics == opened.metrics["valid"]
    scores = opened.scorer(num_threads=1).score(rows)
    np.testing.assert_array_equal(scores, Scorer(opened.bundle).score(rows))
    bundle = opened.export(tmp_path / "bundle", table_dtype="int8")
    assert bundle.manifest.table_dtype == "int8"
    np.testing.assert_allclose(Scorer(bundle).score(rows), scores, atol=0.05)


@pytest.mark.parametrize("form", ["polars", "pandas", "arrow", "path", "paths"])
def test_prepare_takes_frames_and_files(form, project, dataset, tmp_path):
    registry = FeatureRegistry.from_yaml(project / "registry.yaml")

    def rows(split: str) -> object:
        path = project / f"{split}.parquet"
        frame = pl.read_parquet(path)
        forms = {"polars": frame, "pandas": frame.to_pandas(), "arrow": frame.to_arrow(), "path": path}
        return [str(path)] if form == "paths" else forms[form]

    made = prepare(registry, {split: rows(split) for split in ("train", "valid", "test")}, tmp_path / "made")
    assert made.path == tmp_path / "made"
    for split in ("train", "valid", "test"):
        (name,) = (part.file for part in made.info.splits[split].parts)
        assert (made.path / name).read_bytes() == (dataset / name).read_bytes()


def test_rows_alone_are_for_training_and_some_are_held_out(project, tmp_path):
    path = project / "train.parquet"
    made = prepare(infer_registry(path, label="label"), path, tmp_path / "made", holdout=0.2)
    assert set(made.info.splits) == {"train", "valid", "test"}
    assert sum(split.rows for split in made.info.splits.values()) == 3000
    with pytest.raises(InputError, match="expected no dataset yet"):
        prepare(infer_registry(path, label="label"), path, tmp_path / "made")


def test_settings_are_nested_or_dotted_and_of_any_plain_type():
    settings = {"seed": np.int64(7), "trainer.epochs": 3, "embedding": {"l2": np.float32(0.5)}, "negative_rate": 1e-5}
    experiment = resolve_experiment("mlp", {**settings, "model": {"hidden": np.array([8, 4])}})
    assert experiment.seed == 7
    assert experiment.trainer.epochs == 3
    assert experiment.embedding.l2 == 0.5
    assert experiment.negative_rate == 1e-5
    assert experiment.model_dump(mode="json")["model"]["hidden"] == [8, 4]
    assert resolve_experiment("mlp", {}) == resolve_experiment("mlp", {"trainer": {}})


def test_a_named_run_keeps_its_settings_and_may_change_its_model():
    assert resolve_experiment(frappe(), {}) == frappe()
    changed = resolve_experiment(frappe(), {"model": {"name": "dcn_v2", "hidden": [8]}, "seed": 2})
    assert changed.model_dump()["model"]["name"] == "dcn_v2"
    assert changed.model_dump(mode="json")["model"]["hidden"] == [8]
    assert changed.embedding == frappe().embedding


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 3}, "unknown setting; found 'epochs'; did you mean 'trainer.epochs'"),
        ({"trainer": {"epoch": 3}}, "unknown setting; found 'trainer.epoch'; did you mean 'trainer.epochs'"),
        ({"trainer.epochs": object()}, "a setting is a number"),
        ({"trainer": {"epochs": "many"}}, "trainer.epochs"),
        ({"model": {"name": "final_mpl"}}, "unknown model; found 'final_mpl'; use one of final_mlp"),
    ],
)
def test_a_mistake_in_the_settings_is_named(settings, message):
    with pytest.raises(InputError, match=message):
        resolve_experiment("final_mlp", settings)


def test_a_run_that_only_the_command_knows_is_refused_with_the_remedy(dataset):
    with pytest.raises(InputError, match=r"unknown model; found 'frappe'; .* or give an Experiment"):
        train("frappe", data=dataset)


def test_training_without_torch_says_what_to_do(dataset, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(InputError, match="training needs its packages; found no torch; make env"):
        train("final_mlp", data=dataset)
