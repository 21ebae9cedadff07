import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
from safetensors.numpy import load_file, save_file

from features.errors import InputError
from features.registry import FeatureRegistry
from serving.bundle.bundle import Bundle
from serving.bundle.manifest import Manifest, PriorCorrection, manifest_bytes
from tests.serving.conftest import FILES, LAYOUT, REGISTRY, dense_graph, make_bundle, raw_frame, reseal, table

Fresh = Callable[..., Bundle]


def edit_manifest(path: Path, **changes: Any) -> None:
    """Change a manifest as a careless edit would."""
    document = json.loads((path / "manifest.json").read_text()) | changes
    (path / "manifest.json").write_text(json.dumps(document, indent=1))


def test_round_trip(fresh: Fresh) -> None:
    trained = np.arange(LAYOUT.num_rows) % 3 == 0
    written = fresh(trained_rows=trained)
    for verify in (True, False):
        read = Bundle.open(written.path, verify=verify)
        assert read.manifest == written.manifest
        assert (read.registry, read.layout) == (REGISTRY, LAYOUT)
        assert read.model_id == written.model_id
        assert read.profile == {"user": {"missing": 0.1}}
        assert read.golden.equals(written.golden)
        every = np.arange(LAYOUT.num_rows)
        assert np.array_equal(read.table.gather(every), table())
        assert np.array_equal(read.table.is_trained(every), trained)
    assert sorted(file.name for file in written.path.iterdir()) == sorted(["manifest.json", *FILES])
    assert [file.name for file in written.path.parent.iterdir()] == ["bundle"], "no temporary name is left"


def test_the_same_model_makes_the_same_bytes(tmp_path: Path) -> None:
    one, two = make_bundle(tmp_path / "one"), make_bundle(tmp_path / "two")
    for name in ["manifest.json", *FILES]:
        assert (one.path / name).read_bytes() == (two.path / name).read_bytes()
    other = table()
    other[0, 0] += 1
    assert make_bundle(tmp_path / "three", table=other).model_id != one.model_id


def test_other_software_reads_the_table(fresh: Fresh) -> None:
    tensors = load_file(fresh(table_dtype="int4").path / "table.safetensors")
    assert {name: (tensor.dtype.name, tensor.shape) for name, tensor in tensors.items()} == {
        "codebook": ("float16", (256, 2)),
        "rows": ("uint8", (LAYOUT.num_rows, 3)),
    }
    values = tensors["codebook"][tensors["rows"]].reshape(LAYOUT.num_rows, 6)[:, :5]
    assert np.abs(values - table()).max() < 0.3
    assert np.square(values - table()).mean() < 0.01 * np.square(table()).mean()


@pytest.mark.parametrize("scale_dtype", [np.float32, np.float16])
def test_an_int8_table_of_format_version_1_is_read(fresh: Fresh, scale_dtype: Any) -> None:
    """Integers and a scale per row, as they were written before there were codebooks, and by other software."""
    path = fresh().path
    scale = (np.abs(table()).max(axis=1) / 127).astype(scale_dtype)
    rows = np.rint(table() / scale.astype(np.float32)[:, None]).clip(-127, 127).astype(np.int8)
    save_file({"scale": scale, "rows": rows}, path / "table.safetensors", metadata={"by": "me"})
    reseal(path, table_dtype="int8")
    expected = rows.astype(np.float32) * scale.astype(np.float32)[:, None]
    bundle = Bundle.open(path)
    assert bundle.manifest.format_version == 1
    assert np.array_equal(bundle.table.gather(np.arange(LAYOUT.num_rows)), expected)


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_found(fresh: Fresh, name: str) -> None:
    path = fresh().path
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: expected sha256 \w+; found \w+; the bundle is damaged"):
        Bundle.open(path)


def test_a_changed_digit_of_the_manifest_is_found(fresh: Fresh) -> None:
    path = fresh().path
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"negative_rate": 0.25', '"negative_rate": 0.35'))
    with pytest.raises(InputError, match=r"manifest.json: expected checksum \w+; found \w+"):
        Bundle.open(path)


@pytest.mark.parametrize("name", ["manifest.json", *FILES])
@pytest.mark.parametrize("verify", [True, False])
def test_a_missing_file_is_named(fresh: Fresh, name: str, verify: bool) -> None:
    path = fresh().path
    (path / name).unlink()
    with pytest.raises(InputError, match=rf"found no (file|{name})"):
        Bundle.open(path, verify=verify)


