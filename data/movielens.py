"""MovieLens-100K and -1M with label = rating >= 4: the small public dataset, fetched automatically.

python -m data.movielens --out work/ml100k
python -m data.movielens --variant 1m --raw FOLDER --out work/ml1m [--drop-threes] [--features six]
"""

import io
import subprocess
import sys
import tempfile
import zipfile
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import polars as pl
import typer

from data import common
from features.dataset.info import DatasetSource
from features.errors import InputError

LICENCE = (
    "GroupLens MovieLens terms: research use; cite Harper & Konstan 2015 (doi 10.1145/2827872); "
    "no redistribution and no commercial use without permission"
)
WHEEL = "recbole==1.2.1"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
WHEEL_FOLDER = "recbole/dataset_example/ml-100k"
PIP_DOWNLOAD = (sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:")
"""The wheel is read as an archive and never installed; tests replace this command."""

ATOMIC_FILES = tuple(f"ml-100k.{table}" for table in ("inter", "user", "item"))
U_FILES = ("u.data", "u.user", "u.item")
DAT_FILES = ("ratings.dat", "users.dat", "movies.dat")
GENRES_100K = [
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
]

SIX = ("user_id", "item_id", "age", "gender", "occupation", "zip_code")
COLUMNS = (*SIX, "release_year", "genres")
GENRES = {"type": "categorical_list", "separator": "|", "pooling": "mean"}


class Variant(StrEnum):
    """Version of MovieLens."""

    ML_100K = "100k"
    ML_1M = "1m"


class Features(StrEnum):
    """Columns that the registry declares; the raw files hold all of them."""

    ALL = "all"
    SIX = "six"


class Tables(NamedTuple):
    """The three published tables, all columns text: `user_id item_id rating`, users, and items."""

    ratings: pl.DataFrame
    users: pl.DataFrame
    items: pl.DataFrame


def write_raw(
    out: Path,
    raw: Path | None = None,
    *,
    variant: Variant = Variant.ML_100K,
    drop_threes: bool = False,
    features: Features = Features.ALL,
    ratios: str = "8:1:1",
    seed: int = 1,
) -> common.RawDataset:
    """Write `out/raw` and `out/registry.yaml`; without `raw`, the 100K wheel is fetched.

    Raises `InputError` for a source that is missing, incomplete or not the published one.
    """
    given = common.given_parts(raw) if raw is not None and variant == Variant.ML_1M else None
    if given is not None:
        parts = {part: _given_rows(path, drop_threes=drop_threes) for part, path in given.items()}
        rule, source = "as given", "MovieLens-1M (grouplens.org), parquet with its split"
    else:
        tables, source = _read_tables(raw, variant)
        with common.reading("user and item tables that hold every rated id once"):
            rows = assemble(tables, drop_threes=drop_threes)
        parts = common.split_rows(
            rows.lazy(), common.part_codes(len(rows), split=common.Split.RANDOM, ratios=ratios, seed=seed)
        )
        rule = common.split_rule(common.Split.RANDOM, ratios, seed)
    name = f"movielens-{variant}" + ("-no-threes" if drop_threes else "")
    threes = "; label rating >= 4, ratings of 3 dropped first" if drop_threes else "; label rating >= 4"
    names = SIX if features == Features.SIX else COLUMNS
    return common.write_raw_dataset(
        out,
        parts,
        source=DatasetSource(name=name, source=source, licence=LICENCE, split_rule=rule + threes),
        features={column: GENRES if column == "genres" else "categorical" for column in names},
        group="user_id",
    )


def assemble(tables: Tables, *, drop_threes: bool = False) -> pl.DataFrame:
    """Label and features of every rating, in file order, without rating and timestamp.

    Raises `InputError` for a rating outside 1 to 5 and for an unknown user or item.
    """
    rating = tables.ratings["rating"].cast(pl.Float64, strict=False)
    if rating.is_null().any() or not rating.is_between(1, 5).all():
        wrong = tables.ratings.filter(rating.is_null() | ~rating.is_between(1, 5))["rating"][0]
        raise InputError("ratings must be 1 to 5", found=repr(wrong), remedy="fetch the published files again")
    rows = tables.ratings.with_columns(rating)
    for key, table in (("user_id", tables.users), ("item_id", tables.items)):
        unknown = rows.join(table, on=key, how="anti")
        if len(unknown):
            found, remedy = f"a rating by {unknown[key][0]!r}, which has no row", "fetch the published files again"
            raise InputError(f"every {key} must be in its table", found=found, remedy=remedy)
        rows = rows.join(table, on=key, how="left", validate="m:1", maintain_order="left")
    if drop_threes:
        rows = rows.filter(pl.col("rating") != 3)
    return rows.select((pl.col("rating") >= 4).cast(pl.Int8).alias("label"), *COLUMNS)


def _given_rows(path: Path, *, drop_threes: bool) -> pl.LazyFrame:
    """Rows of a 1M parquet file that is split already, with the names of `COLUMNS`."""
    published = {"item_id": "movie_id", "zip_code": "zip", "release_year": "year"}
    sources = [published.get(name, name) for name in COLUMNS]
    rows = common.require_columns(pl.scan_parquet(path), ["rating", *sources], path.name)
    if drop_threes:
        rows = rows.filter(pl.col("rating") != 3)
    label = pl.when(pl.col("rating").is_not_null()).then((pl.col("rating") >= 4).cast(pl.Int8)).alias("label")
    columns = [pl.col(old).cast(pl.String).alias(new) for new, old in zip(COLUMNS, sources, strict=True)]
    return rows.select(label, *columns)


def _read_tables(raw: Path | None, variant: Variant) -> tuple[Tables, str]:
    if variant == Variant.ML_1M:
        if raw is None:
            remedy = "download ml-1m.zip from grouplens.org, unpack it, and give its folder as --raw"
            raise InputError("--variant 1m needs --raw", found="none", remedy=remedy)
        return _read_dat(_read_folder(raw, DAT_FILES)), "MovieLens-1M (grouplens.org), ratings.dat users.dat movies.dat"
    if raw is None:
        with tempfile.TemporaryDirectory() as folder:
            return _read_tables(download_wheel(Path(folder)), variant)
    if raw.is_file():
        common.check_sha256(
            raw, WHEEL_SHA256, remedy=f"give the wheel of {WHEEL}, or a folder with {', '.join(U_FILES)}"
        )
        source = f"MovieLens-100K (grouplens.org), as packed in the wheel of {WHEEL}, sha256 {WHEEL_SHA256}"
        with zipfile.ZipFile(raw) as wheel:
            return _read_atomic([wheel.read(f"{WHEEL_FOLDER}/{name}") for name in ATOMIC_FILES]), source
    if any((raw / name).is_file() for name in U_FILES):
        return _read_u(_read_folder(raw, U_FILES)), "MovieLens-100K (grouplens.org), u.data u.user u.item"
    return _read_atomic(_read_folder(raw, ATOMIC_FILES)), f"MovieLens-100K (grouplens.org), {' '.join(ATOMIC_FILES)}"


def download_wheel(folder: Path) -> Path:
    """Fetch the wheel that holds MovieLens-100K with pip into `folder`; raises `InputError` offline."""
    command = [*PIP_DOWNLOAD, "--dest", str(folder), WHEEL]
    print(f"fetching {WHEEL} with pip download (read as an archive, not installed)", flush=True)
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("recbole-*.whl"))
    if finished.returncode or not wheels:
        lines = [line for line in finished.stderr.splitlines() if line.strip() and not line.startswith("[notice]")]
        found = f"pip exit status {finished.returncode}: {lines[-1].strip() if lines else 'no message'}"
        remedy = f"go online, or give --raw: the wheel of {WHEEL}, or a folder with {', '.join(U_FILES)}"
        raise InputError(f"expected to fetch {WHEEL} from the package registry", found=found, remedy=remedy)
    return wheels[0]


