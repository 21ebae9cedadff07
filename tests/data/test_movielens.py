"""MovieLens in all its published layouts, with made-up ratings."""

import hashlib
import sys
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data import common, movielens
from data.movielens import Features, Variant, write_raw
from features.dataset.info import read_dataset
from features.errors import InputError
from features.registry import FeatureRegistry

NUM_RATINGS = 200
USERS = {str(user): (str(20 + user), "MF"[user % 2], ["writer", "none"][user % 2], f"0{user}1") for user in range(1, 8)}
ITEMS = {
    "1": ("Made Up One", "1995", ["Animation", "Children's"]),
    "2": ("Second (1988)", "1988", ["Film-Noir", "Sci-Fi"]),
    "3": ("Third", "1922", ["Drama"]),
    "4": ("Direct to Video (1995) (V)", "1995", ["Comedy"]),
}
RATINGS = [
    (str(rng_user), str(rng_item), rating)
    for rng_user, rng_item, rating in np.random.default_rng(0).integers([1, 1, 1], [8, 5, 6], (NUM_RATINGS, 3)).tolist()
]
EXPECTED = pl.DataFrame(
    [
        [int(rating >= 4), user, item, *(USERS[user][place] for place in (0, 1, 2, 3)), ITEMS[item][1], genres]
        for user, item, rating in RATINGS
        for genres in ["|".join(ITEMS[item][2])]
    ],
    schema=["label", *movielens.COLUMNS],
    orient="row",
).cast({"label": pl.Int8})


def atomic_files() -> dict[str, str]:
    inter = [f"{user}\t{item}\t{rating}\t88125" for user, item, rating in RATINGS]
    users = ["\t".join((user, *fields)) for user, fields in USERS.items()]
    shown = {"4": "V"}  # as the wheel has it for a title that ends in "(V)"
    items = [
        f"{item}\t{title}\t{shown.get(item, year)}\t{' '.join(genres)}" for item, (title, year, genres) in ITEMS.items()
    ]
    return {
        "ml-100k.inter": "\n".join(["user_id:token\titem_id:token\trating:float\ttimestamp:float", *inter, ""]),
        "ml-100k.user": "\n".join(
            ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token", *users, ""]
        ),
        "ml-100k.item": "\n".join(
            ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq", *items, ""]
        ),
    }


def u_files() -> dict[str, str]:
    items = []
    for item, (title, year, genres) in ITEMS.items():
        flags = ["1" if genre in genres else "0" for genre in movielens.GENRES_100K]
        items.append("|".join([item, f"{title} café", f"01-Jan-{year}", "", "http://x", *flags]))
    return {
        "u.data": "".join(f"{user}\t{item}\t{rating}\t88125\n" for user, item, rating in RATINGS),
        "u.user": "".join("|".join((user, *fields)) + "\n" for user, fields in USERS.items()),
        "u.item": "\n".join(items) + "\n",
    }


def dat_files() -> dict[str, str]:
    users = [f"{user}::{gender}::{age}::{job}::{code}\n" for user, (age, gender, job, code) in USERS.items()]
    items = [
        f"{item}::Café: {title.split(' (')[0]} ({year})::{'|'.join(genres)}\n"
        for item, (title, year, genres) in ITEMS.items()
    ]
    return {
        "ratings.dat": "".join(f"{user}::{item}::{rating}::97830\n" for user, item, rating in RATINGS),
        "users.dat": "".join(users),
        "movies.dat": "".join(items),
    }


def save(folder: Path, files: dict[str, str], encoding: str = "latin-1") -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding=encoding)
    return folder


