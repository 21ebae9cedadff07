"""Each kind of table through the commands: trained, resumed, evaluated, exported, verified, compared and scored."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

from features.encode import encode
from features.hashing import MISSING_TOKEN
from serving.bundle import Bundle
from tests.conftest import SMALL, read_scores
from tests.recsys.conftest import cut_off
from tests.rows import COUNTED
from tests.rows import KINDS as ALL_KINDS

KINDS = [kind for kind in ALL_KINDS if kind != "quotient_remainder"]
"""That one refuses the registry's `probes: 1`; tests/recsys/compression/test_common.py takes it through everything."""

VOCABULARY = "vocabulary.safetensors"


def settings_of(kind: str) -> tuple[str, ...]:
    sizes = ("embedding.width=8", "embedding.probes=1") if kind == "collisionless" else ()
    return (*SMALL, f"embedding.kind={kind}", *sizes)


@pytest.fixture
def trained(project, dataset, muxrec, request) -> Path:
    """A finished run of the kind that the test is for, trained once."""
    kind = request.node.callspec.params["kind"]
    out = project / f"run_{kind}"
    if not (out / "metrics.json").exists():
        arguments = ("--data", dataset, "--out", out, "--no-track", "--json", *settings_of(kind))
        result = muxrec("train", "final_mlp", *arguments)
        assert result.code == 0, result.err
    return out


@pytest.fixture
def awkward(project, tmp_path) -> Path:
    """Raw rows with values that train did not show, missing ones, and empty lists."""
    rows = pl.read_parquet(project / "test.parquet")
    number = pl.int_range(pl.len())
    rows = rows.with_columns(
        f00=pl.when(number % 3 == 0).then(None).when(number % 3 == 1).then(pl.lit("never seen")).otherwise("f00"),
        f02=pl.when(number % 5 == 0).then(None).otherwise("f02"),
        l00=pl.when(number % 4 == 0).then(pl.lit("")).when(number % 4 == 1).then(None).otherwise("l00"),
    )
    rows.write_parquet(tmp_path / "awkward.parquet")
    return tmp_path / "awkward.parquet"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("table_dtype", ["fp32", "int8"])
def test_export_verify_parity_and_score(kind, table_dtype, trained, awkward, muxrec, tmp_path):
    bundle, scores = tmp_path / "bundle", tmp_path / "scores"
    assert muxrec("export", trained, "--out", bundle, "--table-dtype", table_dtype, "--json").code == 0
    assert muxrec("verify", bundle, "--json").code == 0
    parity = muxrec("parity", trained, bundle, "--input", awkward, "--json")
    values = json.loads(parity.out)
    assert values["ids_equal"]
    assert parity.code == (0 if table_dtype == "fp32" else 1)
    assert values["max_abs_diff"] < {"fp32": 1e-6, "int8": 0.05}[table_dtype]
    assert muxrec("score", bundle, "--input", awkward, "--out", scores, "--json").code == 0
    assert len(read_scores(scores)) == 500


@pytest.mark.parametrize("kind", KINDS)
def test_the_run_and_its_bundle_have_one_identity(kind, trained, muxrec, tmp_path):
    assert muxrec("export", trained, "--out", tmp_path / "bundle", "--json").code == 0
    assert Bundle.open(tmp_path / "bundle").model_id == Bundle.open(trained / "bundle").model_id
    assert (trained / VOCABULARY).exists() == (kind in COUNTED)
    assert (trained / "bundle" / VOCABULARY).exists() == (kind == "collisionless")


