"""Shared code of the dataset modules: checksums, splits, raw files, the registry file, and the command wrapper."""

import gzip
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import polars as pl
import typer
import yaml

from features.arrays import UInt8s
from features.dataset.info import DatasetSource
from features.dataset.prepare import prepare
from features.errors import InputError
from features.files import replace_directory, sha256_of, temporary_directory_beside, write_text
from features.registry import FeatureRegistry

PARTS = ("train", "valid", "test")
LABEL = pl.col("label").cast(pl.Int8)

Out = Annotated[Path, typer.Option("--out", help="Folder to create: raw/, registry.yaml and the prepared dataset.")]
RAW_HELP = "The published files: a folder, or the one file that holds the data."
Raw = Annotated[Path, typer.Option("--raw", help=RAW_HELP)]
RawOrFetched = Annotated[Path | None, typer.Option("--raw", help=RAW_HELP + " Without it they are fetched.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Build a finished dataset again.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of a random split; ignored for other splits.")]
Ratios = Annotated[str, typer.Option("--ratios", help="train:valid:test, for data that is not split yet.")]


class Split(StrEnum):
    """Rule that assigns unsplit rows to train, valid and test."""

    RANDOM = "random"
    IN_ORDER = "in-order"


SplitOption = Annotated[Split, typer.Option("--split", help="Split rule for data that is not split yet.")]


@dataclass(frozen=True, kw_only=True)
class RawDataset:
    """Files that a module's `write_raw` has written, and their figures."""

    source: DatasetSource
    registry: Path
    """The registry file, with the columns of `files`."""
    files: dict[str, Path]
    """Part to parquet file: `label` first, then the columns as published."""
    num_rows: dict[str, int]
    label_rates: dict[str, float]


def check_sha256(path: Path, expected: str, *, remedy: str) -> None:
    """Raise `InputError` unless the file has the sha256 `expected`."""
    found = sha256_of(path)
    if found != expected:
        raise InputError(f"{path.name}: expected sha256 {expected}", found=found, remedy=remedy)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn the error of a reader over a user's file into an `InputError` that expects `what`."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        found = next(iter(str(error).splitlines()), type(error).__name__)
        if "(os error" in found:  # polars wraps the system's error, such as a full disk
            remedy = "free space, or check the permissions"
            raise InputError("expected files that can be read and written", found=found, remedy=remedy) from None
        remedy = "compare the file with the layouts that --help names, or fetch it again"
        raise InputError(f"expected {what}", found=found, remedy=remedy) from None


def part_codes(num_rows: int, *, split: Split, ratios: str = "8:1:1", seed: int = 1) -> UInt8s:
    """Part of every row [N]: 0 train, 1 valid, 2 test; within a part, rows keep the order of the file.

    `random` assigns the first rows of a permutation to train, the next to valid and the rest to test. Raises
    `InputError` for ratios that are not three positive integers and where a part would be empty.

    >>> part_codes(10, split=Split.IN_ORDER).tolist()
    [0, 0, 0, 0, 0, 0, 0, 0, 1, 2]
    """
    shares = [int(share) if share.isdecimal() else 0 for share in ratios.split(":")]
    if len(shares) != len(PARTS) or min(shares) < 1:
        raise InputError("--ratios must be three positive integers", found=repr(ratios), remedy="such as 8:1:1")
    first_valid = num_rows * shares[0] // sum(shares)
    first_test = num_rows * (shares[0] + shares[1]) // sum(shares)
    if not 0 < first_valid < first_test < num_rows:
        remedy = "give more rows, or other --ratios"
        raise InputError(f"a {ratios} split needs a row in every part", found=f"{num_rows} rows", remedy=remedy)
    codes = np.zeros(num_rows, dtype=np.uint8)
    order = np.random.default_rng(seed).permutation(num_rows) if split == Split.RANDOM else np.arange(num_rows)
    codes[order[first_valid:first_test]] = 1
    codes[order[first_test:]] = 2
    return codes


def split_rule(split: Split, ratios: str, seed: int) -> str:
    """Description of the rule of `part_codes`, for `dataset.json`."""
    if split == Split.RANDOM:
        return f"random {ratios}, numpy default_rng({seed}).permutation over file order"
    return f"in file order {ratios}"