@pytest.mark.parametrize("name", FILES)
def test_a_cut_off_file_is_found_without_hashing(fresh: Fresh, name: str) -> None:
    path = fresh().path
    (path / name).write_bytes((path / name).read_bytes()[:-1])
    with pytest.raises(InputError, match=rf"{name}: expected \d+ bytes; found \d+"):
        Bundle.open(path, verify=False)


def test_no_bundle_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found no such directory"):
        Bundle.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"found no manifest.json"):
        Bundle.open(tmp_path)


def test_a_newer_version_asks_for_an_upgrade(fresh: Fresh) -> None:
    path = fresh().path
    edit_manifest(path, format_version=5, something_new={})
    with pytest.raises(InputError, match=r"expected format_version 1 to 4; found 5; upgrade muxrec"):
        Bundle.open(path)


@pytest.mark.parametrize("version", [0, "1", None, True, 1.0])
def test_a_version_that_is_none(fresh: Fresh, version: object) -> None:
    path = fresh().path
    edit_manifest(path, format_version=version)
    with pytest.raises(InputError, match="expected format_version 1 to 4"):
        Bundle.open(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\udcff", '{"format_version": 1}'])
def test_a_manifest_that_is_none(fresh: Fresh, text: str) -> None:
    path = fresh().path
    (path / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"manifest\.json"):
        Bundle.open(path)


def test_another_registry(fresh: Fresh) -> None:
    path = fresh().path
    other = FeatureRegistry.of(features={"user": "categorical", "item": "categorical"})
    document = json.loads((path / "manifest.json").read_text())
    with pytest.raises(InputError, match="expected a registry of fingerprint"):
        manifest_bytes(_without_checksum(document) | {"registry": other})
    changes = {"registry": other, "registry_fingerprint": other.fingerprint()}
    with pytest.raises(InputError, match=r"layout.views: expected probes of user, item; found \d of 'genres'"):
        manifest_bytes(_without_checksum(document) | changes)


@pytest.mark.parametrize(
    ("field", "value"), [("seed", 4), ("keys", {"user": "uid"}), ("pooling", {"genres": "sum", "words": "sum"})]
)
def test_a_layout_of_another_registry(fresh: Fresh, field: str, value: object) -> None:
    document = json.loads((fresh().path / "manifest.json").read_text())
    document["layout"][field] = value
    with pytest.raises(InputError, match=rf"layout\.{field}: expected .* as in the registry"):
        manifest_bytes(_without_checksum(document))


def _without_checksum(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != "checksum"}


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (dense_graph(width=LAYOUT.embedded_width + 1), "expected float tensors"),
        (dense_graph(num_dense=3), "expected float tensors"),
        (dense_graph(num_dense=0), "expected float tensors"),
        (dense_graph(output="probability"), "expected float tensors"),
        (dense_graph(batch=1), "expected float tensors"),
        (dense_graph()[:-40], "expected a graph that onnxruntime runs"),
        (b"", "expected a graph that onnxruntime runs"),
    ],
)
def test_a_graph_of_another_shape(fresh: Fresh, graph: bytes, message: str) -> None:
    path = fresh().path
    (path / "dense.onnx").write_bytes(graph)
    reseal(path)
    with pytest.raises(InputError, match=message):
        Bundle.open(path, verify=False)


