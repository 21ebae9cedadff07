"""Reading a dataset directory: anything that `prepare` did not write is refused with a reason."""

import json
from pathlib import Path

import polars as pl
import pytest

from features.dataset.info import read_dataset
from features.dataset.prepare import prepare
from features.errors import InputError
from features.registry import FeatureRegistry

REGISTRY = FeatureRegistry.of(features={"user": "categorical", "price": "numeric"})


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    frame = pl.DataFrame({"label": [0, 1, 1], "user": ["a", "b", None], "price": [1.5, 2.0, 7.0]})
    pl.concat([frame] * 40).write_parquet(tmp_path / "raw.parquet")
    return tmp_path / "raw.parquet"


@pytest.fixture
def out(tmp_path: Path, raw: Path) -> Path:
    prepare(REGISTRY, {"train": [raw]}, tmp_path / "out")
    return tmp_path / "out"


def refusal(out: Path, **options) -> str:
    with pytest.raises(InputError) as caught:
        read_dataset(out, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_dataset(tmp_path: Path):
    assert "expected a dataset; found no such directory; make one with" in refusal(tmp_path / "none")
    assert "found no readable dataset.json there" in refusal(tmp_path)


def test_a_missing_registry(out: Path):
    (out / "registry.json").unlink()
    assert "found no readable registry.json there" in refusal(out)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_damaged_json(out: Path, text: str):
    (out / "dataset.json").write_text(text)
    assert "dataset.json: expected a directory that prepare wrote; found" in refusal(out)


def test_a_newer_format(out: Path):
    document = json.loads((out / "dataset.json").read_text()) | {"format_version": 3, "new key": 1}
    (out / "dataset.json").write_text(json.dumps(document))
    assert "dataset.json: expected dataset format 1 to 2; found 3; upgrade muxrec" in refusal(out)


def test_another_registry(out: Path):
    (out / "registry.json").write_text(REGISTRY.to_json())
    assert "expected the registry that the parts were made with; found another" in refusal(out)


def test_parts(out: Path):
    part = out / "valid" / "part-00000.parquet"
    content = part.read_bytes()
    part.write_bytes(content[:-1] + b"X")
    read_dataset(out)
    assert "part-00000.parquet: expected the part that prepare wrote; found another ch" in refusal(out, verify=True)
    part.write_bytes(content[:-1])
    assert f"found {len(content) - 1} bytes instead of {len(content)}; prepare it again" in refusal(out)
    part.unlink()
    assert "found no such file" in refusal(out)


def test_later_settings_raise_the_format(tmp_path: Path):
    """An older version refuses such a dataset by its format version, and reads one without these settings."""
    frame = pl.DataFrame({"label": [0, 1] * 40, "user": ["7.0", "8"] * 40})
    for value_type, version in ((None, 1), ("integer", 2)):
        registry = FeatureRegistry.of(features={"user": {"type": "categorical", "value_type": value_type}})
        info = prepare(registry, {"train": frame}, tmp_path / str(version))
        assert (
            info.format_version == json.loads((tmp_path / str(version) / "dataset.json").read_text())["format_version"]
        )
        assert (info.format_version, read_dataset(tmp_path / str(version))[0]) == (version, info)
