"""`models:/` URIs: what they mean, what is fetched for them, and what is said where that cannot be."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from features.errors import InputError
from recsys.tracking.logged_model import log_model
from recsys.tracking.model_registry import KEPT_VERSIONS, ModelRegistry
from recsys.tracking.model_uri import ModelUri, parse_model_uri, resolve_bundle
from recsys.tracking.tracker import Tracker
from serving.bundle import Bundle
from serving.scorer import Scorer

GOLDEN = Path(__file__).parents[2] / "golden" / "bundle"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("models:/ads@champion", ModelUri("ads", None, "champion")),
        ("models:///ads@a-b_1", ModelUri("ads", None, "a-b_1")),
        ("models:/ads and more/12", ModelUri("ads and more", "12", None)),
        ("work/models", None),
        ("/models:/x", None),
    ],
)
def test_forms(text: str, expected: ModelUri | None):
    assert parse_model_uri(text) == expected
    assert parse_model_uri(Path(text)) == expected


@pytest.mark.parametrize("text", ["models:/ads", "models:/ads/latest", "models:/ads/0", "models:/a/b@c", "models:/@c"])
def test_other_forms_are_refused(text: str):
    with pytest.raises(InputError, match="expected a version of a registered model; found 'models:/"):
        parse_model_uri(text)


def test_a_uri_reads_as_it_was_written():
    for text in ("models:/ads@champion", "models:/ads/12"):
        assert str(parse_model_uri(text)) == text


def test_a_path_stays(tmp_path: Path):
    assert resolve_bundle(tmp_path) == tmp_path


def test_without_mlflow_it_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="models:/ads@champion: reading its registry needs mlflow; found no mlflow"):
        resolve_bundle("models:/ads@champion")


def register(name: str, alias: str | None = None) -> str:
    """Log the golden bundle in a new run and register it; the number of the version."""
    tracker = Tracker.start(experiment="uris", name=name, tags={}, key=f"{name}-{alias}")
    log_model(tracker, Bundle.open(GOLDEN))
    tracker.finish()
    registry = ModelRegistry.open()
    logged = registry.logged_model(tracker.run_id, Bundle.open(GOLDEN))
    assert logged is not None
    version = registry.register(name, logged, tracker.run_id, {})
    assert registry.register(name, logged, tracker.run_id, {}) == version  # no second one for the same model
    if alias:
        registry.set_alias(alias, version)
    return version.number


ASK = """
import sys
from recsys.tracking.model_uri import resolve_bundle
print(resolve_bundle(sys.argv[1]))
print([name for name in ("mlflow", "torch", "pandas") if name in sys.modules])
"""


@pytest.mark.slow
def test_a_version_is_fetched_once_and_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("MUXREC_CACHE", str(cache))
    number = register("fetched", "champion")
    command = [sys.executable, "-c", ASK, "models:/fetched@champion"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    path, heavy = done.stdout.splitlines()
    assert heavy == "[]"
    assert Path(path).parent == cache / "models" / "fetched"
    assert Path(path).name.startswith(f"{number}-")
    assert Scorer(path).bundle.model_id == Bundle.open(GOLDEN).model_id

    (Path(path) / "table.safetensors").write_bytes(b"damaged")
    registry = ModelRegistry.open()
    again = registry.fetch("fetched", number, cache=cache / "models")
    assert again == Path(path)
    assert Bundle.open(again).model_id == Bundle.open(GOLDEN).model_id
    # Other processes cannot read what the caller has open.
    (again / "dense.onnx").write_bytes(b"damaged")
    os.utime(again, (0, 0))
    assert registry.fetch("fetched", None, alias="champion", cache=cache / "models", current=again) == again
    assert again.stat().st_mtime > 0  # what is in use is not the oldest one, which leaves the disk
    assert (again / "dense.onnx").read_bytes() == b"damaged"
    assert not [one for one in again.parent.iterdir() if one.name.startswith(".")]


@pytest.mark.slow
def test_old_versions_leave_the_disk(tmp_path: Path):
    number = register("kept")
    registry, cache = ModelRegistry.open(), tmp_path / "models"
    first = registry.fetch("kept", number, cache=cache)
    for other in range(KEPT_VERSIONS + 2):
        shutil.copytree(first, first.with_name(f"{other + 100}-0123"))
    assert registry.fetch("kept", number, cache=cache) == first
    left = [one.name for one in first.parent.iterdir()]
    assert len(left) == KEPT_VERSIONS
    assert first.name in left


@pytest.mark.slow
def test_what_cannot_be_had_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, muxrec):
    register("known")
    nothing = "found no such model, version or alias; set MLFLOW_TRACKING_URI"
    for uri in ("models:/unknown@champion", "models:/known@champion", "models:/known/99"):
        with pytest.raises(InputError, match=rf"expected the registered model {uri}; {nothing}"):
            resolve_bundle(uri)
    result = muxrec("verify", "models:/unknown/1")
    assert result.code == 2
    assert len(result.err.splitlines()) == 1
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/secret.db")
    with pytest.raises(InputError, match=r"expected an MLflow store; found none at sqlite:.*secret\.db; set MLFLOW"):
        resolve_bundle("models:/known/1")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    with pytest.raises(InputError, match="found no answer from its server") as raised:
        resolve_bundle("models:/known/1")
    assert "secret" not in str(raised.value)


@pytest.mark.slow
def test_a_model_without_a_bundle_is_refused(tmp_path: Path):
    registry = ModelRegistry.open()
    registry.client.create_registered_model("foreign")
    (tmp_path / "other").mkdir()
    registry.client.create_model_version("foreign", (tmp_path / "other").as_uri())
    with pytest.raises(InputError, match="models:/foreign/1: expected a muxrec bundle"):
        registry.fetch("foreign", "1", cache=tmp_path / "models")
