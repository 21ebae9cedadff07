"""A small bundle whose model a plain loop can compute: logit = w . embedded + v . dense + b."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import polars as pl
import pytest
from onnx import TensorProto, helper, numpy_helper

import serving.batch.job
from features.addressing import Vocabulary
from features.encode import encode, encode_frame
from features.files import sha256_of
from features.hashing import MISSING_TOKEN
from features.layout import TableLayout
from features.registry import FeatureRegistry
from serving.batch.job import ScoringReport, score_files
from serving.bundle.bundle import Bundle, write_bundle
from serving.bundle.manifest import PriorCorrection, manifest_bytes
from serving.bundle.table import quantized_rows
from tests.rows import row
from tests.serving.server.process import Server

REGISTRY = FeatureRegistry.of(
    label="click",
    seed=3,
    features={
        "user": "categorical",
        "price": {"type": "numeric", "transform": "log1p"},
        "genres": {"type": "categorical_list", "separator": "|", "pooling": "mean"},
        "item": {"type": "categorical", "probes": 1},
        "words": {"type": "categorical_list", "pooling": "sum"},
        "age": {"type": "numeric", "transform": "none"},
    },
)
# Asymmetric on purpose: views of different features, probes of different numbers, lists between scalars.
LAYOUT = TableLayout.of(
    REGISTRY,
    num_rows=211,
    width=5,
    probes=2,
    views={"main": ("user", "genres", "item", "words"), "fs1": ("genres", "user"), "fs2": ("item",)},
)
DENSE_WEIGHTS = np.array([0.3, -0.02], dtype=np.float32)
BIAS = -1.25
RATE = 0.25
ROUNDING = 1e-6
"""Scores of a row may differ by so much with its place in a batch, or the processor (`Bundle.golden_tolerance`)."""

FILES = ["table.safetensors", "dense.onnx", "golden.parquet", "profile.json"]
Run = Callable[..., ScoringReport]
MARKS = ["_SUCCESS", "_manifest.json"]


def embedded_weights() -> npt.NDArray[np.float32]:
    """One weight per column of the embedding [S * w]; all different."""
    return np.linspace(-1.0, 1.5, LAYOUT.embedded_width, dtype=np.float32)


def table(layout: TableLayout = LAYOUT) -> npt.NDArray[np.float32]:
    """Table [M, w]."""
    return np.random.default_rng(5).normal(0, 0.3, (layout.num_rows, layout.width)).astype(np.float32)


def dense_graph(
    *, width: int = LAYOUT.embedded_width, num_dense: int = 2, output: str = "logit", batch: str | int = "B"
) -> bytes:
    """ONNX bytes of logit = embedded . w + dense . v + b."""
    weights = np.resize(embedded_weights(), width)[:, None]
    constants = {"w": weights, "b": np.array([BIAS], dtype=np.float32), "axes": np.array([1])}
    inputs = [helper.make_tensor_value_info("embedded", TensorProto.FLOAT, [batch, width])]
    nodes = [helper.make_node("MatMul", ["embedded", "w"], ["e"])]
    last = "e"
    if num_dense:
        constants["v"] = np.resize(DENSE_WEIGHTS, num_dense)[:, None]
        inputs.append(helper.make_tensor_value_info("dense", TensorProto.FLOAT, [batch, num_dense]))
        nodes += [helper.make_node("MatMul", ["dense", "v"], ["d"]), helper.make_node("Add", ["e", "d"], ["s"])]
        last = "s"
    nodes += [helper.make_node("Add", [last, "b"], ["t"]), helper.make_node("Squeeze", ["t", "axes"], [output])]
    graph = helper.make_graph(
        nodes,
        "dense",
        inputs,
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def raw_frame(num_rows: int = 60, seed: int = 0) -> pl.DataFrame:
    """Raw rows with every awkward list: empty, null, and with nulls inside."""
    generator = np.random.default_rng(seed)
    genres = ["a|b", "", None, "c", "a||b", "x|y|z|a|b|c|d|e|f|g"]
    words: list[list[str | None] | None] = [["w1", "w2", "w1"], [], None, [None, "w3"], ["w4"], ["ü", "名", ""]]
    return pl.DataFrame(
        {
            "row": np.arange(num_rows),
            "user": [None if k % 9 == 4 else int(k) for k in generator.integers(0, 40, num_rows)],
            "price": [None if k % 7 == 0 else float(k) / 8 for k in generator.integers(0, 90, num_rows)],
            "genres": [genres[k] for k in generator.integers(0, len(genres), num_rows)],
            "item": [["i1", "", None, "ß", "i4"][k] for k in generator.integers(0, 5, num_rows)],
            "words": pl.Series(
                [words[k] for k in generator.integers(0, len(words), num_rows)], dtype=pl.List(pl.String)
            ),
            "age": pl.Series(generator.integers(0, 99, num_rows), dtype=pl.Int16),
        }
    )


def of_kind(kind: Any) -> dict[str, Any]:
    """Settings of a bundle with another kind of table, whose training data were the first rows of `raw_frame` alone."""
    tokens = encode(raw_frame(12), REGISTRY).tokens
    vocabulary = {name: np.unique(found[found != np.uint64(MISSING_TOKEN)]) for name, found in tokens.items()}
    counts = {name: len(ordered) for name, ordered in vocabulary.items()}
    views = {view: tuple(names) for view, names in LAYOUT.views.items()}
    layout = TableLayout.of(REGISTRY, num_rows=53, width=5, probes=1, views=views, kind=kind, num_values=counts)
    graph = dense_graph(width=layout.embedded_width)
    return {"layout": layout, "vocabulary": vocabulary, "table": table(layout), "dense_onnx": graph}


def reference(
    raw: pl.DataFrame,
    rows: npt.NDArray[np.float32],
    rate: float | None = RATE,
    layout: TableLayout = LAYOUT,
    vocabulary: Vocabulary | None = None,
) -> list[float]:
    """Probabilities by plain loops over examples, slots and values; only the encoding is shared with the scorer."""
    weights = np.resize(embedded_weights(), layout.embedded_width).astype(np.float64)
    answers = []
    for example in encode_frame(raw, REGISTRY).rows(named=True):
        logit = BIAS + float(DENSE_WEIGHTS[0]) * example["price"] + float(DENSE_WEIGHTS[1]) * example["age"]
        for position, slot in enumerate(layout.slots):
            value = example[slot.feature]
            tokens = value if isinstance(value, list) else [value]
            vectors = [rows[row(layout, slot.view, slot.feature, slot.probe, token, vocabulary)] for token in tokens]
            divisor = max(1, len(vectors)) if layout.pooling.get(slot.feature) == "mean" else 1
            for column in range(layout.width):
                pooled = sum(float(vector[column]) for vector in vectors) / divisor
                logit += float(weights[position * layout.width + column]) * pooled
        p = 1 / (1 + math.exp(-logit))
        answers.append(p if rate is None else p * rate / (1 - p + p * rate))
    return answers


def make_bundle(out: Path, **changes: Any) -> Bundle:
    """Write the bundle of this module, with some settings changed."""
    if "golden" not in changes:
        golden = raw_frame(20, seed=9).drop("row")
        rows = quantized_rows(
            changes.get("table", table()), changes.get("table_dtype", "fp32"), changes.get("row_widths")
        )
        layout, vocabulary = changes.get("layout", LAYOUT), changes.get("vocabulary")
        answers = reference(golden, rows, layout=layout, vocabulary=vocabulary)
        changes["golden"] = golden.with_columns(probability=pl.Series(answers))
    settings: Mapping[str, Any] = {
        "model": "Linear",
        "num_parameters": 1234,
        "registry": REGISTRY,
        "layout": LAYOUT,
        "table": table(),
        "dense_onnx": dense_graph(),
        "profile": {"user": {"missing": 0.1}},
        "prior_correction": PriorCorrection(negative_rate=RATE),
        "metrics": {"test": {"auc": 0.75}},
        "run_id": "abc",
        "created_at": "2026-01-02T03:04:05+00:00",
        **changes,
    }
    return write_bundle(out, **settings)


def reseal(path: Path, **changes: Any) -> None:
    """Write a manifest that agrees with the (changed) files, so that only the deeper checks are left."""
    document = json.loads((path / "manifest.json").read_text()) | changes
    document.pop("checksum")
    document["files"] = {
        name: {"sha256": sha256_of(path / name), "bytes": (path / name).stat().st_size} for name in document["files"]
    }
    (path / "manifest.json").write_bytes(manifest_bytes(document))


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The fp32 bundle; read only."""
    return make_bundle(tmp_path_factory.mktemp("bundle") / "fp32")


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[..., Bundle]:
    """Write a bundle into the test's own directory."""
    return lambda **changes: make_bundle(tmp_path / "bundle", **changes)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Three files of 100, 40 and 7 rows, whose names sort in this order."""
    folder = tmp_path / "in"
    folder.mkdir()
    for seed, (name, num_rows) in enumerate({"a": 100, "b": 40, "c d!": 7}.items()):
        raw_frame(num_rows, seed=seed).write_parquet(folder / f"{name}.parquet", row_group_size=13)
    return folder


def name_of(file: Path, stem: str | None = None) -> str:
    """Name of the part of an input file."""
    return f"part-{stem or file.stem}-{hashlib.sha256(str(file).encode()).hexdigest()[:8]}.parquet"


@pytest.fixture
def names(inputs: Path) -> list[str]:
    """Names of the parts of the three files."""
    return [name_of(inputs / "a.parquet"), name_of(inputs / "b.parquet"), name_of(inputs / "c d!.parquet", "c_d_")]


@pytest.fixture
def run(bundle: Bundle, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Score the inputs into OUT, 16 rows at a time."""
    monkeypatch.setattr(serving.batch.job, "BATCH_ROWS", 16)
    monkeypatch.setattr(serving.batch.job, "ROW_GROUP_ROWS", 32)

    def score(**changes: Any) -> ScoringReport:
        settings = {"bundle": bundle, "inputs": [inputs], "out": tmp_path / "out", "keep": ["row"], "progress": False}
        return score_files(**(settings | changes))

    return score


def visible(out: Path) -> list[str]:
    return sorted(file.name for file in out.iterdir() if not file.name.startswith("."))


def content(out: Path) -> dict[str, bytes]:
    """Every file below a directory, hidden ones too, by its path."""
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """Three models whose scores differ."""
    folder = tmp_path_factory.mktemp("versions")
    return [make_bundle(folder / f"v{k}", table=np.float32(k + 1) * table()) for k in range(3)]


@pytest.fixture
def serve() -> Iterator[Any]:
    """Start servers that end with the test."""
    servers: list[Server] = []

    def start(*arguments: object, **settings: Any) -> Server:
        servers.append(Server(*(arguments if "--port" in arguments else (*arguments, "--port", 0)), **settings))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