def test_a_graph_cannot_read_other_files(fresh: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime would take weights from any file below or next to the working directory."""
    model = onnx.load_from_string(dense_graph())
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    raw_data = weights.raw_data
    (tmp_path / "weights.bin").write_bytes(raw_data)
    monkeypatch.chdir(tmp_path)
    for location in ("weights.bin", "../" + tmp_path.name + "/weights.bin", str(tmp_path / "weights.bin")):
        weights.raw_data = raw_data
        onnx.external_data_helper.set_external_data(weights, location)
        weights.ClearField("raw_data")
        with pytest.raises(InputError, match="expected a graph that onnxruntime runs"):
            fresh(dense_onnx=model.SerializeToString())


@pytest.mark.parametrize(
    ("golden", "message"),
    [
        (raw_frame(3), "found no column 'probability'"),
        (raw_frame(3).drop("item").with_columns(probability=0.5), "found no column 'item'"),
        (raw_frame(0).with_columns(probability=pl.lit(0.5)), "found no row"),
        (raw_frame(3).with_columns(probability=1.5), r"expected probabilities; found Float64 from 1.5 to 1.5"),
        (raw_frame(3).with_columns(probability=float("nan")), "expected probabilities"),
        (raw_frame(3).with_columns(probability=pl.lit(None, dtype=pl.Float64)), "expected probabilities"),
    ],
)
def test_golden_rows_that_are_none(tmp_path: Path, golden: pl.DataFrame, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_bundle(tmp_path / "bundle", golden=golden)
    assert list(tmp_path.iterdir()) == []


def test_golden_that_is_no_parquet(fresh: Fresh) -> None:
    path = fresh().path
    (path / "golden.parquet").write_bytes(b"PAR1 nothing PAR1")
    reseal(path)
    with pytest.raises(InputError, match=r"golden.parquet: expected parquet"):
        Bundle.open(path)


# --- the writer -------------------------------------------------------------------------------------------------------


def test_an_existing_directory_stays_unless_overwritten(fresh: Fresh, tmp_path: Path) -> None:
    first = fresh()
    with pytest.raises(InputError, match="exists; choose another directory, or overwrite it"):
        fresh(run_id="second")
    assert Bundle.open(first.path).manifest.run_id == "abc"
    fresh(run_id="second", overwrite=True)
    assert Bundle.open(first.path).manifest.run_id == "second"
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]


def test_a_mapped_bundle_survives_being_overwritten(fresh: Fresh) -> None:
    first = fresh()
    fresh(table=np.ones_like(table()), overwrite=True)
    assert np.array_equal(first.table.gather(np.arange(LAYOUT.num_rows)), table())


def test_only_a_bundle_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    for name, found in [("precious.txt", "no manifest.json"), ("manifest.json", "no table.safetensors")]:
        (tmp_path / "bundle" / name).write_text("x")
        with pytest.raises(InputError, match=f"expected a bundle to overwrite; found {found}"):
            make_bundle(tmp_path / "bundle", overwrite=True)
    assert (tmp_path / "bundle" / "precious.txt").exists()


def test_a_failed_write_leaves_nothing_and_keeps_the_old(fresh: Fresh, tmp_path: Path) -> None:
    first = fresh()
    golden = {"golden": first.golden}
    for changes, message in [
        ({"dense_onnx": dense_graph(num_dense=5)}, "expected float tensors"),
        ({"profile": {"rate": float("nan")}}, "profile.json: expected a value that JSON can hold"),
        ({"profile": {"rate": object()}}, "profile.json: expected a value that JSON can hold"),
        ({"table": table()[1:]}, r"expected a table \[211, 5\]; found \[210, 5\]"),
        ({"table": np.full_like(table(), np.nan)}, "table rows must be finite numbers"),
        ({"trained_rows": np.zeros(7, np.uint8)}, "trained_rows: expected 211 flags or their bitmap"),
    ]:
        with pytest.raises(InputError, match=message):
            fresh(overwrite=True, **golden, **changes)
        assert [file.name for file in tmp_path.iterdir()] == ["bundle"]
        assert Bundle.open(first.path).manifest == first.manifest


def test_a_swap_that_fails_puts_the_old_one_back(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fresh()
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(InputError, match="No space left on device; free space"):
        fresh(run_id="second", overwrite=True)
    monkeypatch.undo()
    assert Bundle.open(first.path).manifest.run_id == "abc"
    assert [file.name for file in first.path.parent.iterdir()] == ["bundle"]


def test_metrics_that_json_cannot_hold_are_left_out(fresh: Fresh) -> None:
    assert fresh(metrics={"test": {"auc": float("nan"), "logloss": 0.5}}).manifest.metrics == {"test": {"logloss": 0.5}}


def test_the_manifest_refuses_unknown_keys(fresh: Fresh) -> None:
    document = fresh().manifest.model_dump(mode="json")
    with pytest.raises(ValueError, match="extra"):
        Manifest.model_validate(document | {"more": 1})


def test_prior_correction_is_the_formula() -> None:
    p, r = np.array([0.0, 0.2, 0.5, 1.0]), 0.1
    assert np.allclose(PriorCorrection(negative_rate=r).apply(p), p * r / (1 - p + p * r))
    assert np.array_equal(PriorCorrection(negative_rate=1.0).apply(p), p)
    for rate in (0, -1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="negative_rate"):
            PriorCorrection(negative_rate=rate)
