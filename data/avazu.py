"""Avazu Kaggle click-through rate: 24 categorical columns, three of them derived from the hour.

    python -m data.avazu --raw train.csv.gz --out work/avazu [--split in-order]

As in Avazu_x4 of BARS the impression's `id` is dropped, and `hour` (YYMMDDHH) becomes hour_of_day, weekday, is_weekend.
"""

from functools import partial
from pathlib import Path

import polars as pl

from data import common
from features.dataset.info import DatasetSource
from features.errors import InputError

LICENCE = "Avazu / Kaggle competition data: use under the competition's rules; do not redistribute"
SITE_TO_DEVICE = [
    *("C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category"),
    *("device_id", "device_ip", "device_model", "device_type", "device_conn_type"),
]
ANONYMOUS = [f"C{number}" for number in range(14, 22)]
HOUR_PARTS = ["hour_of_day", "weekday", "is_weekend"]
PUBLISHED = [*SITE_TO_DEVICE, *ANONYMOUS]
COLUMNS = [*HOUR_PARTS, *PUBLISHED]
TEXT_FILES = ("train.csv", "train.csv.gz", "train.gz", "train.parquet")
WEEKDAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]


def write_raw(
    out: Path, raw: Path, *, split: common.Split = common.Split.RANDOM, ratios: str = "8:1:1", seed: int = 1
) -> common.RawDataset:
    """Write `out/raw` and `out/registry.yaml`, all columns text.

    Raises `InputError` for a file in another layout and for an hour that is not YYMMDDHH.
    """
    readers = (TEXT_FILES, text_rows, _parquet_rows)
    parts, rule, layout = common.read_parts(raw, *readers, split=split, ratios=ratios, seed=seed)
    origin = f"Avazu click-through rate prediction (Kaggle), {layout}"
    source = DatasetSource(name="avazu", source=origin, licence=LICENCE, split_rule=rule)
    return common.write_raw_dataset(out, parts, source=source, features=dict.fromkeys(COLUMNS, "categorical"))


def hour_parts(hour: pl.Expr) -> list[pl.Expr]:
    """`hour_of_day` (0 to 23), `weekday` (English) and `is_weekend` of a YYMMDDHH text.

    >>> pl.select(hour_parts(pl.lit("14102123"))).row(0)
    (23, 'tuesday', False)
    """
    day = hour.str.head(6).str.to_date("%y%m%d").dt.weekday()  # 1 is monday
    names = dict(enumerate(WEEKDAYS, start=1))
    return [
        hour.str.tail(2).cast(pl.Int8).alias("hour_of_day"),
        day.replace_strict(names, return_dtype=pl.String).alias("weekday"),
        (day >= 6).alias("is_weekend"),
    ]


def text_rows(path: Path) -> pl.LazyFrame:
    """Query of the official csv, `click` renamed to `label`; raises `InputError` for another header."""
    header = common.first_line(path).split(",")
    missing = [column for column in ("click", "hour", *PUBLISHED) if column not in header]
    if missing:
        remedy = "give the competition's train.csv (test.csv has no clicks)"
        found = f"no {', '.join(missing[:5])} in {', '.join(header)[:80]!r}"
        raise InputError(f"{path.name}: expected the header of train.csv", found=found, remedy=remedy)
    common.check_fields(path, ",", len(header), remedy="fetch the file again")
    return _typed(pl.scan_csv(path, infer_schema=False).rename({"click": "label"}))


def _parquet_rows(path: Path) -> pl.LazyFrame:
    return _typed(common.require_columns(pl.scan_parquet(path), ["label", "hour", *PUBLISHED], path.name))


def _typed(rows: pl.LazyFrame) -> pl.LazyFrame:
    return rows.select(common.LABEL, *hour_parts(pl.col("hour").cast(pl.String)), pl.col(PUBLISHED).cast(pl.String))


def main(
    out: common.Out,
    raw: common.Raw,
    split: common.SplitOption = common.Split.RANDOM,
    ratios: common.Ratios = "8:1:1",
    seed: common.Seed = 1,
    overwrite: common.Overwrite = False,
) -> None:
    """Make Avazu (Kaggle) from the official train.csv (also .gz), or a folder with train/valid/test.parquet."""
    make = partial(write_raw, out, raw, split=split, ratios=ratios, seed=seed)
    common.build(out, make, notice=LICENCE, overwrite=overwrite)


if __name__ == "__main__":
    common.run(main)