def _read_folder(raw: Path, names: tuple[str, ...]) -> list[bytes]:
    missing = [name for name in names if not (raw / name).is_file()]
    if missing:
        inside = sorted(path.name for path in raw.iterdir())[:8] if raw.is_dir() else []
        found = f"no {', '.join(missing)} in {raw}" + (f" (it holds {', '.join(inside)})" if inside else "")
        remedy = "point --raw at the published files"
        raise InputError(f"expected {', '.join(names)}", found=found, remedy=remedy)
    return [(raw / name).read_bytes() for name in names]


def _table(name: str, content: bytes, separator: str, columns: list[str] | None = None) -> pl.DataFrame:
    """Table of text columns of the file `name`, with the names in its header if `columns` is None."""
    with common.reading(f"{name} in the published layout"):
        return pl.read_csv(
            io.BytesIO(content),
            separator=separator,
            has_header=columns is None,
            new_columns=columns,
            quote_char=None,
            infer_schema=False,
        )


def _read_atomic(contents: list[bytes]) -> Tables:
    """RecBole's layout: tab separated, a header of `name:type`, genres separated by spaces."""
    ratings, users, items = (
        table.rename({column: column.split(":")[0] for column in table.columns})
        for table in (_table(name, content, "\t") for name, content in zip(ATOMIC_FILES, contents, strict=True))
    )
    items = _pick(items, ["item_id", "movie_title", "release_year", "class"], ATOMIC_FILES[2])
    year = pl.col("release_year")
    # "... (1995) (V)" has the year "V", and one item a misspelt "unknown": take the year from the title.
    release_year = pl.when(year.str.contains(r"^\d{4}$")).then(year).otherwise(_year_in(pl.col("movie_title")))
    return Tables(
        _pick(ratings, ["user_id", "item_id", "rating"], ATOMIC_FILES[0]),
        _pick(users, ["user_id", "age", "gender", "occupation", "zip_code"], ATOMIC_FILES[1]),
        items.select(
            "item_id",
            release_year.alias("release_year"),
            pl.col("class").str.replace_all(" ", "|", literal=True).alias("genres"),
        ),
    )


