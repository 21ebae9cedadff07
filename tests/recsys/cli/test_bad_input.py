"""Every bad input through the command: one line on standard error, exit code 2, nothing half-written."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from experiments.__main__ import main
from tests.conftest import SMALL


def assert_refused(result, *fragments: str) -> None:
    assert result.code == 2, result.out + result.err
    lines = [line for line in result.err.splitlines() if line.startswith("muxrec: ")]
    assert len(lines) == 1, result.err
    assert "Traceback" not in result.err
    for fragment in fragments:
        assert fragment in lines[0]


@pytest.fixture
def prepare(muxrec, tmp_path):
    """Prepare a raw frame, or bytes under a file name, under a registry given as YAML features."""

    def call(raw, features="a: categorical", name="train.parquet", extra=""):
        path = tmp_path / name
        if isinstance(raw, bytes):
            path.write_bytes(raw)
        else:
            raw.write_parquet(path)
        registry = tmp_path / "registry.yaml"
        body = "".join(f"  {line}\n" for line in features.splitlines())
        registry.write_text(f"label: label\n{extra}features:\n{body}")
        result = muxrec("prepare", "--registry", registry, "--train", path, "--out", tmp_path / "out", "--json")
        if result.code:
            assert not (tmp_path / "out").exists()
            assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted({name, "registry.yaml"})
        return result

    return call


def frame(**columns) -> pl.DataFrame:
    return pl.DataFrame({"label": [0, 1] * 50, **columns})


A = ["x", "y"] * 50

BAD_FRAMES = {
    "missing column": (frame(b=A), "a: categorical", ["'a'", "label, b"]),
    "text in a numeric": (frame(a=A), "a: numeric", ["'a'", "number", "'x'"]),
    "1.5 in a categorical": (frame(a=[1.5, 2.0] * 50), "a: categorical", ["'a'", "1.5"]),
    "label 2": (frame(a=A).with_columns(label=pl.Series([0, 2] * 50)), "a: categorical", ["0 or 1", "2"]),
    "label null": (frame(a=A).with_columns(label=pl.Series([0, None] * 50)), "a: categorical", ["null"]),
    "one class": (frame(a=A).with_columns(label=pl.lit(1)), "a: categorical", ["both", "all 1"]),
    "float beyond 2^53": (frame(a=[2.0**60, 1.0] * 50), "a: categorical", ["2^53"]),
    "list where a scalar": (frame(a=[["x"], ["y"]] * 50), "a: categorical", ["list", "categorical_list"]),
    "scalar where a list": (frame(a=[1, 2] * 50), "a: categorical_list", ["list", "categorical"]),
    "text where a list": (frame(a=A), "a: categorical_list", ["separator"]),
    "no rows": (frame(a=A).head(0), "a: categorical", ["rows"]),
    "reserved name": (frame(a=A, weight=A), "weight: categorical", ["reserved", "'weight'"]),
    "duplicate name": (frame(a=A), "a: categorical\na: numeric", ["unique", "'a'"]),
    "unknown type": (frame(a=A), "a: text", ["categorical, categorical_list, numeric", "'text'"]),
    "unknown key": (frame(a=A), "a: {type: categorical, probe: 2}", ["did you mean 'probes'"]),
}


@pytest.mark.parametrize("case", list(BAD_FRAMES))
def test_prepare_refuses(case, prepare):
    raw, features, fragments = BAD_FRAMES[case]
    assert_refused(prepare(raw, features), *fragments)


BAD_FILES = {
    "empty file": ("train.parquet", b"", ["expected rows", "found none"]),
    "not parquet": ("train.parquet", b"PAR1 and then nothing", ["readable parquet"]),
    "short csv row": ("train.csv", b"label,a\n0,x\n1\n", ["2 fields", "1 in"]),
    "long csv row": ("train.csv", b"label,a\n0,x\n1,y,z\n", ["train.csv"]),
    "text in a csv label": ("train.csv", b"label,a\n0,x\nperhaps,y\n", ["'perhaps'"]),
    "unknown kind": ("train.txt", b"label,a\n", ["no file", ".parquet"]),
}


@pytest.mark.parametrize("case", list(BAD_FILES))
def test_prepare_refuses_the_file(case, prepare):
    name, content, fragments = BAD_FILES[case]
    assert_refused(prepare(content, name=name), *fragments[1:] if case == "unknown kind" else fragments)


def test_a_truncated_parquet_file(prepare, tmp_path):
    frame(a=A).write_parquet(tmp_path / "whole.parquet")
    content = (tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "whole.parquet").unlink()
    assert_refused(prepare(content[:-20]), "train.parquet", "readable parquet")


def test_odd_but_good_values_are_taken(prepare):
    values = ["", None, "\U0001d4b3\u00e9", "x" * 1_000_000, "-1"] * 20
    numbers = [float("nan"), None, -(2**62), 2**62, 0] * 20
    raw = frame(a=values, unknown=A, n=pl.Series(numbers[:0] + [None, -(2**62), 2**62, 0, 7] * 20, dtype=pl.Int64))
    result = prepare(raw, "a: categorical\nn: categorical")
    assert result.code == 0, result.err
    assert json.loads(result.out)["unused"] == ["unknown"]


def test_no_files_match(muxrec, project, tmp_path):
    arguments = ("--registry", project / "registry.yaml", "--train", tmp_path / "*.parquet", "--out", tmp_path / "d")
    assert_refused(muxrec("prepare", *arguments), "no file matches")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_a_file(muxrec, project, tmp_path):
    (tmp_path / "d").write_text("not a directory")
    arguments = ("--registry", project / "registry.yaml", "--train", project / "train.parquet", "--out", tmp_path / "d")
    assert_refused(muxrec("prepare", *arguments), "expected a directory", "a file", "--out")
    assert (tmp_path / "d").read_text() == "not a directory"


def test_a_dataset_is_not_overwritten_unasked(muxrec, project, dataset):
    arguments = ("--registry", project / "registry.yaml", "--train", project / "train.parquet", "--out", dataset)
    assert_refused(muxrec("prepare", *arguments), "--overwrite")


def test_a_full_disk(muxrec, project, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    arguments = ("--registry", project / "registry.yaml", "--train", project / "train.parquet", "--out", tmp_path / "d")
    assert_refused(muxrec("prepare", *arguments), "No space left", "free space")
    assert list(tmp_path.iterdir()) == []


BAD_TRAINING = {
    "unknown run": (["nope"], ["'nope'", "final_mlp"]),
    "unknown key": (["mlp", "trainer.epoch=1"], ["'trainer.epochs'"]),
    "bad value": (["mlp", "trainer.epochs=0"], ["trainer.epochs", "found 0"]),
    "heads": (["final_mlp", "model.num_heads=7"], ["num_heads", "7", "choose one of"]),
    "context": (["final_mlp", "model.fs1_context=[f0]"], ["fs1_context", "'f0'", "closest"]),
    "width": (["mlp", "embedding.optimizer=rowwise_adagrad", "embedding.width=6"], ["divisible by 4", "6"]),
    "no name": ([], ["NAME", "--config"]),
}


@pytest.mark.parametrize("case", list(BAD_TRAINING))
def test_train_refuses(case, muxrec, dataset, tmp_path):
    arguments, fragments = BAD_TRAINING[case]
    result = muxrec("train", *arguments, "--data", dataset, "--out", tmp_path / "run", "--no-track")
    assert_refused(result, *fragments)
    assert list(tmp_path.iterdir()) == []


def test_train_refuses_a_directory_without_a_dataset(muxrec, tmp_path):
    assert_refused(muxrec("train", "mlp", "--data", tmp_path, "--out", tmp_path / "run"), "muxrec prepare")


def test_train_refuses_the_directory_of_another_run(muxrec, dataset, run, tmp_path):
    arguments = ("--data", dataset, "--out", run, "--no-track")
    assert_refused(
        muxrec("train", "final_mlp", *arguments, "seed=5", *SMALL), "another experiment; found seed: 1, not 5;", "--out"
    )
    changed = muxrec("train", "final_mlp", *arguments, *SMALL, "model.num_heads=1")
    assert_refused(changed, "another experiment; found model.num_heads: ", ", not 1;")
    (tmp_path / "note.txt").write_text("mine")
    assert_refused(muxrec("train", "mlp", "--data", dataset, "--out", tmp_path, "--no-track"), "empty or new")


def test_a_registry_that_differs_shows_the_difference(muxrec, project, run, tmp_path):
    text = (
        (project / "registry.yaml")
        .read_text()
        .replace("  f03: categorical\n", "  f03: {type: categorical, probes: 2}\n")
    )
    (tmp_path / "registry.yaml").write_text(text)
    files = (
        "--train",
        project / "train.parquet",
        "--valid",
        project / "valid.parquet",
        "--test",
        project / "test.parquet",
    )
    out = tmp_path / "other"
    assert muxrec("prepare", "--registry", tmp_path / "registry.yaml", *files, "--out", out, "--json").code == 0
    assert_refused(muxrec("evaluate", run, "--data", out), "f03.probes", "None -> 2")
    config = ("--config", run / "experiment.yaml", "--data", out, "--out", run, "--no-track")
    assert_refused(muxrec("train", *config), "f03.probes")


def test_an_unfinished_run(muxrec, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "metrics.json").unlink()
    assert_refused(muxrec("export", copy, "--out", tmp_path / "b"), "finished run", "resumes")


def test_an_unknown_split_and_table_type(muxrec, run, tmp_path):
    assert_refused(muxrec("evaluate", run, "--split", "tset"), "'tset'", "train, valid, test")
    assert_refused(muxrec("export", run, "--out", tmp_path / "b", "--table-dtype", "fp8"), "'fp8'", "int8")
    assert list(tmp_path.iterdir()) == []


def damage(bundle: Path, case: str) -> None:
    if case == "changed byte":
        content = bytearray((bundle / "dense.onnx").read_bytes())
        content[len(content) // 2] ^= 1
        (bundle / "dense.onnx").write_bytes(content)
    elif case == "missing file":
        (bundle / "table.safetensors").unlink()
    else:
        manifest = json.loads((bundle / "manifest.json").read_text())
        if case == "newer format":
            manifest["format_version"] = 99
        else:
            manifest["registry"]["seed"] = 12345
        (bundle / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("case", "fragment"),
    [("changed byte", "sha256"), ("missing file", "no file"), ("newer format", "99"), ("other registry", "manifest")],
)
def test_a_damaged_bundle_is_refused_by_every_verb(case, fragment, muxrec, run, project, tmp_path):
    bundle = shutil.copytree(run / "bundle", tmp_path / "bundle")
    damage(bundle, case)
    raw = ("--input", project / "test.parquet")
    assert_refused(muxrec("verify", bundle), fragment)
    assert_refused(muxrec("parity", run, bundle, *raw), fragment)
    assert_refused(muxrec("score", bundle, *raw, "--out", tmp_path / "scores"), fragment)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_score_refuses_and_writes_nothing(muxrec, run, project, tmp_path):
    bundle, out = run / "bundle", tmp_path / "scores"
    assert_refused(muxrec("score", bundle, "--input", tmp_path / "none*", "--out", out), "no file matches")
    raw = ("--input", project / "test.parquet", "--out", out)
    assert_refused(muxrec("score", bundle, *raw, "--keep", "nope"), "'nope'")
    pl.read_parquet(project / "test.parquet").drop("f01").write_parquet(tmp_path / "less.parquet")
    assert_refused(muxrec("score", bundle, "--input", tmp_path / "less.parquet", "--out", out), "'f01'")
    assert not out.exists()
    lenient = muxrec("score", bundle, "--input", tmp_path / "less.parquet", "--out", out, "--allow-missing", "--json")
    assert lenient.code == 0


def test_an_unexpected_error_is_not_hidden(monkeypatch):
    """A bug of ours keeps its traceback: only what the user can fix becomes one line."""
    monkeypatch.setattr("sys.argv", ["muxrec", "verify", "x"])
    monkeypatch.setattr("serving.scorer.Scorer.__init__", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main()


def test_data_that_were_prepared_again_are_not_taken_for_those_of_training(muxrec, project, tmp_path):
    """Rows held out by another split rule were training rows before: a score on them would be too good."""
    lines = (project / "registry.yaml").read_text().splitlines()
    (tmp_path / "registry.yaml").write_text("\n".join(line for line in lines if "standardize" not in line))
    files = ("--registry", tmp_path / "registry.yaml", "--train", project / "train.parquet", "--out", tmp_path / "d")
    assert muxrec("prepare", *files, "--json").code == 0
    small = ("trainer.epochs=1", "model.hidden=[4]", "embedding.num_rows=50", "--no-track", "--json")
    assert muxrec("train", "mlp", "--data", tmp_path / "d", "--out", tmp_path / "r", *small).code == 0
    assert muxrec("prepare", *files, "--holdout", "0.2", "--overwrite", "--json").code == 0
    assert_refused(muxrec("evaluate", tmp_path / "r"), "prepared again", "--data")
    assert muxrec("evaluate", tmp_path / "r", "--data", tmp_path / "d").code == 0


def test_an_impossible_table_and_seed(muxrec, dataset, tmp_path):
    arguments = ("--data", dataset, "--out", tmp_path / "run", "--no-track")
    assert_refused(muxrec("train", "mlp", *arguments, "embedding.num_rows=2000000000"), "memory", "num_rows")
    assert_refused(muxrec("train", "mlp", *arguments, "seed=99999999999999999999"), "seed")
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_used(muxrec, dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://user:secret@host")
    result = muxrec("train", "mlp", "--data", dataset, "--out", tmp_path / "run")
    assert_refused(result, "MLflow", "--no-track")
