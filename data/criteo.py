"""Criteo Kaggle display advertising: 13 integer and 26 hashed categorical columns, one click a row, in time order.

    python -m data.criteo --raw train.txt --out work/criteo [--split in-order --ratios 12:1:1]

The text is never held in memory: every part is a streamed scan. A random split needs 9 bytes a row for the permutation.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import polars as pl
import typer

from data.common import (
    LABEL,
    Out,
    Overwrite,
    Ratios,
    Raw,
    RawDataset,
    Seed,
    Split,
    SplitOption,
    build,
    check_fields,
    find_file,
    given_parts,
    require_columns,
    run,
    split_source,
    write_raw_dataset,
)
from features.dataset.info import DatasetSource

LICENCE = (
    "Criteo / Kaggle display advertising challenge: use under the terms accepted at the download; do not redistribute"
)
NUMERIC = [f"I{number}" for number in range(1, 14)]
CATEGORICAL = [f"C{number}" for number in range(1, 27)]
COLUMNS = ["label", *NUMERIC, *CATEGORICAL]
TEXT_FILES = ("train.txt", "train.txt.gz", "train.parquet")


class Protocol(StrEnum):
    """How the integer columns are declared."""

    X4 = "x4"
    """Tokens by floor(ln(x)^2), as Criteo_x4 of BARS."""
    LOG1P = "log1p"
    """Float columns, sign(x) ln(1 + |x|)."""


TRANSFORMS = {Protocol.X4: "log_square", Protocol.LOG1P: "log1p"}


def write_raw(
    out: Path,
    raw: Path,
    *,
    protocol: Protocol = Protocol.X4,
    split: Split = Split.RANDOM,
    ratios: str = "8:1:1",
    seed: int = 1,
) -> RawDataset:
    """Write `out/raw` and `out/registry.yaml`; missing values are nulls.

    Raises `InputError` for a file of another layout.
    """
    given = given_parts(raw)
    if given is not None:
        parts = {part: _parquet_rows(path) for part, path in given.items()}
        rule, layout = "as given", "parquet"
    else:
        path = find_file(raw, TEXT_FILES)
        is_parquet = path.suffix == ".parquet"
        layout = "parquet" if is_parquet else "train.txt"
        parts, rule = split_source(
            _parquet_rows(path) if is_parquet else text_rows(path), split=split, ratios=ratios, seed=seed
        )
    numeric = {"type": "numeric", "transform": TRANSFORMS[protocol]}
    source = f"Criteo display advertising challenge (Kaggle), {layout}"
    return write_raw_dataset(
        out,
        parts,
        source=DatasetSource(name=f"criteo-{protocol}", source=source, licence=LICENCE, split_rule=rule),
        features={**dict.fromkeys(NUMERIC, numeric), **dict.fromkeys(CATEGORICAL, "categorical")},
    )


def text_rows(path: Path) -> pl.LazyFrame:
    """Query of the official text: 40 columns by tabs, no header; an empty field is a null.

    Raises `InputError` where the first or the last line has not 40 fields.
    """
    check_fields(path, "\t", len(COLUMNS), remedy="give a whole train.txt (test.txt has no labels)")
    schema = {column: pl.String for column in COLUMNS} | {"label": pl.Int8} | dict.fromkeys(NUMERIC, pl.Int64)
    return pl.scan_csv(path, separator="\t", has_header=False, quote_char=None, schema=schema)


def _parquet_rows(path: Path) -> pl.LazyFrame:
    rows = require_columns(pl.scan_parquet(path), COLUMNS, path.name)
    return rows.with_columns(LABEL, pl.col(CATEGORICAL).cast(pl.String))


def main(
    out: Out,
    raw: Raw,
    protocol: Annotated[
        Protocol, typer.Option("--protocol", help="x4: integers are tokens by floor(ln(x)^2). log1p: floats.")
    ] = Protocol.X4,
    split: SplitOption = Split.RANDOM,
    ratios: Ratios = "8:1:1",
    seed: Seed = 1,
    overwrite: Overwrite = False,
) -> None:
    """Make Criteo (Kaggle) from the official train.txt (also .gz), or a folder with train/valid/test.parquet."""

    def write() -> RawDataset:
        return write_raw(out, raw, protocol=protocol, split=split, ratios=ratios, seed=seed)

    build(out, write, notice=LICENCE, overwrite=overwrite)


if __name__ == "__main__":
    run(main)
