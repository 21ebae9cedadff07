"""Bundles of hashed and of collisionless tables: they score as plain loops do, and a damaged vocabulary is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from features.errors import InputError
from features.hashing import MISSING_TOKEN
from serving.bundle import Bundle
from serving.bundle.vocabulary import read_vocabulary, write_vocabulary
from serving.scorer import Scorer
from tests.serving.conftest import ROUNDING, make_bundle, of_kind, raw_frame, reference, reseal

Fresh = Callable[..., Bundle]
NAME = "vocabulary.safetensors"
TOKENS = {"user": np.array([3, 9, 2**64 - 1], dtype=np.uint64), "größe": np.zeros(0, dtype=np.uint64)}


@pytest.mark.parametrize("kind", ["unified", "hashed", "collisionless"])
def test_scores_are_those_of_plain_loops(fresh: Fresh, kind: str) -> None:
    """Lists, views, missing values, and values that train did not show."""
    settings = of_kind(kind)
    scorer = Scorer(fresh(**settings))
    raw = raw_frame(150, seed=1)
    expected = reference(raw, settings["table"], layout=settings["layout"], vocabulary=settings["vocabulary"])
    assert np.abs(scorer.score(raw) - expected).max() < 1e-6
    assert scorer.verify() < 1e-6
    one_by_one = np.concatenate([scorer.score(raw[row]) for row in range(len(raw))])
    assert np.abs(scorer.score(raw) - one_by_one).max() <= ROUNDING


def test_only_a_collisionless_bundle_keeps_a_vocabulary(tmp_path: Path) -> None:
    bundles = {kind: make_bundle(tmp_path / kind, **of_kind(kind)) for kind in ("unified", "hashed", "collisionless")}
    assert {kind: NAME in bundle.manifest.files for kind, bundle in bundles.items()} == {
        "unified": False,
        "hashed": False,
        "collisionless": True,
    }
    assert [(bundle.path / NAME).exists() for bundle in bundles.values()] == [False, False, True]
    bundle = bundles["collisionless"]
    sizes = {file.name: file.stat().st_size for file in bundle.path.iterdir()}
    assert bundle.num_bytes == sum(sizes.values()) - sizes["manifest.json"]
    assert len({bundle.model_id for bundle in bundles.values()}) == 3


def test_the_vocabulary_is_part_of_the_identity(tmp_path: Path) -> None:
    settings = of_kind("collisionless")
    first = make_bundle(tmp_path / "one", **settings)
    again = make_bundle(tmp_path / "again", **settings)
    assert (first.path / NAME).read_bytes() == (again.path / NAME).read_bytes()
    assert again.model_id == first.model_id
    other = {**settings["vocabulary"], "user": settings["vocabulary"]["user"] ^ np.uint64(1)}
    other["user"].sort()
    changed = make_bundle(tmp_path / "other", **{**settings, "vocabulary": other, "golden": first.golden})
    assert changed.model_id != first.model_id


def test_other_software_reads_it(tmp_path: Path) -> None:
    write_vocabulary(tmp_path / NAME, TOKENS)
    for found in (load_file(tmp_path / NAME), read_vocabulary(tmp_path / NAME, {"user": 3, "größe": 0})):
        assert list(found) == list(TOKENS)
        assert all(found[name].dtype == np.uint64 and np.array_equal(found[name], TOKENS[name]) for name in TOKENS)


# --- faults -----------------------------------------------------------------------------------------------------------


def test_a_changed_byte_is_found(fresh: Fresh) -> None:
    path = fresh(**of_kind("collisionless")).path
    content = bytearray((path / NAME).read_bytes())
    content[-1] ^= 1
    (path / NAME).write_bytes(content)
    with pytest.raises(InputError, match=rf"{NAME}: expected sha256 \w+; found \w+; the bundle is damaged"):
        Bundle.open(path)


def test_a_missing_file_is_named(fresh: Fresh) -> None:
    path = fresh(**of_kind("collisionless")).path
    (path / NAME).unlink()
    with pytest.raises(InputError, match=rf"{NAME}: expected a file of \d+ bytes; found no file"):
        Bundle.open(path, verify=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: {**found, "user": found["user"][::-1].copy()}, "increasing tokens of 'user'"),
        (lambda found: {**found, "user": found["user"][:-1]}, "expected tokens of {'user': 11"),
        (lambda found: {**found, "more": found["user"]}, "expected tokens of {'user': 11"),
        (lambda found: {name: tokens for name, tokens in found.items() if name != "item"}, "expected tokens of"),
        (lambda found: {**found, "user": np.full_like(found["user"], 7)}, "increasing tokens of 'user'"),
        (lambda found: {**found, "user": found["user"].view(np.int64)}, "U64|sound entry"),
        (lambda found: {**found, "user": found["user"].astype(np.float32)}, "expected U64 tokens of 'user'; found f"),
        (lambda found: {**found, "user": found["user"][:, None]}, r"expected U64 tokens of 'user'; found uint64 \["),
        (
            lambda found: {**found, "user": np.sort(np.append(found["user"][1:], np.uint64(MISSING_TOKEN)))},
            "and not the missing one",
        ),
    ],
)
def test_a_vocabulary_that_is_none(fresh: Fresh, change: Callable[[Any], Any], message: str) -> None:
    path = fresh(**of_kind("collisionless")).path
    save_file(change(load_file(path / NAME)), path / NAME)
    reseal(path)
    with pytest.raises(InputError, match=message) as caught:
        Bundle.open(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff" * 7, b"\xff" * 64, (8).to_bytes(8, "little") + b"[" * 8])
def test_bytes_that_are_no_safetensors(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(InputError, match=rf"{NAME}: expected a header"):
        read_vocabulary(tmp_path / NAME)


def test_a_manifest_that_hides_the_file(fresh: Fresh) -> None:
    path = fresh(**of_kind("collisionless")).path
    document = json.loads((path / "manifest.json").read_text())
    del document["files"][NAME]
    with pytest.raises(InputError, match=rf"expected files .*{NAME}; found table.safetensors, "):
        reseal(path, files=document["files"])


def test_a_collisionless_bundle_needs_its_vocabulary(tmp_path: Path) -> None:
    settings = of_kind("collisionless")
    golden = raw_frame(3).with_columns(probability=0.5)
    for vocabulary in (None, {"user": settings["vocabulary"]["user"]}):
        with pytest.raises(
            InputError, match=r"vocabulary: expected tokens of user, genres, item, words; found (user|none)"
        ):
            make_bundle(tmp_path / "bundle", **{**settings, "vocabulary": vocabulary, "golden": golden})
    assert list(tmp_path.iterdir()) == []
