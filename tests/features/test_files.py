"""Errors of the file system: the message says what failed, reading or writing, and why."""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from features.dataset.info import read_dataset
from features.errors import InputError
from features.files import cache_directory, cannot_write, made_in_cache, replace_directory, system_fault, write_text
from features.io.readers import columns_of
from features.registry import FeatureRegistry
from recsys.checkpoint import load_state
from recsys.cli.app import run_command
from recsys.config import read_experiment
from recsys.embedding import kernels
from recsys.tracking.model_uri import resolve_bundle
from serving.bundle import Bundle
from serving.bundle.manifest import read_json

NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of an ordinary user, who runs the test: root may read anything."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        is_root = os.geteuid() == 0
        if is_root:
            os.chown(directory, NOBODY, -1)
            os.seteuid(NOBODY)
        try:
            yield Path(directory)
        finally:
            if is_root:
                os.seteuid(0)


def unreadable(path: Path) -> Path:
    """A file that existed before its permissions were removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    path.chmod(0)
    return path


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("a.parquet", columns_of),
        ("a.csv", columns_of),
        ("a.ndjson", columns_of),
        ("registry.yaml", FeatureRegistry.from_yaml),
        ("dataset.json", lambda path: read_dataset(path.parent)),
        ("experiment.yaml", read_experiment),
        ("best.safetensors", load_state),
        ("profile.json", read_json),
        ("manifest.json", lambda path: Bundle.open(path.parent)),
    ],
)
def test_a_file_that_may_not_be_read_is_not_called_damaged(name, read, folder):
    path = unreadable(folder / name)
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value) == f"cannot read {path}; found Permission denied; permit it"


def test_an_input_that_may_not_be_read_is_not_an_output_that_cannot_be_written(folder):
    path = unreadable(folder / "table")
    with pytest.raises(PermissionError) as caught:
        path.read_bytes()
    line = f"cannot read {path}; found Permission denied; permit it"
    assert str(cannot_write(folder / "out", caught.value)) == line
    assert str(system_fault(caught.value)) == line

    (folder / "closed").mkdir(mode=0o500)
    out = folder / "closed" / "out"
    with pytest.raises(InputError) as refused:
        write_text(out, "a")
    assert str(refused.value) == f"cannot write {out}; found Permission denied; permit it, or choose another output"
    with pytest.raises(PermissionError) as caught:
        out.mkdir()
    assert str(system_fault(caught.value)) == str(refused.value)


@pytest.mark.parametrize(
    ("number", "name", "said"),
    [
        (errno.ENOSPC, "a", "cannot write a; found No space left on device; free space, or choose another output"),
        (errno.ENOSPC, None, "cannot write; found No space left on device; free space"),
        (errno.EROFS, "a", "cannot write a; found Read-only file system; permit it, or choose another output"),
        (errno.EEXIST, "a", "cannot write a; found File exists; move what is there, or choose another output"),
        (errno.EACCES, "a", "cannot write a; found Permission denied; permit it, or choose another output"),
        (errno.ENOENT, "a", "cannot open a; found No such file or directory; check the path"),
        (errno.EISDIR, "a", "cannot open a; found Is a directory; check the path"),
        (errno.ENOTDIR, b"a/b", "cannot open a/b; found Not a directory; check the path"),
        (errno.ENAMETOOLONG, "aaa", "cannot open aaa; found File name too long; give a shorter name"),
        (errno.EMFILE, "a", "cannot open a; found Too many open files; raise the limit of open files (ulimit -n)"),
        (
            errno.EMFILE,
            None,
            "cannot open a file; found Too many open files; raise the limit of open files (ulimit -n)",
        ),
    ],
)
def test_the_command_line_says_what_the_system_refused(number, name, said, capsys):
    def command() -> None:
        raise OSError(number, os.strerror(number), name)

    with pytest.raises(SystemExit) as ended:
        run_command(command, "muxrec")  # type: ignore[arg-type]
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"muxrec: {said}\n"


def test_an_error_that_is_about_no_file_is_not_made_one():
    assert system_fault(ConnectionResetError(errno.ECONNRESET, "reset")) is None
    assert system_fault(OSError("anything")) is None


def test_a_name_that_no_file_system_takes_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"found File name too long; give a shorter name, or choose another output"):
        write_text(tmp_path / ("x" * 300), "a")


def test_the_cache_is_where_the_user_says(tmp_path, monkeypatch):
    for name in ("MUXREC_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_directory() == tmp_path / "home" / ".cache" / "muxrec"
    monkeypatch.setattr(Path, "home", gone)
    with pytest.raises(InputError, match=r"expected a home directory; found none; set MUXREC_CACHE or XDG_CACHE_HOME"):
        cache_directory()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert made_in_cache("models") == tmp_path / "xdg" / "muxrec" / "models"
    monkeypatch.setenv("MUXREC_CACHE", str(tmp_path / "own"))
    assert made_in_cache("models") == tmp_path / "own" / "models"
    assert list((tmp_path / "own" / "models").iterdir()) == []


def test_a_directory_is_replaced_or_comes_back(tmp_path):
    path = tmp_path / "out"
    for number in ("1", "2"):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / number).touch()
        replace_directory(tmp_path / "new", path)
        assert [file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*")] == ["out", f"out/{number}"]
    with pytest.raises(FileNotFoundError):
        replace_directory(tmp_path / "new", path)
    assert (path / "2").exists()


def gone() -> Path:
    """`Path.home` of a user that the system does not know."""
    raise RuntimeError("Could not determine home directory.")


def test_a_cache_that_cannot_be_written_names_the_remedy(folder, monkeypatch):
    (folder / "closed").mkdir(mode=0o500)
    monkeypatch.setenv("MUXREC_CACHE", str(folder / "closed"))
    said = r"cannot keep files in .*/closed/models; found Permission denied; set MUXREC_CACHE or XDG_CACHE_HOME to"
    with pytest.raises(InputError, match=said):
        resolve_bundle("models:/films@champion")  # before a process is started


def test_loops_are_compiled_where_nothing_can_be_kept(tmp_path, monkeypatch):
    """numba raises if neither its own folders nor the user's cache are writable."""

    def njit(*, cache: bool) -> Callable[[Any], Any]:
        assert cache
        if "NUMBA_CACHE_DIR" not in os.environ:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr(kernels.numba, "njit", njit)
    monkeypatch.setenv("MUXREC_CACHE", str(tmp_path / "cache"))
    assert kernels._can_cache()
    assert os.environ["NUMBA_CACHE_DIR"] == str(tmp_path / "cache" / "numba")
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    (tmp_path / "file").touch()
    monkeypatch.setenv("MUXREC_CACHE", str(tmp_path / "file"))
    assert not kernels._can_cache()