def split_rows(rows: pl.LazyFrame, codes: UInt8s) -> dict[str, pl.LazyFrame]:
    """Streaming queries of the three parts of a frame [N]."""
    index = "row of the source"  # a name that no published column has
    code = pl.col(index).map_batches(lambda rows: pl.Series(codes[rows]), return_dtype=pl.UInt8, is_elementwise=True)
    numbered = rows.with_row_index(index)
    return {part: numbered.filter(code == number).drop(index) for number, part in enumerate(PARTS)}


def first_line(path: Path) -> str:
    """First line of a text or gzip file without its line end; raises `InputError` for any other file."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            return file.readline(65536).decode().rstrip("\r\n")
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise InputError(f"{path.name}: expected text", found=str(error), remedy="fetch the file again") from None


def check_fields(path: Path, separator: str, num_fields: int, *, remedy: str) -> None:
    """Raise `InputError` unless the first and last line have `num_fields` fields: polars fills a cut line with nulls.

    The last line of a gzip file is not checked: a cut archive cannot be unpacked.
    """
    lines = {"first": first_line(path)}
    if path.suffix != ".gz" and lines["first"]:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - 65536, 0))
            lines["last"] = file.read().decode(errors="replace").rstrip("\r\n").rsplit("\n", 1)[-1]
    for place, line in lines.items():
        found = line.count(separator) + 1
        if found != num_fields:
            expected = f"{path.name}: expected {num_fields} fields per line, separated by {separator!r}"
            raise InputError(expected, found=f"{found} in the {place} line", remedy=remedy)


def given_parts(raw: Path, *, suffix: str = ".parquet") -> dict[str, Path] | None:
    """Part to file of a folder that holds train, valid and test; None for any other."""
    files = {part: raw / f"{part}{suffix}" for part in PARTS}
    return files if all(path.is_file() for path in files.values()) else None


def find_file(raw: Path, names: tuple[str, ...]) -> Path:
    """`raw` itself if it is a file, else the first of `names` in it; raises `InputError` if there is none."""
    if raw.is_file():
        return raw
    if not raw.exists():
        raise InputError("--raw must exist", found=str(raw), remedy="correct the path")
    for name in names:
        if (raw / name).is_file():
            return raw / name
    inside = sorted(path.name for path in raw.iterdir())
    found = f"{', '.join(inside[:8]) or 'nothing'} in {raw}"
    remedy = "point --raw at the published files, or at a folder with train.parquet, valid.parquet and test.parquet"
    raise InputError(f"expected {' or '.join(names)}", found=found, remedy=remedy)


def read_parts(
    raw: Path,
    names: tuple[str, ...],
    read_text: Callable[[Path], pl.LazyFrame],
    read_parquet: Callable[[Path], pl.LazyFrame],
    *,
    split: Split,
    ratios: str,
    seed: int,
) -> tuple[dict[str, pl.LazyFrame], str, str]:
    """Parts of a source given as one of the files `names`, or as three parquet files that are split already.

    Returns part to query, the split rule in words, and the layout: `parquet` or the first of `names`.
    """
    given = given_parts(raw)
    if given is not None:
        return {part: read_parquet(path) for part, path in given.items()}, "as given", "parquet"
    path = find_file(raw, names)
    is_parquet = path.suffix == ".parquet"
    rows = read_parquet(path) if is_parquet else read_text(path)
    with reading("a whole file in the published layout"):
        num_rows = int(rows.select(pl.len()).collect(engine="streaming").item())
    parts = split_rows(rows, part_codes(num_rows, split=split, ratios=ratios, seed=seed))
    return parts, split_rule(split, ratios, seed), "parquet" if is_parquet else names[0]


def require_columns(rows: pl.LazyFrame, columns: list[str], where: Path | str) -> pl.LazyFrame:
    """The named columns in this order; raises `InputError` with the names of missing ones."""
    with reading(f"{where} to be a readable table"):
        present = rows.collect_schema().names()
    missing = [column for column in columns if column not in present]
    if missing:
        found = f"no {', '.join(missing)} among {', '.join(present[:50])}"
        raise InputError(f"{where}: expected {len(columns)} columns", found=found, remedy="see --help for the layouts")
    return rows.select(columns)


def write_raw_dataset(
    out: Path,
    parts: Mapping[str, pl.LazyFrame],
    *,
    source: DatasetSource,
    features: Mapping[str, str | dict[str, Any]],
    group: str | None = None,
) -> RawDataset:
    """Stream the parts to `out/raw` and write `out/registry.yaml`; either appears complete or not at all.

    `dataset.json`, which marks a finished dataset, is removed only when the new raw files are ready. Raises
    `InputError` for a source that cannot be read, an empty part, and a label that is not 0 or 1.
    """
    files = {part: out / "raw" / f"{part}.parquet" for part in PARTS}
    registry = out / "registry.yaml"
    num_rows: dict[str, int] = {}
    label_rates: dict[str, float] = {}
    with temporary_directory_beside(out / "raw") as folder:
        for part in PARTS:
            print(f"writing {files[part]}", flush=True)
            with reading(f"the layout of {source.name}"):
                parts[part].sink_parquet(folder / files[part].name)
                num_rows[part], label_rates[part] = _summary(folder / files[part].name, part)
        (out / "dataset.json").unlink(missing_ok=True)
        write_text(registry, registry_text(features, group=group, comment=source.name))
        replace_directory(folder, out / "raw")
    return RawDataset(source=source, registry=registry, files=files, num_rows=num_rows, label_rates=label_rates)


def _summary(path: Path, part: str) -> tuple[int, float]:
    label = pl.col("label")
    wrong = (label.is_null() | ~label.is_in([0, 1])).sum()
    query = pl.scan_parquet(path).select(pl.len().alias("rows"), label.mean().alias("rate"), wrong.alias("wrong"))
    rows, rate, num_wrong = query.collect(engine="streaming").row(0)
    if not rows:
        raise InputError(f"expected rows in {part}", found="none", remedy="check that the source is complete")
    if num_wrong:
        remedy = "check that the source is the published one"
        raise InputError(f"{part}: every label must be 0 or 1", found=f"{num_wrong} that are not", remedy=remedy)
    return int(rows), float(rate)


def registry_text(
    features: Mapping[str, str | dict[str, Any]], *, group: str | None = None, comment: str | None = None
) -> str:
    r"""Text of a registry file, formatted as a person would write it: one line per feature.

    >>> print(registry_text({"user": "categorical", "price": {"type": "numeric"}}, group="user"), end="")
    label: label
    group: user
    features:
      user: categorical
      price: {type: numeric}
    """
    lines = ([f"# {comment}"] if comment else []) + ["label: label"] + ([f"group: {group}"] if group else [])
    lines.append("features:")
    for name, spec in features.items():
        flow = spec if isinstance(spec, str) else yaml.safe_dump(spec, default_flow_style=True, sort_keys=False)
        lines.append(f"  {name}: {flow.strip()}")
    return "\n".join(lines) + "\n"


def build(out: Path, write_raw: Callable[[], RawDataset], *, notice: str, overwrite: bool) -> None:
    """Build a dataset directory: print the licence notice, write the raw files and prepare them.

    A finished dataset is kept unless `overwrite` is set.
    """
    if (out / "dataset.json").exists() and not overwrite:
        print(f"{out} is finished already; nothing done (--overwrite makes it again)")
        return
    if out.exists() and not out.is_dir():
        raise InputError("--out must be a folder", found=f"the file {out}", remedy="choose another name")
    print(f"Licence: {notice}", flush=True)
    raw = write_raw()
    registry = FeatureRegistry.from_yaml(raw.registry)
    files = {part: [path] for part, path in raw.files.items()}
    prepare(registry, files, out=out, source=raw.source, progress=sys.stderr.isatty())
    for part in PARTS:
        print(f"{part}: {raw.num_rows[part]:,} rows, label rate {raw.label_rates[part]:.5f}")
    print(f"{raw.source.name} is ready in {out}; split: {raw.source.split_rule}")


def run(function: Callable[..., None], arguments: list[str] | None = None) -> NoReturn:
    """Run a module's command; an input error is one line on stderr and exit status 2, not a traceback."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(function)
    try:
        sys.exit(app(arguments, standalone_mode=False) or 0)
    except (InputError, OSError) as error:
        message = str(error)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except Exception as error:
        # Usage errors: since 0.2x typer vendors click, so their class has no stable public name.
        format_message = getattr(error, "format_message", None)
        if format_message is None:
            raise
        message = f"{format_message().rstrip('.')}; see --help"
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