def wheel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = folder / "recbole-1.2.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in atomic_files().items():
            archive.writestr(f"{movielens.WHEEL_FOLDER}/{name}", text)
    monkeypatch.setattr(movielens, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def written(out: Path) -> dict[str, pl.DataFrame]:
    return {part: pl.read_parquet(out / "raw" / f"{part}.parquet") for part in ("train", "valid", "test")}


def assert_split_of(parts: dict[str, pl.DataFrame], rows: pl.DataFrame, seed: int = 1) -> None:
    order = np.random.default_rng(seed).permutation(len(rows))
    edges = [0, len(rows) * 8 // 10, len(rows) * 9 // 10, len(rows)]
    for number, part in enumerate(parts.values()):
        chosen = np.sort(order[edges[number] : edges[number + 1]])
        assert part.equals(rows[chosen.tolist()])


@pytest.mark.parametrize(("files", "variant"), [(atomic_files, "100k"), (u_files, "100k"), (dat_files, "1m")])
def test_every_layout_gives_the_same_rows(tmp_path: Path, files: object, variant: str) -> None:
    content = files()  # type: ignore[operator]
    raw = save(tmp_path / "raw", content, "utf-8" if files is atomic_files else "latin-1")
    write_raw(tmp_path / "out", raw, variant=Variant(variant))
    assert_split_of(written(tmp_path / "out"), EXPECTED)


def test_label_rule_dropped_columns_and_registry(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "out", save(tmp_path / "raw", atomic_files()))
    train = written(tmp_path / "out")["train"]
    assert train.columns == ["label", *movielens.COLUMNS]
    assert train.columns[0] == "label"
    assert not {"rating", "timestamp"} & set(train.columns)
    registry = FeatureRegistry.from_yaml(raw.registry)
    assert (registry.label, registry.group) == ("label", "user_id")
    assert [feature.name for feature in registry.features] == list(movielens.COLUMNS)
    assert registry.features[-1].model_dump()["separator"] == "|"
    assert "label rating >= 4" in raw.source.split_rule
    assert "Harper" in raw.source.licence


def test_six_features_are_declared_and_all_columns_written(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "out", save(tmp_path / "raw", atomic_files()), features=Features.SIX)
    assert [feature.name for feature in FeatureRegistry.from_yaml(raw.registry).features] == list(movielens.SIX)
    assert "genres" in written(tmp_path / "out")["train"].columns


def test_threes_are_dropped_before_the_split(tmp_path: Path) -> None:
    raw = save(tmp_path / "raw", dat_files())
    described = write_raw(tmp_path / "out", raw, variant=Variant.ML_1M, drop_threes=True)
    kept = EXPECTED.filter(pl.Series([rating != 3 for _, _, rating in RATINGS]))
    assert_split_of(written(tmp_path / "out"), kept)
    assert described.source.name == "movielens-1m-no-threes"


def test_other_seed_other_split(tmp_path: Path) -> None:
    raw = save(tmp_path / "raw", atomic_files())
    write_raw(tmp_path / "out", raw, seed=2)
    assert_split_of(written(tmp_path / "out"), EXPECTED, seed=2)


def given_1m(folder: Path) -> Path:
    folder.mkdir()
    names = {"item_id": "movie_id", "zip_code": "zip", "release_year": "year"}
    rows = EXPECTED.rename(names).with_columns(rating=pl.Series([rating for *_, rating in RATINGS], dtype=pl.Int8))
    rows = rows.cast({"user_id": pl.Int16, "movie_id": pl.Int16, "year": pl.Int16, "age": pl.Int8})
    for part, low, high in (("train", 0, 150), ("valid", 150, 180), ("test", 180, 200)):
        rows[low:high].write_parquet(folder / f"{part}.parquet")
    return folder


def test_a_given_split_is_kept(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "out", given_1m(tmp_path / "raw"), variant=Variant.ML_1M)
    assert pl.concat(written(tmp_path / "out").values()).equals(EXPECTED)
    assert raw.num_rows == {"train": 150, "valid": 30, "test": 20}
    assert raw.source.split_rule.startswith("as given")


def test_a_given_split_without_threes(tmp_path: Path) -> None:
    write_raw(tmp_path / "out", given_1m(tmp_path / "raw"), variant=Variant.ML_1M, drop_threes=True)
    kept = EXPECTED.filter(pl.Series([rating != 3 for _, _, rating in RATINGS]))
    assert pl.concat(written(tmp_path / "out").values()).equals(kept)


def test_the_wheel_is_read_as_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_raw(tmp_path / "out", wheel(tmp_path, monkeypatch))
    assert_split_of(written(tmp_path / "out"), EXPECTED)
    assert movielens.WHEEL_SHA256 in raw.source.source
    assert str(tmp_path) not in raw.source.source


def test_another_wheel_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recbole-1.2.1-py3-none-any.whl"
    path.write_bytes(b"not it")
    with pytest.raises(InputError, match=f"expected sha256 {movielens.WHEEL_SHA256}; found [0-9a-f]{{64}}; give the"):
        write_raw(tmp_path / "out", path)
    assert not (tmp_path / "out").exists()


def test_download_goes_through_pip_to_a_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = wheel(tmp_path, monkeypatch)
    copy = "import shutil, sys; assert sys.argv[3] == 'recbole==1.2.1', sys.argv; shutil.copy(sys.argv[1], sys.argv[2])"
    script = tmp_path / "pip.py"
    script.write_text(f"import sys; sys.argv = ['', {str(path)!r}, *sys.argv[2:]]\n{copy}\n")
    monkeypatch.setattr(movielens, "PIP_DOWNLOAD", (sys.executable, str(script)))
    write_raw(tmp_path / "out")
    assert_split_of(written(tmp_path / "out"), EXPECTED)


def test_the_real_command_never_installs() -> None:
    assert movielens.PIP_DOWNLOAD[1:] == ("-m", "pip", "download", "--no-deps", "--only-binary=:all:")


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fail = "import sys; sys.exit('WARNING: retrying\\nERROR: No matching distribution found for recbole==1.2.1')"
    monkeypatch.setattr(movielens, "PIP_DOWNLOAD", (sys.executable, "-c", fail))
    with pytest.raises(SystemExit) as stop:
        common.run(movielens.main, ["--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    assert "found pip exit status 1: ERROR: No matching distribution found for recbole==1.2.1" in error
    assert "go online, or give --raw" in error
    assert not (tmp_path / "out").exists()


def test_one_million_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--variant 1m needs --raw; found none; download ml-1m\.zip"):
        write_raw(tmp_path, variant=Variant.ML_1M)


def test_missing_files_are_named(tmp_path: Path) -> None:
    raw = save(tmp_path / "raw", {"ratings.dat": "1::1::5::0\n"})
    with pytest.raises(InputError, match=r"found no users.dat, movies.dat in .* \(it holds ratings.dat\)"):
        write_raw(tmp_path / "out", raw, variant=Variant.ML_1M)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("ratings.dat", "::97830\n", "::97830\n1::1::6::0\n", "ratings must be 1 to 5; found '6'"),
        ("ratings.dat", "::97830\n", "::97830\n1::77::5::0\n", "every item_id must be in its table; found .*'77'"),
        ("users.dat", "1::", "1::x::x::x::x\n1::", "found join keys did not fulfill m:1"),
        ("users.dat", "::", ",", "expected users.dat in the published layout; found .*5 != 1"),
    ],
)
def test_broken_sources(tmp_path: Path, name: str, old: str, new: str, message: str) -> None:
    files = dat_files()
    files[name] = files[name].replace(old, new, 1) if old != "::" else files[name].replace(old, new)
    with pytest.raises(InputError, match=message):
        write_raw(tmp_path / "out", save(tmp_path / "raw", files), variant=Variant.ML_1M)


def test_the_command_makes_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = save(tmp_path / "raw", atomic_files())
    for expected in ("is ready in", "nothing done"):
        with pytest.raises(SystemExit) as stop:
            common.run(movielens.main, ["--raw", str(raw), "--out", str(tmp_path / "out")])
        assert stop.value.code == 0
        assert expected in capsys.readouterr().out
    info, registry = read_dataset(tmp_path / "out", verify=True)
    assert sum(split.rows for split in info.splits.values()) == NUM_RATINGS
    assert registry.group == "user_id"
