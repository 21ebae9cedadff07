"""Several processes, a lock, and `kill -9`: the output is that of an undisturbed job, and no half part is ever seen.

    KILLS=30 pytest tests/serving/batch/test_kill.py

kills jobs that many times at random moments; four times is the default.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import serving.batch.output
from features.errors import InputError
from serving.batch.output import locked
from serving.bundle import Bundle
from tests.serving.conftest import Run, content, raw_frame, visible

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KILLS", "4"))
KILLED, DONE = -signal.SIGKILL, 0

# A job in a separate process, slow enough to be hit. With `workers`, the pace is set in theirs by the files' sizes.
JOB = """
import sys, time
import serving.batch.job, serving.batch.parts
bundle, inputs, out, workers, pause = sys.argv[1:]
serving.batch.job.BATCH_ROWS, serving.batch.job.ROW_GROUP_ROWS = 64, 128
score = serving.batch.parts.score_rows
def slow(*arguments, **settings):
    time.sleep(float(pause))
    return score(*arguments, **settings)
serving.batch.parts.score_rows = slow
serving.batch.job.score_files(
    bundle, [inputs], out, keep=["row"], workers=int(workers), max_rejected=1.0, allow_missing=True, progress=False
)
"""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve files of 150 to 700 rows in two partitions; every third one has rows that cannot be scored."""
    root = tmp_path_factory.mktemp("logs")
    for number in range(12):
        folder = root / f"day={number % 2}"
        folder.mkdir(exist_ok=True)
        rows = raw_frame(150 + 50 * number, seed=number)
        if number % 3 == 0:
            rows = rows.with_columns(user=pl.when(pl.col("row") % 10 == 7).then(0.5).otherwise(pl.col("user")))
        rows.write_parquet(folder / f"x{number}.parquet")
    return root


@pytest.fixture
def start(bundle: Bundle, logs: Path) -> Iterator[Start]:
    """Start a job on the logs; what is left of it is killed at the end."""
    processes: list[subprocess.Popen[str]] = []

    def begin(out: Path, *, workers: int = 1, pause: float = 0.01) -> "subprocess.Popen[str]":
        arguments = [str(bundle.path), str(logs), str(out), str(workers), str(pause)]
        command = [sys.executable, "-c", JOB, *arguments]
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


class Watcher(threading.Thread):
    """Lists a directory as fast as it can and reads every visible file whole, as any reader might."""

    def __init__(self, out: Path) -> None:
        super().__init__(daemon=True)
        self.out = out
        self.rows: dict[str, set[int]] = {}
        self.faults: list[str] = []
        self.looks = 0
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.is_set():
            is_marked = (self.out / "_SUCCESS").exists()
            paths = [path for path in self.out.rglob("*") if path.is_file() and not path.name.startswith(".")]
            for path in paths:
                try:
                    if path.suffix == ".parquet":
                        frame = pl.read_parquet(path, hive_partitioning=False)
                        self.rows.setdefault(path.name, set()).add(len(frame))
                    else:
                        path.read_text()
                except FileNotFoundError:
                    pass  # marks go when work begins again
                except Exception as error:
                    self.faults.append(f"{path}: {error}")
            if is_marked and (self.out / "_SUCCESS").exists() and len(paths) != 12 + 4 + 2:
                self.faults.append(f"_SUCCESS beside {len(paths)} files")
            self.looks += 1

    def __enter__(self) -> "Watcher":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.join(timeout=30)


