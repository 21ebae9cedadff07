"""Frappe_x1 of BARS: app usage in context; ten categorical columns, split as published.

    python -m data.frappe --raw FOLDER --out work/frappe

With a vocab.parquet (`field`, `feature_id`, `raw_value`) in the folder, the global libfm ids are replaced by the values
that they encode; without it the ids are the values.
"""

from pathlib import Path

import polars as pl

from data import common
from features.dataset.info import DatasetSource
from features.errors import InputError

LICENCE = (
    "Frappe (Baltrunas et al. 2015) terms: research use, acknowledge in publications; "
    "no redistribution without separate permission, no commercial use"
)
COLUMNS = ["user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city"]
VOCABULARY = "vocab.parquet"
LIBFM_FILES = {
    "frappe.{}.libfm": ("train", "validation", "test"),  # hexiangnan/neural_factorization_machine
    "{}.libsvm": common.PARTS,  # WeiyuCheng/AFN-AAAI-20
}


def write_raw(out: Path, raw: Path) -> common.RawDataset:
    """Write `out/raw` and `out/registry.yaml` with the published split.

    Raises `InputError` unless `raw` holds a complete set of the three files.
    """
    parts, layout = _read_parts(raw)
    if (raw / VOCABULARY).is_file():
        parts = {part: _named(rows, raw / VOCABULARY) for part, rows in parts.items()}
        layout += ", values named by vocab.parquet"
    source = DatasetSource(name="frappe", source=f"Frappe in the layout of Frappe_x1 (BARS), {layout}", licence=LICENCE)
    features = dict.fromkeys(COLUMNS, "categorical")
    return common.write_raw_dataset(out, parts, source=source, features=features, group="user")


def _read_parts(raw: Path) -> tuple[dict[str, pl.LazyFrame], str]:
    """Part to rows (label, then columns of text), and the name of the layout."""
    if files := common.given_parts(raw):
        return {part: _typed(pl.scan_parquet(path), path) for part, path in files.items()}, "parquet"
    if files := common.given_parts(raw, suffix=".csv"):
        rows = {part: pl.scan_csv(path, infer_schema=False) for part, path in files.items()}
        return {part: _typed(rows[part], path) for part, path in files.items()}, "csv"
    for pattern, names in LIBFM_FILES.items():
        paths = [raw / pattern.format(name) for name in names]
        if all(path.is_file() for path in paths):
            return {part: libfm_rows(path) for part, path in zip(common.PARTS, paths, strict=True)}, "libfm"
    common.find_file(
        raw, ("train.parquet", "train.csv", "frappe.train.libfm", "train.libsvm")
    )  # raises with what is missing
    remedy = "give a folder that holds all three under one naming"
    raise InputError(f"expected train, valid and test files in {raw}", found="not all of them", remedy=remedy)


def _typed(rows: pl.LazyFrame, path: Path) -> pl.LazyFrame:
    columns = [pl.col(column).cast(pl.String) for column in COLUMNS]
    label = pl.col("label").cast(pl.Float64).cast(pl.Int8)
    return common.require_columns(rows, ["label", *COLUMNS], path.name).select(label, *columns)


def libfm_rows(path: Path) -> pl.LazyFrame:
    """Rows of a libfm file, `label id:1 id:1 ...` with ids in the order of `COLUMNS`; label -1 becomes 0.

    Raises `InputError` for a line in another form.
    """
    lines = pl.Series("line", path.read_text(encoding="utf-8").split("\n")).str.strip_chars()
    lines = lines.filter(lines != "")
    fields = r"^(-1|0|1)" + r" (\d+):1" * len(COLUMNS) + "$"
    wrong = lines.filter(~lines.str.contains(fields))
    if len(wrong):
        expected = f"{path.name}: expected a label and {len(COLUMNS)} fields such as 451:1"
        raise InputError(expected, found=repr(wrong[0][:120]), remedy="give the published libfm files")
    tokens = pl.col("line").str.split(" ")
    ids = [tokens.list.get(place).str.head(-2).alias(name) for place, name in enumerate(COLUMNS, start=1)]
    label = (tokens.list.get(0) == "1").cast(pl.Int8).alias("label")
    return pl.LazyFrame([lines]).select(label, *ids)


def _named(rows: pl.LazyFrame, path: Path) -> pl.LazyFrame:
    """Rows with each column's global ids replaced by their values in the vocabulary."""
    with common.reading(f"{path.name} with field, feature_id and raw_value"):
        table = pl.read_parquet(path, columns=["field", "feature_id", "raw_value"])
    columns: list[pl.Expr] = []
    for name in COLUMNS:
        field = table.filter(pl.col("field") == name)
        ids, values = field["feature_id"].cast(pl.String), field["raw_value"]
        columns.append(pl.col(name).replace_strict(ids, values, return_dtype=pl.String))
    return rows.with_columns(columns)


def main(out: common.Out, raw: common.Raw, overwrite: common.Overwrite = False) -> None:
    """Make Frappe_x1 from a folder with train/valid/test as .parquet, .csv (BARS) or .libsvm (AFN), or with
    frappe.{train,validation,test}.libfm."""
    common.build(out, lambda: write_raw(out, raw), notice=LICENCE, overwrite=overwrite)


if __name__ == "__main__":
    common.run(main)
