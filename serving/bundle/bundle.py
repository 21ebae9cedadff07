"""Bundle: a trained model as a directory that is scored without torch. The format, its writer and its verifier.

    manifest.json       the model: registry, table layout, prior correction, metrics, sha256 of the other files
    table.safetensors   the embedding rows (`serving.bundle.table`)
    dense.onnx          embedded [B, S * w] and, where there are float columns, dense [B, N] -> logit [B]
    golden.parquet      made-up raw rows and the probabilities that the trainer gave them
    profile.json        distributions of the training data
    vocabulary.safetensors  only for a collisionless table: the values that have rows (`serving.bundle.vocabulary`)
    target_statistics.safetensors  only if trained with them: float columns by value

B examples, M table rows, w row width, S slots, N float columns.
"""

import dataclasses
import io
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import polars as pl

from features.addressing import Vocabulary
from features.errors import InputError
from features.files import check_readable, flush, replace_directory, sha256_of, temporary_directory_beside, write_bytes
from features.layout import TableLayout
from features.registry import FeatureRegistry
from serving.bundle.manifest import (
    DENSE,
    GOLDEN,
    MANIFEST,
    PROFILE,
    REMEDY,
    TABLE,
    TARGET_STATISTICS,
    VOCABULARY,
    FileEntry,
    Manifest,
    PriorCorrection,
    files_of,
    installed_version,
    manifest_bytes,
    read_json,
    read_manifest,
    to_json,
)
from serving.bundle.quantize import TableDtype
from serving.bundle.row_sets import Bitmap, pack_bits
from serving.bundle.table import Coder, StoredTable, write_table
from serving.bundle.table_plan import CODE_BITS
from serving.bundle.target_statistics import TargetStatistics, read_target_statistics, write_target_statistics
from serving.bundle.tensors import fault
from serving.bundle.vocabulary import read_vocabulary, write_vocabulary

PROBABILITY = "probability"
MAX_GOLDEN_ROWS = 10_000
MAX_ROUNDING = 1e-4  # the most that a bundle may claim


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """A checked bundle. The table stays on the disk; everything else is in memory.

    `write_bundle` makes one, `Bundle.open` reads it, `serving.scorer.Scorer` scores with it.
    """

    path: Path
    manifest: Manifest
    table: StoredTable = field(repr=False)
    dense_onnx: bytes = field(repr=False)
    golden: pl.DataFrame = field(repr=False)
    """Raw columns and `probability`."""
    profile: dict[str, Any] = field(repr=False)
    vocabulary: Vocabulary | None = field(repr=False, default=None)
    """The values that have rows; only for a collisionless table."""
    target_statistics: TargetStatistics | None = field(repr=False, default=None)
    """Float columns by value; only if the model was trained with them."""

    @property
    def registry(self) -> FeatureRegistry:
        """Features of a raw example."""
        return self.manifest.registry

    @property
    def layout(self) -> TableLayout:
        """Slots of the table that an example reads, in the order of the network's input."""
        return self.manifest.layout

    @property
    def model_id(self) -> str:
        """`Manifest.model_id`."""
        return self.manifest.model_id

    @property
    def golden_tolerance(self) -> float:
        """Largest difference of two probabilities that rounding explains, on any processor."""
        # Rounding of float32 where the model was trained; other processors round differently, but not much worse.
        rounding = self.profile.get("float32_rounding")
        rounding = min(rounding, MAX_ROUNDING) if isinstance(rounding, float) and rounding >= 0 else 0.0
        return max(1e-6, 8 * rounding)

    @property
    def is_pruned(self) -> bool:
        """True if trained rows were removed."""
        rows_kept = (self.manifest.compression or {}).get("rows_kept")
        return isinstance(rows_kept, int) and rows_kept < self.layout.num_rows

    @cached_property
    def num_bytes(self) -> int:
        """Size of the bundle's files on the disk."""
        return sum(entry.bytes for entry in self.manifest.files.values())

    @staticmethod
    def open(path: str | Path, *, verify: bool = True) -> "Bundle":
        """Read and check a bundle directory.

        `verify=False` skips the hashing, which reads the whole table; versions, sizes, shapes and types are still
        checked. Raises `InputError` with what was expected, what was found and the remedy.
        """
        path = Path(path)
        manifest = read_manifest(path)
        for name, entry in manifest.files.items():
            _check_file(path / name, entry, verify=verify)
        dense_onnx = (path / DENSE).read_bytes()
        _check_graph(path / DENSE, dense_onnx, manifest)
        has_vocabulary, has_statistics = VOCABULARY in manifest.files, TARGET_STATISTICS in manifest.files
        names = [feature.name for feature in manifest.registry.token_features]
        table = StoredTable(path / TABLE, manifest.layout, manifest.table_dtype)
        if manifest.num_stored not in (None, table.num_stored):
            raise fault(path / TABLE, f"{manifest.num_stored} stored rows", str(table.num_stored))
        return Bundle(
            path=path,
            manifest=manifest,
            table=table,
            dense_onnx=dense_onnx,
            golden=_read_golden(path / GOLDEN, manifest.registry),
            profile=read_json(path / PROFILE),
            vocabulary=read_vocabulary(path / VOCABULARY, manifest.layout.num_values) if has_vocabulary else None,
            target_statistics=read_target_statistics(path / TARGET_STATISTICS, names) if has_statistics else None,
        )


