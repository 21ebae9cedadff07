"""Libraries that report to their makers stay silent: in a new home directory, no process of ours writes or connects.

Native code is seen by the files that it keeps what it would send in, and by its system calls where strace is installed.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "tests" / "golden" / "bundle"
REPORTERS = ("ORT_DISABLE_TELEMETRY", "MLFLOW_DISABLE_TELEMETRY", "RAY_USAGE_STATS_ENABLED", "DO_NOT_TRACK")
HOOK = """
import os, sys
def seen(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        os.write(2, f"NETWORK {event} {arguments}\\n".encode())
sys.addaudithook(seen)
"""
# Some look at these to tell a test from a user.
TEST_MARKS = re.compile(r"CI|PYTEST_.*|GITHUB_.*|TF_BUILD|.*_CI|.*BUILD.*|JENKINS_.*|TEAMCITY_.*|RUNBOT_.*")
# What the registry's process does; it imports mlflow.
FETCH = """
import contextlib
from features.errors import InputError
from recsys.tracking.fetch_model import fetch
with contextlib.suppress(InputError):
    fetch({"uri": "models:/nothing/1", "cache": "cache", "current": None})
"""
SCORE = ("-m", "experiments", "score", str(BUNDLE), "--input", str(BUNDLE / "golden.parquet"), "--out", "scores")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty home directory, and a hook that writes down what Python connects to."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def ran(command: tuple[str, ...], home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run Python as a user would, not as CI does."""
    kept = {key: value for key, value in os.environ.items() if not TEST_MARKS.fullmatch(key)}
    kept = {key: value for key, value in kept.items() if key not in REPORTERS and not key.startswith("XDG_")}
    kept |= {"HOME": str(home), "PYTHONPATH": f"{home.parent / 'hook'}:{ROOT}", **more}
    return subprocess.run(command, cwd=home.parent, env=kept, capture_output=True, text=True)


def files_below(folder: Path) -> list[str]:
    """The contents of the directory, as paths within it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "command",
    [
        ("-c", "import serving.bundle.bundle"),
        (*SCORE, "--workers", "2"),
        ("-c", FETCH),
        ("-c", "import recsys.tracking.model_registry, recsys.sweep.sweep, recsys.runs.finish"),
    ],
    ids=["import", "score", "registry", "training"],
)
def test_no_process_writes_to_the_home_or_connects(command, home):
    done = ran((sys.executable, *command), home)
    assert "NETWORK" not in done.stderr, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert files_below(home) == []


@pytest.mark.skipif(not shutil.which("strace"), reason="no strace")
def test_native_code_asks_no_name_server(home):
    trace = home.parent / "trace"
    done = ran(
        ("strace", "-f", "-qq", "-o", str(trace), "-e", "trace=connect,sendto,sendmsg", sys.executable, *SCORE), home
    )
    assert done.returncode == 0, done.stderr
    assert not re.findall(r".*AF_INET.*", trace.read_text())


def test_what_the_environment_says_stays(home):
    """A user's own word counts, also where it is the opposite."""
    code = f"import serving, os; print(*(os.environ[name] for name in {REPORTERS[:3]!r}))"
    told = dict(zip(REPORTERS, ("1", "false", "1"), strict=False))
    assert ran((sys.executable, "-c", code), home, **told).stdout.split() == ["1", "false", "1"]
    assert ran((sys.executable, "-c", code), home).stdout.split() == ["1", "true", "0"]
