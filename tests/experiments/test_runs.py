"""The named runs: the networks and table sizes that BARS published, and columns that their datasets have."""

import json
from pathlib import Path

import polars as pl
import pytest

from data import avazu, criteo, frappe, movielens
from data.common import RawDataset, build
from experiments.runs import RUNS
from features.registry import FeatureRegistry
from recsys.models import MODELS
from recsys.ranker import build_ranker
from tests import published
from tests.published import Fields, parameters_there

TUNED = [name for name in RUNS if name not in MODELS]


@pytest.mark.parametrize(
    ("name", "fields", "parameters"),
    [
        ("frappe", published.FRAPPE_X1, 253_392),
        ("frappe_final_net", published.FRAPPE_X1, 338_502),
        ("frappe_dcn_v2", published.OLD_FRAPPE_X1, 458_391),
        ("frappe_deep_fm", published.OLD_FRAPPE_X1, 423_280),
        ("movielens_latest", published.MOVIELENS_X1, 1_040_902),
        ("movielens_latest_final_net", published.MOVIELENS_X1, 1_106_234),
        ("criteo_x1", published.CRITEO_X1, 22_478_162),
        ("criteo_x1_final_net", published.CRITEO_X1, 21_658_582),
        ("criteo_x4", published.CRITEO_X4, 19_524_954),
        ("avazu_x1", published.AVAZU_X1, 13_979_472),
        ("avazu_x1_final_net", published.AVAZU_X1, 14_163_518),
        ("avazu_x4", published.AVAZU_X4, 69_046_986),
    ],
)
def test_a_run_has_the_network_that_was_published_and_no_more_bytes(name: str, fields: Fields, parameters: int):
    run = RUNS[name]()
    assert run.name == name
    assert parameters_there(run.model.name, run.model, fields) == parameters
    if fields.tokens is not published.FRAPPE:  # whose table size the project chose itself
        floats, there = run.embedding.num_rows * run.embedding.width, fields.vocabulary * fields.width
        assert there - run.embedding.width < floats <= there


def features_of(run: str) -> dict[str, object]:
    """Features that a module of `data` declares for a run."""
    if run.startswith("criteo"):
        numeric = {"type": "numeric", "transform": "log1p" if "x1" in run else "log_square"}
        return {**dict.fromkeys(criteo.NUMERIC, numeric), **dict.fromkeys(criteo.CATEGORICAL, "categorical")}
    if run.startswith("movielens"):
        return {**dict.fromkeys(movielens.COLUMNS, "categorical"), "genres": movielens.GENRES}
    return dict.fromkeys(frappe.COLUMNS if run.startswith("frappe") else avazu.COLUMNS, "categorical")


@pytest.mark.parametrize("name", TUNED)
def test_a_run_fits_the_columns_of_its_dataset(name: str):
    """The contexts of gates name columns of the data, and models that need fields of equal width have them."""
    run, registry = RUNS[name](), FeatureRegistry.of(features=features_of(name))
    embedding = run.embedding.model_copy(update={"num_rows": 100})
    ranker, _ = build_ranker(registry, run.model.name, run.model, embedding, seed=1, learning_rate=0.1)
    assert list(ranker.network.inputs.views["main"]) == [feature.name for feature in registry.token_features]


# From raw files of the published columns to a finished run


def criteo_rows(num_rows: int) -> pl.DataFrame:
    """Made-up rows under Criteo's column names; C6 decides the label."""
    row = pl.int_range(num_rows)
    numbers = [((row * (17 + place)) % 90 - 2).alias(name) for place, name in enumerate(criteo.NUMERIC)]
    names = [(row * (31 + place) % 23).cast(pl.String).alias(name) for place, name in enumerate(criteo.CATEGORICAL)]
    return pl.select(((row * 36) % 23 % 2).cast(pl.Int8).alias("label"), *numbers, *names)


def avazu_rows(num_rows: int) -> pl.DataFrame:
    """Made-up rows under Avazu's column names; the site decides the label."""
    row = pl.int_range(num_rows)
    hours = pl.concat_str(pl.lit("141021"), (row % 24).cast(pl.String).str.zfill(2)).alias("hour")
    names = [(row * (31 + place) % 23).cast(pl.String).alias(name) for place, name in enumerate(avazu.PUBLISHED)]
    return pl.select(((row * 33) % 23 % 2).cast(pl.Int8).alias("label"), hours, *names)


def write_parts(directory: Path, rows: pl.DataFrame) -> Path:
    """A folder with train.parquet, valid.parquet and test.parquet."""
    directory.mkdir()
    for name, start, stop in (("train", 0, 400), ("valid", 400, 500), ("test", 500, 600)):
        rows[start:stop].write_parquet(directory / f"{name}.parquet")
    return directory


def made(module: str, protocol: str, directory: Path) -> Path:
    """A dataset directory, by the module of `data` itself."""
    rows = criteo_rows(600) if module == "criteo" else avazu_rows(600)
    raw, out = write_parts(directory / "raw", rows), directory / "dataset"

    def write() -> RawDataset:
        if module == "criteo":
            return criteo.write_raw(out, raw, protocol=criteo.Protocol(protocol))
        return avazu.write_raw(out, raw)

    build(out, write, notice="made up", overwrite=False)
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "module", "protocol"),
    [
        ("criteo_x1", "criteo", "log1p"),
        ("criteo_x1_final_net", "criteo", "log1p"),
        ("criteo_x4", "criteo", "x4"),
        ("avazu_x1", "avazu", ""),
        ("avazu_x4", "avazu", ""),
    ],
)
def test_a_run_trains_from_raw_files_of_the_published_columns(name, module, protocol, muxrec, tmp_path):
    data, run = made(module, protocol, tmp_path), tmp_path / "run"
    settings = ("embedding.num_rows=500", "trainer.epochs=2", "trainer.batch_size=20")
    result = muxrec("train", name, "--data", data, "--out", run, "--no-track", "--json", *settings)
    assert result.code == 0, result.err
    assert json.loads((run / "metrics.json").read_text())["test"]["auc"] > 0.9