def wait_for(happened: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def processes_of(text: str) -> list[int]:
    """Ids of the processes whose command line or environment is of the test's job."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and text.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def whole(bundle: Bundle, logs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The output of an uninterrupted job."""
    out = tmp_path_factory.mktemp("whole") / "out"
    arguments = [str(bundle.path), str(logs), str(out), "1", "0"]
    subprocess.run([sys.executable, "-c", JOB, *arguments], check=True)
    return content(out)


def test_any_number_of_workers_writes_the_same_bytes(start: Start, whole: dict[str, bytes], tmp_path: Path) -> None:
    for workers in (2, 5):
        process = start(tmp_path / f"out{workers}", workers=workers)
        assert process.wait(timeout=120) == DONE
        assert content(tmp_path / f"out{workers}") == whole


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_job_is_taken_up_again(
    start: Start, whole: dict[str, bytes], tmp_path: Path, number: signal.Signals, workers: int
) -> None:
    out = tmp_path / "out"
    process = start(out, workers=workers, pause=0.1)  # it must not end before the signal, on a busy machine either
    wait_for(lambda: len(list(out.rglob("part-*"))) >= 3)
    process.send_signal(number)
    assert process.wait(timeout=30) != DONE
    before = {name: data for name, data in content(out).items() if not Path(name).name.startswith(".")}
    assert 3 <= len(before) < 16
    assert before.items() <= whole.items(), "what is visible is whole"
    again = start(out, workers=3 - workers, pause=0)
    assert again.wait(timeout=60) == DONE, again.stderr and again.stderr.read()
    assert content(out) == whole, "whole, and nothing hidden is left"


def test_killed_at_random(start: Start, whole: dict[str, bytes], tmp_path: Path) -> None:
    """Each job takes kills until one comes too late for it; a watcher reads all visible files all the time."""
    dice = random.Random(KILLS)
    kills = job = looks = 0
    while kills < KILLS:
        out = tmp_path / f"out{job}"
        workers = 1 + job % 2
        job += 1
        with Watcher(out) as watcher:
            code = KILLED
            while code == KILLED:
                process = start(out, workers=workers, pause=0.01)
                if kills < KILLS:
                    wait_for(lambda out=out: (out / ".lock").exists())
                    time.sleep(dice.uniform(0, 1.5 * workers))
                    process.kill()
                code = process.wait(timeout=60)
                kills += code == KILLED
            assert code == DONE
        assert watcher.faults == []
        assert all(len(counts) == 1 for counts in watcher.rows.values()), "a part is never seen with fewer rows"
        looks += watcher.looks
        assert content(out) == whole
    assert looks > 10 * KILLS


def test_workers_end_with_the_job_that_started_them(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUXREC_TEST_JOB", mark := f"job {tmp_path.name} {time.time_ns()}")
    process = start(tmp_path / "out", workers=3, pause=0.2)
    wait_for(lambda: len(processes_of(mark)) == 4)
    process.kill()
    wait_for(lambda: processes_of(mark) == [])


def test_a_worker_that_dies_is_told(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUXREC_TEST_JOB", mark := f"job {tmp_path.name} {time.time_ns()}")
    process = start(tmp_path / "out", workers=2)
    wait_for(lambda: len(processes_of(mark)) == 3)
    worker = max(set(processes_of(mark)) - {process.pid})
    os.kill(worker, signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "expected a scoring process to finish it; found SIGKILL; memory may have run out" in err


# --- two jobs at once -------------------------------------------------------------------------------------------------


def test_a_second_job_on_the_directory_is_refused(
    run: Run, logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving.batch.output, "LOCK_TIMEOUT_SECONDS", 0.2)
    with locked(tmp_path / "out"):
        with pytest.raises(InputError, match=r"out: expected no other job in it; found one that holds its lock"):
            run(inputs=[logs])
        assert visible(tmp_path / "out") == []


def test_the_lock_is_free_when_its_holder_has_ended(tmp_path: Path) -> None:
    with locked(tmp_path / "out"):
        assert (tmp_path / "out" / ".lock").exists()
        code = "import sys, pathlib\nfrom serving.batch import output\noutput.LOCK_TIMEOUT_SECONDS = 0.2\n"
        code += "with output.locked(pathlib.Path(sys.argv[1])): pass"
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True)
        assert "expected no other job in it" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
    with locked(tmp_path / "out"):
        pass


def test_many_jobs_that_begin_at_once_hold_the_lock_one_by_one(tmp_path: Path) -> None:
    """The file of the lock is deleted at the end of each job: the classic way to let two in."""
    code = """
import os, sys, time
from pathlib import Path
import serving.batch.output
serving.batch.output.LOCK_TIMEOUT_SECONDS = 30.0
out = Path(sys.argv[1])
for _ in range(20):
    with serving.batch.output.locked(out):
        descriptor = os.open(out / "busy", os.O_CREAT | os.O_EXCL)
        time.sleep(0.001)
        os.unlink(out / "busy")
        os.close(descriptor)
"""
    jobs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")]) for _ in range(3)]
    assert [job.wait(timeout=60) for job in jobs] == [0, 0, 0]