def _read_u(contents: list[bytes]) -> Tables:
    """GroupLens' 100K layout: u.data separated by tabs, the others by bars; 19 flags for the genres."""
    data, user, item = (content.decode("latin-1").encode() for content in contents)
    ratings = _table("u.data", data, "\t", ["user_id", "item_id", "rating", "timestamp"])
    users = _table("u.user", user, "|", ["user_id", "age", "gender", "occupation", "zip_code"])
    names = ["item_id", "title", "release_date", "video_date", "url"]
    items = _table("u.item", item, "|", [*names, *GENRES_100K])
    flags = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in GENRES_100K]
    year = pl.coalesce(_year_in(pl.col("title")), pl.col("release_date").str.extract(r"(\d{4})$"))
    genres = pl.concat_str(flags, separator="|", ignore_nulls=True)
    items = items.select("item_id", year.alias("release_year"), genres.alias("genres"))
    return Tables(ratings.select("user_id", "item_id", "rating"), users, items)


def _read_dat(contents: list[bytes]) -> Tables:
    """GroupLens' 1M layout: fields separated by two colons, latin-1, no header."""
    tables = (content.decode("latin-1").replace("\t", " ").replace("::", "\t").encode() for content in contents)
    ratings, users, items = tables
    movies = _table("movies.dat", items, "\t", ["item_id", "title", "genres"])
    return Tables(
        _table("ratings.dat", ratings, "\t", ["user_id", "item_id", "rating", "timestamp"]).drop("timestamp"),
        _table("users.dat", users, "\t", ["user_id", "gender", "age", "occupation", "zip_code"]),
        movies.select("item_id", _year_in(pl.col("title")).alias("release_year"), "genres"),
    )


def _pick(table: pl.DataFrame, columns: list[str], where: str) -> pl.DataFrame:
    return common.require_columns(table.lazy(), columns, where).collect()


def _year_in(title: pl.Expr) -> pl.Expr:
    """The year in a title such as "Heat (1995)", as text."""
    return title.str.extract(r"\((\d{4})\)")


def main(
    out: common.Out,
    raw: common.RawOrFetched = None,
    variant: Annotated[Variant, typer.Option("--variant", help="100k is fetched if --raw is not given.")] = (
        Variant.ML_100K
    ),
    drop_threes: Annotated[bool, typer.Option("--drop-threes", help="Leave out ratings of 3 (DCN-V2's rule).")] = False,
    features: Annotated[Features, typer.Option("--features", help="six: ids, age, gender, occupation, zip.")] = (
        Features.ALL
    ),
    ratios: common.Ratios = "8:1:1",
    seed: common.Seed = 1,
    overwrite: common.Overwrite = False,
) -> None:
    """Make MovieLens-100K or -1M from: the wheel of recbole==1.2.1 or a folder with ml-100k.{inter,user,item} or
    u.data, u.user, u.item (100k); ratings.dat, users.dat, movies.dat or train/valid/test.parquet (1m)."""
    make = partial(write_raw, out, raw, variant=variant, drop_threes=drop_threes, features=features)
    common.build(out, partial(make, ratios=ratios, seed=seed), notice=LICENCE, overwrite=overwrite)


if __name__ == "__main__":
    common.run(main)
