"""DatasetInfo: the content of a dataset's `dataset.json`, and its reader."""

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from features.errors import InputError
from features.files import check_readable, sha256_of
from features.registry import FeatureRegistry

FORMAT_VERSION = 2
"""Newest version. It is 1 if the registry has only settings of the first format, so older versions read it."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DatasetSource(_Record):
    """Origin of the data, as free text."""

    name: str
    """Short name of the dataset, used by experiments."""
    source: str = "files of the user"
    """Author and place of publication."""
    licence: str = "not stated"
    """Terms of use."""
    split_rule: str = "as given"
    """Rule that assigned rows to train, valid and test."""


class PartInfo(_Record):
    """One parquet file."""

    file: str
    """Path below the dataset directory."""
    rows: int = Field(ge=1)
    """Number of examples."""
    bytes: int
    """Size on disk."""
    sha256: str
    """Checksum of the file."""


class SplitInfo(_Record):
    """One of train, valid and test."""

    rows: int
    """Number of examples."""
    label_rate: float
    """Mean label."""
    missing_rates: dict[str, float]
    """Share of missing values per feature."""
    parts: tuple[PartInfo, ...]
    """Files in reading order."""


class DatasetInfo(DatasetSource):
    """Content of `dataset.json`."""

    format_version: int = 1
    registry_fingerprint: str
    """Fingerprint of the fitted registry in `registry.json`."""
    unknown_columns: tuple[str, ...] = ()
    """Columns of the raw files that the registry does not use."""
    splits: dict[str, SplitInfo]
    """By name."""

    @property
    def digest(self) -> str:
        """Identity of the data: 32 hexadecimal digits over the registry and all parts."""
        return self.digest_of(*sorted(self.splits))

    def digest_of(self, *splits: str) -> str:
        """`digest` over the parts of these splits."""
        parts = [part.sha256 for split in splits for part in self.splits[split].parts]
        return hashlib.sha256("\n".join([self.registry_fingerprint, *parts]).encode()).hexdigest()[:32]


def read_dataset(directory: str | Path, *, verify: bool = False) -> tuple[DatasetInfo, FeatureRegistry]:
    """Read and check `dataset.json` and `registry.json`; with `verify`, also the checksum of every part.

    Raises `InputError` for a directory without a dataset, a newer format, and files that do not match.
    """
    directory = Path(directory)
    documents: list[str] = []
    for name in ("dataset.json", "registry.json"):
        try:
            documents.append((directory / name).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            check_readable(directory / name)
            found = f"no readable {name} there" if directory.is_dir() else "no such directory"
            remedy = "make one with `muxrec prepare`"
            raise InputError(f"{directory}: expected a dataset", found=found, remedy=remedy) from None
    info = _parse_info(documents[0], f"{directory}/dataset.json")
    try:
        registry = FeatureRegistry.from_json(documents[1])
    except InputError as error:
        raise error.located(f"{directory}/registry.json") from None
    if info.registry_fingerprint != registry.fingerprint():
        expected = f"{directory}/registry.json: expected the registry that the parts were made with"
        raise InputError(expected, found="another", remedy="prepare it again")
    for part in (part for split in info.splits.values() for part in split.parts):
        _check_part(directory / part.file, part, verify=verify)
    return info, registry


def _parse_info(text: str, where: str) -> DatasetInfo:
    try:
        document = json.loads(text)
        version = document.get("format_version") if isinstance(document, dict) else None
        # First, as a newer format may have keys that this one reports as unknown.
        if isinstance(version, int) and version > FORMAT_VERSION:
            remedy = "upgrade muxrec, or prepare the data again"
            expected = f"{where}: expected dataset format 1 to {FORMAT_VERSION}"
            raise InputError(expected, found=str(version), remedy=remedy)
        return DatasetInfo.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        found = f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"
    except json.JSONDecodeError as error:
        found = str(error)
    raise InputError(f"{where}: expected a directory that prepare wrote", found=found, remedy="prepare it again")


def _check_part(path: Path, part: PartInfo, *, verify: bool) -> None:
    if not path.is_file():
        found = "no such file"
    elif path.stat().st_size != part.bytes:
        found = f"{path.stat().st_size} bytes instead of {part.bytes}"
    elif verify and sha256_of(path) != part.sha256:
        found = "another checksum"
    else:
        return
    raise InputError(f"{path}: expected the part that prepare wrote", found=found, remedy="prepare it again")