@pytest.mark.parametrize("kind", ["hashed", "collisionless"])
def test_the_vocabulary_is_what_train_showed(kind, trained, project, dataset):
    bundle = Bundle.open(trained / "bundle")
    tokens = encode(pl.read_parquet(project / "train.parquet"), bundle.registry).tokens
    found = load_file(trained / VOCABULARY)
    assert list(found) == [feature.name for feature in bundle.registry.token_features]
    for name, values in found.items():
        assert values.tolist() == sorted(set(tokens[name].tolist()) - {MISSING_TOKEN})
    assert bundle.layout.num_values == {name: len(values) for name, values in found.items()}
    if kind == "collisionless":
        readers = [name for names in bundle.layout.views.values() for name in names]
        assert len(readers) == 6  # five features in main, f02 for the gate
        assert bundle.layout.num_rows == sum(len(found[name]) + 2 for name in readers)
    else:
        assert bundle.layout.num_rows == 500


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_counts_collisions(kind, trained, muxrec):
    report = json.loads(muxrec("evaluate", trained, "--json").out)["collisions"]
    trained_rows = np.load(trained / "checkpoint" / "trained_rows.npy")
    assert report["occupied"] == trained_rows.sum() <= report["num_rows"] == len(trained_rows)
    shared = {name: max(row[f"measured_{name}"] for row in report["features"]) for name in ("intra", "inter")}
    assert (shared["intra"] > 0, shared["inter"] > 0) == (kind != "collisionless", kind not in COUNTED)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(kind, trained, dataset, muxrec, tmp_path, monkeypatch):
    out = tmp_path / "run"
    command: tuple[Any, ...] = ("train", "final_mlp", "--data", dataset, "--out", out, "--no-track", "--json")
    command = (*command, *settings_of(kind), "trainer.checkpoint_steps=2")
    cut_off(monkeypatch, muxrec, command)
    assert not (out / "metrics.json").exists()
    result = muxrec(*command)
    assert result.code == 0, result.err
    whole, resumed = (json.loads((path / "metrics.json").read_text()) for path in (trained, out))
    assert resumed["valid"] == whole["valid"]
    assert resumed["test"] == whole["test"]
    best = "checkpoint/best.safetensors"
    assert (out / best).read_bytes() == (trained / best).read_bytes()
    assert Bundle.open(out / "bundle").model_id == Bundle.open(trained / "bundle").model_id


@pytest.mark.parametrize("kind", ["collisionless"])
def test_a_config_repeats_the_run(kind, trained, dataset, muxrec, tmp_path):
    arguments = ("--config", trained / "experiment.yaml", "--data", dataset, "--out", tmp_path / "again", "--no-track")
    assert muxrec("train", *arguments, "--json").code == 0
    for name in (VOCABULARY, "checkpoint/best.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (trained / name).read_bytes()


def refused(result: Any, *fragments: str) -> None:
    assert (result.code, len(result.err.splitlines())) == (2, 1), result.err
    for fragment in fragments:
        assert fragment in result.err


def test_settings_that_a_kind_cannot_have(dataset, muxrec, tmp_path):
    command = ("train", "final_mlp", "--data", dataset, "--out", tmp_path / "run", "--no-track", *SMALL)
    refused(muxrec(*command, "embedding.kind=hashed", "embedding.num_rows=5"), "found 5", "embedding.num_rows to 6")
    refused(muxrec(*command, "embedding.kind=collisionless"), "found 4 of 'f00'", "embedding.probes=1")
    refused(muxrec(*command, "embedding.kind=perfect"), "embedding.kind", "'quotient_remainder' or 'robe'")
    refused(muxrec(*command, "embedding.kind=quotient_remainder", "embedding.probes=2"), "found 1 of 'f02'")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["collisionless"])
def test_a_damaged_vocabulary_is_one_line(kind, trained, project, muxrec, tmp_path):
    assert muxrec("export", trained, "--out", tmp_path / "bundle", "--json").code == 0
    path = tmp_path / "bundle" / VOCABULARY
    path.write_bytes(path.read_bytes()[:-8])
    refused(muxrec("verify", tmp_path / "bundle"), VOCABULARY, "bytes", "the bundle is damaged")
    content = (trained / VOCABULARY).read_bytes()
    try:
        (trained / VOCABULARY).write_bytes(content[:-8])
        refused(muxrec("evaluate", trained), VOCABULARY, "cut off", "restore the file, or train again")
        (trained / VOCABULARY).unlink()
        refused(muxrec("evaluate", trained), VOCABULARY, "readable file", "restore the file, or train again")
    finally:
        (trained / VOCABULARY).write_bytes(content)
