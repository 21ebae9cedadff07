"""A bundle as MLflow's model: what it requires, and which LoggedModel a second export is, or takes the place of."""

import json
import re
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from experiments.logged_model import SERVING_PACKAGES, log_model
from recsys.model_registry import ModelRegistry
from recsys.tracking import Tracker
from serving.bundle import Bundle
from serving.manifest import MANIFEST, manifest_bytes

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "bundle"


def test_a_model_requires_what_scoring_does():
    """The project's own dependencies, without the command line's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[^\w-]", line, maxsplit=1)[0] for line in project["dependencies"]}
    assert set(SERVING_PACKAGES) == names - {"typer"}


def exported_again(out: Path) -> Bundle:
    """The golden bundle as another day's export would have it."""
    out.mkdir()
    for path in GOLDEN.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    document = json.loads((out / MANIFEST).read_text())
    del document["checksum"]
    document["created_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    (out / MANIFEST).write_bytes(manifest_bytes(document))
    return Bundle.open(out)


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
