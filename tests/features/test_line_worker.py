"""Workers that are asked by a line: answers, errors, questions back, and no worker that outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from features.errors import InputError
from features.line_worker import LineWorker, WorkerError, ask_once, scratch_log

WORKER = """
import os, sys, time
from pathlib import Path
from features.errors import InputError
from features.line_worker import LineServer

def answer(request):
    if request == "noise":
        print("from Python")
        os.system("echo from C")
        return {"heavy": [name for name in ("torch", "mlflow", "polars") if name in sys.modules]}
    if request == "refuse":
        raise InputError("expected less", found="more", remedy="ask for less")
    if request == "crash":
        raise RuntimeError("a defect")
    if request == "count":
        return [server.ask(number) for number in range(3)]
    if isinstance(request, dict):
        Path(request["busy"]).touch()
        time.sleep(60)
    return request

server = LineServer()
server.run(answer)
"""
PARENT = """
import sys
from features.line_worker import LineWorker
LineWorker("made_up_worker").ask({"busy": sys.argv[1]})
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "made_up_worker.py").write_text(WORKER)
    monkeypatch.syspath_prepend(tmp_path)
    return "made_up_worker"


@pytest.fixture
def worker(module: str) -> Iterator[LineWorker]:
    with LineWorker(module, log=scratch_log()) as worker:
        yield worker


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def is_running(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def test_answers_are_the_only_lines(worker: LineWorker) -> None:
    assert worker.ask("noise") == {"heavy": []}
    assert worker.ask(["é", 1.5, None]) == ["é", 1.5, None]


def test_an_input_error_arrives_whole_and_the_worker_goes_on(worker: LineWorker) -> None:
    with pytest.raises(InputError, match=r"^expected less; found more; ask for less$") as raised:
        worker.ask("refuse")
    assert (raised.value.expected, raised.value.found, raised.value.remedy) == ("expected less", "more", "ask for less")
    assert worker.ask("again") == "again"


def test_a_worker_asks_back(worker: LineWorker) -> None:
    assert worker.ask("count", lambda number: 10 * number) == [0, 10, 20]


def test_a_crash_is_told_by_its_last_line(worker: LineWorker) -> None:
    for _ in range(2):  # a dead worker stays one
        with pytest.raises(WorkerError, match=r"^ended with exit code 1; RuntimeError: a defect$"):
            worker.ask("crash")


def test_a_killed_worker_is_told_by_its_signal(worker: LineWorker) -> None:
    worker.kill()
    with pytest.raises(WorkerError, match=r"ended by signal 9 \(SIGKILL\)") as raised:
        worker.ask("anything")
    assert raised.value.signal_name == "SIGKILL"


def test_a_worker_for_one_request(module: str) -> None:
    assert ask_once(module, 3) == 3
    with pytest.raises(InputError, match="expected less"):
        ask_once(module, "refuse")


def test_files_in_the_working_directory_are_not_imported(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "json.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(folder)
    assert ask_once(module, 3) == 3


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc")
def test_a_worker_ends_with_its_parent_in_the_middle_of_its_work(module: str, tmp_path: Path) -> None:
    busy = tmp_path / "busy"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", PARENT, str(busy)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}) as parent:
        wait_for(busy)
        (worker,) = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        assert is_running(int(worker))
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while is_running(int(worker)):
        assert time.monotonic() < deadline, "the worker outlives its parent"
        time.sleep(0.01)
