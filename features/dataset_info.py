"""DatasetInfo: what `dataset.json` says of a dataset directory, and its reader."""

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from features.errors import InputError
from features.files import sha256_of
from features.registry import FeatureRegistry

FORMAT_VERSION = 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DatasetSource(_Record):
    """Where the data came from; free text for people."""

    name: str
    """Short name, used as the experiment's data set name."""
    source: str = "files of the user"
    """Who made it and where it was found."""
    licence: str = "not stated"
    """Terms of use."""
    split_rule: str = "as given"
    """How rows were dealt to train, valid and test."""


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
    """Share of missing values a feature."""
    parts: tuple[PartInfo, ...]
    """Files in reading order."""


class DatasetInfo(DatasetSource):
    """Everything that `dataset.json` holds."""

    format_version: int = FORMAT_VERSION
    registry_fingerprint: str
    """Of the registry with its fitted statistics, as in `registry.json`."""
    unknown_columns: tuple[str, ...] = ()
    """Columns of the raw files that the registry does not use."""
    splits: dict[str, SplitInfo]
    """By name."""

    @property
    def digest(self) -> str:
        """32 hexadecimal digits over the registry and all parts: the identity of the data."""
        parts = [part.sha256 for split in sorted(self.splits) for part in self.splits[split].parts]
        return hashlib.sha256("\n".join([self.registry_fingerprint, *parts]).encode()).hexdigest()[:32]


def read_dataset(directory: str | Path, *, verify: bool = False) -> tuple[DatasetInfo, FeatureRegistry]:
    """Read and check `dataset.json` and `registry.json`; `verify` also reads every part's checksum.

    Raises `InputError` when the directory is no dataset, is of a newer format, or does not hold together.
    """
    directory = Path(directory)
    try:
        text = (directory / "dataset.json").read_text(encoding="utf-8")
        registry = FeatureRegistry.from_json((directory / "registry.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        found = "no dataset.json there" if directory.is_dir() else "no such directory"
        raise InputError(
            f"{directory}: expected a dataset", found=found, remedy="make one with `muxrec prepare`"
        ) from None
    try:
        info = DatasetInfo.model_validate_json(text)
    except ValidationError as error:
        found = str(error.errors()[0]["msg"])
        raise InputError(f"{directory}/dataset.json: not readable", found=found, remedy="prepare it again") from None
    if info.format_version > FORMAT_VERSION:
        remedy = "upgrade muxrec, or prepare the data again"
        raise InputError(f"expected dataset format {FORMAT_VERSION}", found=str(info.format_version), remedy=remedy)
    if info.registry_fingerprint != registry.fingerprint():
        raise InputError(f"{directory}: registry.json is not the one the parts were made with", remedy="prepare again")
    for part in (part for split in info.splits.values() for part in split.parts):
        path = directory / part.file
        if not path.is_file() or path.stat().st_size != part.bytes or (verify and sha256_of(path) != part.sha256):
            raise InputError(
                f"{path}: expected the part that prepare wrote", found="another or none", remedy="prepare again"
            )
    return info, registry
