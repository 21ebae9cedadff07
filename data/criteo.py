"""Criteo Kaggle display advertising: 13 integer and 26 hashed categorical columns, a row per impression, in time order.

    python -m data.criteo --raw train.txt --out work/criteo [--split in-order --ratios 12:1:1]

The text is streamed and never held in memory. A random split needs 9 bytes per row for the permutation.
"""

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import polars as pl
import typer

from data import common
from features.dataset.info import DatasetSource

LICENCE = (
    "Criteo / Kaggle display advertising challenge: use under the terms accepted at the download; do not redistribute"
)
NUMERIC = [f"I{number}" for number in range(1, 14)]
CATEGORICAL = [f"C{number}" for number in range(1, 27)]
COLUMNS = ["label", *NUMERIC, *CATEGORICAL]
TEXT_FILES = ("train.txt", "train.txt.gz", "train.parquet")


class Protocol(StrEnum):
    """Feature type of the integer columns."""

    X4 = "x4"
    """Tokens of floor(ln(x)^2), as in Criteo_x4 of BARS."""
    LOG1P = "log1p"
    """Float columns, sign(x) ln(1 + |x|)."""


TRANSFORMS = {Protocol.X4: "log_square", Protocol.LOG1P: "log1p"}


def write_raw(
    out: Path,
    raw: Path,
    *,
    protocol: Protocol = Protocol.X4,
    split: common.Split = common.Split.RANDOM,
    ratios: str = "8:1:1",
    seed: int = 1,
) -> common.RawDataset:
    """Write `out/raw` and `out/registry.yaml`; missing values are nulls.

    Raises `InputError` for a file in another layout.
    """
    readers = (TEXT_FILES, text_rows, _parquet_rows)
    parts, rule, layout = common.read_parts(raw, *readers, split=split, ratios=ratios, seed=seed)
    origin = f"Criteo display advertising challenge (Kaggle), {layout}"
    source = DatasetSource(name=f"criteo-{protocol}", source=origin, licence=LICENCE, split_rule=rule)
    numeric = {name: {"type": "numeric", "transform": TRANSFORMS[protocol]} for name in NUMERIC}
    features = {**numeric, **dict.fromkeys(CATEGORICAL, "categorical")}
    return common.write_raw_dataset(out, parts, source=source, features=features)


def text_rows(path: Path) -> pl.LazyFrame:
    """Query of the official text: 40 tab-separated columns, no header; an empty field is null.

    Raises `InputError` unless the first and the last line have 40 fields.
    """
    common.check_fields(path, "\t", len(COLUMNS), remedy="give a whole train.txt (test.txt has no labels)")
    schema = {column: pl.String for column in COLUMNS} | {"label": pl.Int8} | dict.fromkeys(NUMERIC, pl.Int64)
    return pl.scan_csv(path, separator="\t", has_header=False, quote_char=None, schema=schema)


def _parquet_rows(path: Path) -> pl.LazyFrame:
    rows = common.require_columns(pl.scan_parquet(path), COLUMNS, path.name)
    return rows.with_columns(common.LABEL, pl.col(CATEGORICAL).cast(pl.String))


def main(
    out: common.Out,
    raw: common.Raw,
    protocol: Annotated[
        Protocol, typer.Option("--protocol", help="x4: integers become tokens of floor(ln(x)^2). log1p: floats.")
    ] = Protocol.X4,
    split: common.SplitOption = common.Split.RANDOM,
    ratios: common.Ratios = "8:1:1",
    seed: common.Seed = 1,
    overwrite: common.Overwrite = False,
) -> None:
    """Make Criteo (Kaggle) from the official train.txt (also .gz), or a folder with train/valid/test.parquet."""
    make = partial(write_raw, out, raw, protocol=protocol, split=split, ratios=ratios, seed=seed)
    common.build(out, make, notice=LICENCE, overwrite=overwrite)


if __name__ == "__main__":
    common.run(main)
