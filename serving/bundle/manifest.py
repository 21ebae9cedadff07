"""manifest.json: the description of a bundle, and the checks that it is consistent.

B examples. The other files are listed with their sha256; the manifest ends with its own checksum.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from features.errors import InputError
from features.files import check_readable
from features.layout import TableLayout
from features.registry import FeatureRegistry, describe_validation_error
from serving.bundle.quantize import TableDtype
from serving.bundle.target_statistics import NUM_COLUMNS

FORMAT_VERSION = 4
"""The newest; a bundle is written in the lowest version that allows for what it uses, so that older readers open it."""
MANIFEST = "manifest.json"
TABLE = "table.safetensors"
DENSE = "dense.onnx"
GOLDEN = "golden.parquet"
PROFILE = "profile.json"
VOCABULARY = "vocabulary.safetensors"
TARGET_STATISTICS = "target_statistics.safetensors"
MAX_JSON_BYTES = 2**26
REMEDY = "the bundle is damaged or was edited: copy it again, or export it again"


class Strict(BaseModel):
    """A part of a bundle's JSON; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class PriorCorrection(Strict):
    """Undo the down-sampling of negatives: p -> p r / (1 - p + p r) (He et al. 2014, section 6.3, with w = r).

    >>> PriorCorrection(negative_rate=0.1).apply(np.array([0.5])).round(4).tolist()
    [0.0909]
    """

    negative_rate: float = Field(gt=0, le=1)
    """r: share of the negative examples that training kept."""

    def apply(self, probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Probabilities [B] at the original share of negatives."""
        odds = probabilities * self.negative_rate
        return odds / (1.0 - probabilities + odds)


class FileEntry(Strict):
    """One file of a bundle."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Manifest(Strict):
    """The content of manifest.json, checked against the registry and the layout in it."""

    format_version: int = Field(default=1, ge=1, le=FORMAT_VERSION)
    muxrec_version: str
    """Version of muxrec that wrote the bundle."""
    created_at: str
    """UTC, ISO 8601."""
    model: str = Field(min_length=1)
    """Name of the architecture, such as `FinalMLP`."""
    run_id: str | None = None
    """Tracking run that trained it."""
    num_parameters: int = Field(ge=0)
    registry: FeatureRegistry
    registry_fingerprint: str
    layout: TableLayout
    table_dtype: TableDtype
    prior_correction: PriorCorrection | None = None
    metrics: dict[str, dict[str, float]]
    """Split to metric to value."""
    files: dict[str, FileEntry]
    num_stored: int | None = Field(default=None, ge=0)
    """Rows of the table with at least one stored column; since version 2."""
    compression: dict[str, JsonValue] | None = None
    """Record of the compression of the table and its cost; None if there was none; since version 2."""

    @property
    def table_bytes(self) -> int:
        """Size of the embedding files: the table, and the vocabulary of a collisionless one."""
        return sum(self.files[name].bytes for name in (TABLE, VOCABULARY) if name in self.files)

    @property
    def num_dense(self) -> int:
        """Float columns of the network: those of the registry, then those of the target statistics if there are any."""
        registry = self.registry
        added = NUM_COLUMNS * len(registry.token_features) if TARGET_STATISTICS in self.files else 0
        return len(registry.dense_features) + added

    @property
    def model_id(self) -> str:
        """Lineage of a score: 16 hexadecimal digits that change with what it depends on, and nothing else."""
        names = (TABLE, DENSE, GOLDEN, VOCABULARY, TARGET_STATISTICS)
        parts = [self.files[name].sha256 for name in names if name in self.files]
        parts += [self.registry_fingerprint, self.layout.model_dump_json(), self.table_dtype]
        parts += [self.prior_correction.model_dump_json() if self.prior_correction else ""]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out later keys where they are unused: readers of an older format refuse unknown keys."""
        unused = [name for name in ("num_stored", "compression") if getattr(self, name) is None]
        return {name: value for name, value in write(self).items() if name not in unused}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.format_version == 1 and (self.num_stored, self.compression) != (None, None):
            raise InputError("expected no num_stored and no compression in format_version 1", remedy=REMEDY)
        known = files_of(self.layout, has_statistics=self.format_version >= 4 and TARGET_STATISTICS in self.files)
        if set(self.files) != set(known):
            expected, found = f"expected files {', '.join(known)}", ", ".join(self.files) or "none"
            raise InputError(expected, found=found, remedy=REMEDY)
        if self.registry.fingerprint() != self.registry_fingerprint:
            expected = f"expected a registry of fingerprint {self.registry_fingerprint}"
            raise InputError(expected, found=self.registry.fingerprint(), remedy=REMEDY)
        _check_layout(self.layout, self.registry)
        return self


def files_of(layout: TableLayout, *, has_statistics: bool = False) -> tuple[str, ...]:
    """Names of a bundle's files other than the manifest; only a collisionless table has a vocabulary."""
    optional = {VOCABULARY: layout.addressing.has_vocabulary, TARGET_STATISTICS: has_statistics}
    return (TABLE, DENSE, GOLDEN, PROFILE, *(name for name, is_there in optional.items() if is_there))


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a bundle directory; raises `InputError` if it is absent, newer, edited or inconsistent."""
    if not (path / MANIFEST).is_file():
        found = f"no {MANIFEST}" if path.is_dir() else "no such directory"
        remedy = "name a directory that `muxrec export` wrote, or export again"
        raise InputError(f"{path}: expected a bundle directory", found=found, remedy=remedy)
    document = read_json(path / MANIFEST)
    # First of all: a newer manifest may have other keys, or older keys with another meaning.
    version = document.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        is_newer = type(version) is int and version > FORMAT_VERSION
        remedy = f"upgrade muxrec (this is {installed_version()})" if is_newer else REMEDY
        expected = f"{path / MANIFEST}: expected format_version 1 to {FORMAT_VERSION}"
        raise InputError(expected, found=repr(version), remedy=remedy)
    stated = document.pop("checksum", None)
    if stated != _checksum(document):
        raise InputError(f"{path / MANIFEST}: expected checksum {stated}", found=_checksum(document), remedy=REMEDY)
    return _validated(document, str(path / MANIFEST))


def manifest_bytes(settings: Mapping[str, Any]) -> bytes:
    """Content of manifest.json for the fields of `Manifest`; raises `InputError` if they are inconsistent."""
    document = _validated(dict(settings), MANIFEST).model_dump(mode="json")
    return to_json({**document, "checksum": _checksum(document)}, MANIFEST)


def _validated(document: object, where: str) -> Manifest:
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        raise InputError(f"{where}: {describe_validation_error(error, Manifest)}") from None


def _checksum(document: Mapping[str, Any]) -> str:
    """Digest of a manifest without its own line. Keys stay in their order, which is the order of the slots."""
    return hashlib.sha256(json.dumps(document, separators=(",", ":")).encode()).hexdigest()[:32]


def installed_version() -> str:
    """Version of muxrec that is running."""
    try:
        return importlib.metadata.version("muxrec")
    except importlib.metadata.PackageNotFoundError:  # a checkout on the path, not installed
        return "0+unknown"


def _check_layout(layout: TableLayout, registry: FeatureRegistry) -> None:
    """Raise `InputError` unless the layout is one of this registry: seed, keys, pooling and fixed probes."""
    probes: dict[str, int | None] = {feature.name: feature.probes for feature in registry.token_features}
    for view, counts in layout.views.items():
        for name, count in counts.items():
            if name not in probes or count < 1 or probes[name] not in (None, count):
                found = f"{count} of {name!r} in view {view!r}"
                raise InputError(f"layout.views: expected probes of {', '.join(probes)}", found=found, remedy=REMEDY)
    views = {view: tuple(counts) for view, counts in layout.views.items()}
    same = TableLayout.of(registry, num_rows=layout.num_rows, width=layout.width, probes=1, views=views)
    for field in ("seed", "keys", "pooling"):
        expected, found = getattr(same, field), getattr(layout, field)
        if expected != found:
            raise InputError(f"layout.{field}: expected {expected} as in the registry", found=str(found), remedy=REMEDY)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size; raises `InputError` for anything else."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputError(f"{path}: expected at most {MAX_JSON_BYTES} bytes", remedy=REMEDY)
        document = json.loads(path.read_bytes())
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        check_readable(path)
        raise InputError(f"{path}: expected JSON", found=str(error)[:160], remedy=REMEDY) from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected a JSON object", found=type(document).__name__, remedy=REMEDY)
    return document


def to_json(document: Mapping[str, Any], name: str) -> bytes:
    """Indented JSON of a mapping; raises `InputError` with the file's name for values that JSON cannot hold.

    >>> to_json({"rate": 0.5}, "profile.json")
    b'{\\n "rate": 0.5\\n}\\n'
    """
    try:
        return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        remedy = "use text, finite numbers, lists and mappings"
        raise InputError(f"{name}: expected a value that JSON can hold", found=str(error), remedy=remedy) from None