def write_bundle(
    out: str | Path,
    *,
    model: str,
    num_parameters: int,
    registry: FeatureRegistry,
    layout: TableLayout,
    table: npt.NDArray[Any],
    dense_onnx: bytes,
    golden: pl.DataFrame,
    profile: Mapping[str, Any],
    table_dtype: TableDtype = "fp32",
    row_widths: npt.NDArray[Any] | None = None,
    coder: Coder | None = None,
    trained_rows: npt.NDArray[Any] | None = None,
    vocabulary: Vocabulary | None = None,
    target_statistics: TargetStatistics | None = None,
    prior_correction: PriorCorrection | None = None,
    compression: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Mapping[str, float]] | None = None,
    run_id: str | None = None,
    created_at: str | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle that appears whole or not at all, and open it with every check.

    `table` is [M, w]. `row_widths` [M] is the number of columns stored per row; None: all. `trained_rows` is flags [M]
    or their bitmap [ceil(M / 8)]. `golden` has the raw columns of the registry and `probability`. `vocabulary` is
    needed for a collisionless table alone. `target_statistics` are those of the registry's token features. `coder` is
    what `learn_coder` gives for the table; None: learned here. `compression` describes in JSON how the table was made
    smaller. Rows of zeros and metrics that are not finite are left out. The manifest has the lowest format version that
    allows for all this.

    Raises `InputError` when `out` exists (unless `overwrite` and it is a bundle), when a part does not fit the
    layout, and when the disk is full.
    """
    out = Path(out).absolute()  # "." has no name, and the temporary directory is named after it
    _check_target(out, overwrite=overwrite)
    if table.shape != (layout.num_rows, layout.width):
        raise InputError(f"expected a table [{layout.num_rows}, {layout.width}]", found=str(list(table.shape)))
    if layout.addressing.has_vocabulary and (vocabulary is None or set(vocabulary) != set(layout.num_values)):
        found = ", ".join(vocabulary or {}) or "none"
        raise InputError(f"vocabulary: expected tokens of {', '.join(layout.num_values)}", found=found)
    with temporary_directory_beside(out) as temporary:
        write_table(temporary / TABLE, table, table_dtype, _as_bitmap(trained_rows, layout.num_rows), row_widths, coder)
        is_compact = row_widths is not None or table_dtype in CODE_BITS or compression is not None
        buffer = io.BytesIO()
        golden.write_parquet(buffer)
        parts = {DENSE: dense_onnx, GOLDEN: buffer.getvalue(), PROFILE: to_json(profile, PROFILE)}
        for name, part in parts.items():
            write_bytes(temporary / name, part)
        if layout.addressing.has_vocabulary and vocabulary is not None:
            write_vocabulary(temporary / VOCABULARY, {name: vocabulary[name] for name in layout.num_values})
        if target_statistics is not None:
            write_target_statistics(temporary / TARGET_STATISTICS, target_statistics)
        paths = [temporary / name for name in files_of(layout, has_statistics=target_statistics is not None)]
        version = 4 if target_statistics is not None else 3 if registry.has_later_settings else 2 if is_compact else 1
        settings: dict[str, Any] = {
            "format_version": version,
            "muxrec_version": installed_version(),
            "created_at": created_at or datetime.now(UTC).isoformat(timespec="seconds"),
            "model": model,
            "run_id": run_id,
            "num_parameters": num_parameters,
            "registry": registry,
            "registry_fingerprint": registry.fingerprint(),
            "layout": layout,
            "table_dtype": table_dtype,
            "prior_correction": prior_correction,
            "metrics": {
                split: {name: float(value) for name, value in values.items() if math.isfinite(value)}
                for split, values in (metrics or {}).items()
            },
            "files": {one.name: FileEntry(sha256=sha256_of(one), bytes=one.stat().st_size) for one in paths},
        }
        if is_compact:
            num_stored = StoredTable(temporary / TABLE, layout, table_dtype).num_stored
            settings |= {"num_stored": num_stored, "compression": compression}
        write_bytes(temporary / MANIFEST, manifest_bytes(settings))
        bundle = Bundle.open(temporary)  # checked by its reader before the directory becomes visible
        flush(temporary)
        replace_directory(temporary, out)
    return dataclasses.replace(bundle, path=out)


def open_session(dense_onnx: bytes, *, num_threads: int | None = None) -> onnxruntime.InferenceSession:
    """An onnxruntime session on the CPU; `num_threads` None: one per core. Raises `InputError` for a bad graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or 0
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # The arena keeps the memory of the largest batch so far, and idle threads spin on cores that others need. On a
    # 400-400-400-1 network, turning both off costs nothing measurable at 1, 200 and 16,384 rows.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A graph may name other files as its weights. No file can be below /dev/null, so only hashed bytes are run.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    options.log_severity_level = 3  # errors reach the caller as exceptions
    try:
        return onnxruntime.InferenceSession(dense_onnx, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base class
        found = " ".join(str(error).split())[:160]
        raise InputError(f"{DENSE}: expected a graph that onnxruntime runs", found=found, remedy=REMEDY) from None


def _check_file(path: Path, entry: FileEntry, *, verify: bool) -> None:
    if not path.is_file():
        raise InputError(f"{path}: expected a file of {entry.bytes} bytes", found="no file", remedy=REMEDY)
    if path.stat().st_size != entry.bytes:
        raise InputError(f"{path}: expected {entry.bytes} bytes", found=f"{path.stat().st_size}", remedy=REMEDY)
    if verify and (found := sha256_of(path)) != entry.sha256:
        raise InputError(f"{path}: expected sha256 {entry.sha256}", found=found, remedy=REMEDY)


def _check_graph(path: Path, dense_onnx: bytes, manifest: Manifest) -> None:
    """Raise `InputError` unless the graph maps embedded (and dense) to logit, for any number of examples."""
    session = open_session(dense_onnx, num_threads=1)
    wanted = {"embedded": manifest.layout.embedded_width}
    if manifest.num_dense:
        wanted["dense"] = manifest.num_dense
    expected = {name: ["B", width] for name, width in wanted.items()} | {"logit": ["B"]}
    arguments = [*session.get_inputs(), *session.get_outputs()]
    found = {argument.name: ["B" if type(n) is not int else n for n in argument.shape] for argument in arguments}
    others = [argument.type for argument in arguments if argument.type != "tensor(float)"]
    if found != expected or others or [output.name for output in session.get_outputs()] != ["logit"]:
        described = f"{found}" + (f" of type {others[0]}" if others else "")
        raise InputError(f"{path}: expected float tensors {expected}", found=described, remedy="export it again")


def _read_golden(path: Path, registry: FeatureRegistry) -> pl.DataFrame:
    try:
        rows = pl.scan_parquet(path, glob=False).select(pl.len()).collect().item()
        if rows > MAX_GOLDEN_ROWS:  # a small file may unpack to any size
            raise InputError(f"{path}: expected at most {MAX_GOLDEN_ROWS} rows", found=str(rows), remedy=REMEDY)
        golden = pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, OSError, pl.exceptions.PanicException) as error:
        check_readable(path)
        raise InputError(f"{path}: expected parquet", found=" ".join(str(error).split())[:160], remedy=REMEDY) from None
    absent = [name for name in (*(feature.name for feature in registry.features), PROBABILITY) if name not in golden]
    if absent or golden.is_empty():
        found = f"no column {absent[0]!r}" if absent else "no row"
        raise InputError(f"{path}: expected raw rows and their {PROBABILITY}", found=found, remedy=REMEDY)
    column = golden[PROBABILITY]
    if not column.dtype.is_float() or not column.is_between(0, 1).fill_null(False).all():
        found = f"{column.dtype} from {column.min()} to {column.max()}"
        raise InputError(f"{path}: expected probabilities", found=found, remedy=REMEDY)
    return golden


def _as_bitmap(trained_rows: npt.NDArray[Any] | None, num_rows: int) -> Bitmap | None:
    if trained_rows is None:
        return None
    bitmap = pack_bits(trained_rows) if trained_rows.dtype == np.bool_ else trained_rows
    if bitmap.dtype != np.uint8 or bitmap.shape != (-(-num_rows // 8),):
        found = f"{trained_rows.dtype} {list(trained_rows.shape)}"
        raise InputError(f"trained_rows: expected {num_rows} flags or their bitmap", found=found)
    return bitmap


def _check_target(out: Path, *, overwrite: bool) -> None:
    if not out.exists():
        return
    if not overwrite:
        raise InputError(f"{out} exists", remedy="choose another directory, or overwrite it")
    for name in (MANIFEST, TABLE):  # the old directory is deleted, so it must be a bundle
        if not (out / name).is_file():
            remedy = "choose another name, or delete it yourself"
            raise InputError(f"{out}: expected a bundle to overwrite", found=f"no {name}", remedy=remedy)
