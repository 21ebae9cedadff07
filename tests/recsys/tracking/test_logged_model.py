"""A bundle as MLflow's model: what it requires, and which LoggedModel a second export is, or takes the place of."""

import json
import re
import tomllib
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest

from recsys.tracking.logged_model import SERVING_PACKAGES, log_model
from recsys.tracking.model_registry import ModelRegistry
from recsys.tracking.tracker import Tracker
from serving.bundle import Bundle
from serving.bundle.manifest import MANIFEST, manifest_bytes
from serving.scorer import Scorer
from tests.serving.server.app import Client, Served

CSV = {"Content-Type": "text/csv"}
# Texts that pandas makes something else of: numbers, flags, missing values.
AWKWARD_CSV = """\
f00;f01;f02;f03;l00;x00;x01;x02;x03
007;NA;128.0;True;a|b;1.5;2;3e0;-4
7;null;128;true;NA; 1.5 ;2.0;3;-4.0
;nan;1e5;"a;b";007|7;;;;
"";NaN;"x ""y""\u00df";False;;0.1;0.7;1000000;1
None;N/A;9007199254740993;#N/A;a||b;.5;1;2;3
"""
ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "bundle"


def test_a_model_requires_what_scoring_does():
    """The project's own dependencies, without the command line's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[^\w-]", line, maxsplit=1)[0] for line in project["dependencies"]}
    assert set(SERVING_PACKAGES) == names - {"typer"}


def exported_again(out: Path, **settings: Any) -> Bundle:
    """The golden bundle as another day's export would have it, with some settings of the registry changed."""
    out.mkdir()
    for path in GOLDEN.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    document = json.loads((out / MANIFEST).read_text())
    del document["checksum"]
    registry = Bundle.open(GOLDEN).registry.with_settings(**settings)
    document |= {"registry": registry.model_dump(mode="json"), "registry_fingerprint": registry.fingerprint()}
    document["created_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    (out / MANIFEST).write_bytes(manifest_bytes(document))
    return Bundle.open(out)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The golden bundle, whose csv files have a special format."""
    settings = {"separator": ";", "null_values": ["N/A"]}
    return exported_again(tmp_path_factory.mktemp("bundle") / "bundle", csv=settings)


@pytest.fixture(scope="module")
def logged(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Client]]:
    """The bundle as MLflow loads it, and a client of MLflow's server for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.getbasetemp() / 'mlflow.db'}")
        patch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")  # as its server sets it, and leaves it
        patch.chdir(tmp_path_factory.getbasetemp())
        tracker = Tracker.start(experiment="csv", name="csv", tags={}, key="csv")
        log_model(tracker, bundle)
        tracker.finish()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # MLflow's, of its own type hints
            from mlflow.pyfunc import load_model, scoring_server

            model = load_model(f"runs:/{tracker.run_id}/bundle")
        yield model, Client(scoring_server.init(model), "127.0.0.1")


def probabilities(answer: Any) -> list[float]:
    assert answer.status_code == 200, answer.text
    return [one["probability"] for one in answer.json()["predictions"]]


@pytest.mark.slow
def test_a_csv_means_the_same_to_mlflow_to_our_server_and_to_a_job(
    bundle: Bundle, logged: tuple[Any, Client], muxrec: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text(AWKWARD_CSV)
    assert muxrec("score", bundle.path, "--input", tmp_path / "rows.csv", "--out", tmp_path / "out").code == 0
    expected = pl.read_parquet(tmp_path / "out" / "part-*.parquet")["score"].to_list()
    assert len(set(expected)) == 5
    for client in (logged[1], Served(bundle.path).start().client()):
        found = probabilities(client.post("/invocations", content=AWKWARD_CSV.encode(), headers=CSV))
        assert found == pytest.approx(expected, abs=1e-7), "a file of scores holds float32"
        short = b"f02;f00\n128.0;007\n"
        assert probabilities(client.post("/invocations", content=short, headers=CSV)) == [
            pytest.approx(Scorer(bundle.path, num_threads=1).score([{"f00": "007", "f02": "128.0"}])[0])
        ]
        assert probabilities(client.post("/invocations", content=b"f00;x00\n", headers=CSV)) == []
        for wrong in (b"", b"usr\n1\n", b"f00;f01\n1\n", b"x00\nx\n"):
            assert client.post("/invocations", content=wrong, headers=CSV).status_code == 400, wrong


@pytest.mark.slow
def test_some_of_the_columns_are_enough_in_every_form(logged: tuple[Any, Client]) -> None:
    rows: list[dict[str, Any]] = [{"f00": "007", "x00": 1.5}, {"f00": 7, "x00": None}]
    expected = Scorer(GOLDEN, num_threads=1).score(rows).tolist()
    split = {"columns": ["f00", "x00"], "data": [list(row.values()) for row in rows]}
    model, client = logged
    for body in ({"dataframe_records": rows}, {"dataframe_split": split}, {"instances": rows}):
        assert probabilities(client.post("/invocations", json=body)) == expected
    names = [feature.name for feature in Bundle.open(GOLDEN).registry.features]
    # As `spark_udf` makes it of the first columns: those that were not given are all NaN, a list feature's too.
    frame = pd.DataFrame({"f00": pd.Series(["007", "7"])}, columns=names)
    expected = Scorer(GOLDEN, num_threads=1).score([{"f00": "007"}, {"f00": "7"}]).tolist()
    assert model.predict(frame)["probability"].tolist() == expected
    assert model.predict(frame[["f00"]])["probability"].tolist() == expected
    assert client.post("/invocations", json={"dataframe_records": [{"usr": 7}]}).status_code == 400


@pytest.mark.slow
def test_a_second_export_is_the_model_that_was_logged_and_a_version_keeps_its_own(tmp_path: Path):
    first, again = Bundle.open(GOLDEN), exported_again(tmp_path / "again")
    assert again.manifest.created_at != first.manifest.created_at
    tracker = Tracker.start(experiment="exports", name="exports", tags={}, key="exports")
    log_model(tracker, first)
    tracker.finish()
    registry = ModelRegistry.open()
    logged = registry.logged_model(tracker.run_id, first)
    assert logged is not None
    assert registry.logged_model(tracker.run_id, again) == logged
    experiment = registry.client.get_run(tracker.run_id).info.experiment_id
    assert [one.model_id for one in registry.client.search_logged_models([experiment])] == [logged]

    # Logged under the same name once more, it takes the place of what nothing points to, and of that alone.
    log_model(tracker, again)
    (second,) = [one.model_id for one in registry.client.search_logged_models([experiment])]
    assert second != logged
    version = registry.register("exports", second, tracker.run_id, {})
    log_model(tracker, first)
    assert second in {one.model_id for one in registry.client.search_logged_models([experiment])}
    assert Bundle.open(registry.fetch("exports", version.number, cache=tmp_path / "cache")).model_id == first.model_id
