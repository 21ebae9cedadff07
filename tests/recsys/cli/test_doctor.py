"""The doctor: sound here, and with a finding and a command for everything that can be broken elsewhere."""

import http.server
import importlib.metadata
import json
import re
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import pytest

from features.hashing import hash_text
from recsys.cli import doctor
from recsys.cli.doctor import ANOTHER_STORE, Diagnosis, diagnose, required, run_probe
from recsys.tracking.store import connect

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"
NAMES = [
    *("python", "scoring packages", "token hash", "onnxruntime", "training packages", "table kernels"),
    *("tracking store", "server packages"),
]


@pytest.fixture
def interpreter(monkeypatch, tmp_path):
    """Let probes run a shell script in place of Python."""

    def use(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return use


@pytest.fixture
def installed(monkeypatch):
    """Let the doctor see the given distributions alone: name to version."""

    def use(versions: dict[str, str]) -> None:
        def look_up(name: str) -> str:
            if name not in versions:
                raise importlib.metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(importlib.metadata, "version", look_up)

    return use


@pytest.fixture
def no_probes(monkeypatch):
    """Let every probe fail as if nothing were installed."""
    monkeypatch.setattr(doctor, "run_probe", lambda name: Diagnosis(name, "missing", "ModuleNotFoundError", "fix"))


@pytest.mark.slow
def test_this_environment_is_sound():
    began = time.perf_counter()
    checks = diagnose()
    assert [check.name for check in checks] == NAMES
    assert [check for check in checks if check.status == "missing"] == []
    found = {check.name: check.found for check in checks}
    assert found["token hash"] == "0x06eed105b82285fa"
    assert found["table kernels"].startswith("a fused step on the CPU; torch 2.13.0")
    assert "torchrec 1.8.0" in found["training packages"]
    assert time.perf_counter() - began < 60  # some 5 s; the margin is for a machine that does other things too


def test_importing_the_doctor_imports_nothing_heavy():
    code = "import sys, recsys.cli.doctor; print(sorted({'torch', 'mlflow', 'pandas', 'polars'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PYPROJECT.parent
    )
    assert done.stdout.strip() == "[]"


def test_the_packages_are_those_of_the_project():
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    extras = project["optional-dependencies"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[^A-Za-z0-9_-]", line)[0] for line in requirements if not line.startswith("muxrec[")}

    assert set(required("")) == names(project["dependencies"])
    assert set(required("server")) == names(extras["server"])
    assert set(required("train")) == names(extras["train"]) | names(extras["train-core"])
    pins = {f"{name}=={version}" for name, version in required("train-gpu").items() if version}
    assert pins == {"torch==2.13.0", "fbgemm-gpu==1.8.0", "torchrec==1.8.0"}
    assert pins <= {*extras["train-gpu"], *extras["train-core"]}
    assert hash_text(doctor.GOLDEN_TEXT) == doctor.GOLDEN_TOKEN


def test_a_probe_that_crashes_is_a_finding(interpreter):
    interpreter("echo noise; kill -SEGV $$")
    assert run_probe("table kernels") == Diagnosis(
        "table kernels", "missing", "died: Segmentation fault", doctor.REINSTALL
    )


def test_what_a_probe_writes_last_is_what_was_found(interpreter):
    interpreter("echo noise; echo 2.13.0, CPU; echo a warning >&2")
    assert run_probe("table kernels") == Diagnosis("table kernels", "ok", "2.13.0, CPU")
    interpreter("echo 'Traceback' >&2; echo 'OSError: Could not load this library: tbe.so' >&2; exit 1")
    assert run_probe("table kernels").found == "OSError: Could not load this library: tbe.so"


def test_a_probe_that_is_silent_or_stuck_is_a_finding(interpreter, tmp_path):
    interpreter("exit 3")
    assert run_probe("table kernels").found == "exit code 3"
    interpreter("exec sleep 5")
    assert "timed out after 0.2 seconds" in run_probe("table kernels", timeout=0.2).found
    (tmp_path / "python").unlink()
    assert "No such file" in run_probe("table kernels").found


def test_a_folder_that_is_gone_does_not_stop_the_doctor(monkeypatch, no_probes, tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert diagnose()[-1].name == "server packages"


def test_another_hash_is_found(monkeypatch):
    monkeypatch.setattr("features.hashing.hash_text", lambda text: 1)
    with pytest.raises(RuntimeError, match="not the rows of training"):
        doctor.PROBES["token hash"][0]()


def test_without_training_packages_the_environment_still_scores(installed, no_probes):
    installed({name: pin or "1.0" for name, pin in required("").items()})
    checks = {check.name: check for check in diagnose()}
    assert checks["scoring packages"].status == "ok"
    assert checks["training packages"].status == "note"
    assert checks["training packages"].remedy == "make env"
    assert checks["server packages"].status == "note"
    assert "table kernels" not in checks


def test_half_of_the_training_packages_is_missing(installed, no_probes):
    installed({"torch": "2.13.0+cpu"})
    checks = {check.name: check for check in diagnose()}
    for name in ("scoring packages", "training packages", "table kernels", "tracking store"):
        assert checks[name].status == "missing", name
        assert checks[name].remedy, name


@pytest.mark.parametrize(
    ("changes", "status", "found"),
    [
        ({}, "ok", "fbgemm-gpu-cpu 1.8.0"),
        ({"fbgemm-gpu-cpu": None}, "ok", "fbgemm-gpu 1.8.0"),  # the build for CUDA
        ({"fbgemm-gpu-cpu": "1.9.0"}, "missing", "fbgemm-gpu-cpu 1.9.0, expected 1.8.0"),
        ({"torch": "2.12.0+cpu"}, "missing", "torch 2.12.0+cpu, expected 2.13.0"),
        ({"fbgemm-gpu": None, "fbgemm-gpu-cpu": None}, "missing", "no fbgemm-gpu"),
    ],
)
def test_versions_belong_together(installed, no_probes, changes, status, found):
    versions = {name: pin or "1.8.0" for name, pin in required("train").items()} | {"torch": "2.13.0+cpu"} | changes
    installed({name: version for name, version in versions.items() if version})
    check = next(check for check in diagnose() if check.name == "training packages")
    assert check.status == status
    assert found in check.found


def store(monkeypatch: pytest.MonkeyPatch, uri: str) -> Diagnosis:
    """The doctor's line of a tracking store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return run_probe("tracking store")


@pytest.mark.slow
def test_a_sqlite_store_is_tried_and_never_made(tmp_path, monkeypatch):
    path = tmp_path / "mlflow.db"
    assert store(monkeypatch, f"sqlite:///{path}").status == "ok"
    assert not path.exists()
    connect(f"sqlite:///{path}")
    assert store(monkeypatch, f"sqlite:///{path}").found == f"sqlite:///{path}, answers"
    path.write_text("no database at all, but a text of some length")
    broken = store(monkeypatch, f"sqlite:///{path}")
    assert (broken.status, str(path) in broken.found) == ("missing", True)
    uri = f"sqlite:///{tmp_path}/absent/mlflow.db"
    assert store(monkeypatch, uri) == Diagnosis("tracking store", "missing", f"{uri} cannot be written", ANOTHER_STORE)


@pytest.mark.slow
@pytest.mark.parametrize("code", [200, 401, 500])
def test_a_tracking_server_is_asked(code, monkeypatch):
    class Server(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(b"{}" if code == 200 else b"You are not authenticated.")  # as MLflow's own server

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        check = store(monkeypatch, f"http://me:secret@127.0.0.1:{server.server_port}/")
        server.shutdown()
    assert check.status == ("ok" if code == 200 else "missing")
    assert "secret" not in check.found
    assert check.remedy == (None if code == 200 else ANOTHER_STORE)


@pytest.mark.slow
def test_a_store_that_cannot_be_used_has_a_remedy(monkeypatch):
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        port = server.server_port  # free again below, so that nothing answers
    for uri in (f"http://127.0.0.1:{port}", "http://[", "mlruns"):
        check = store(monkeypatch, uri)
        assert (check.status, check.remedy) == ("missing", ANOTHER_STORE), uri
    check = store(monkeypatch, "postgresql://me:secret@127.0.0.1:1/db")
    assert (check.status, "secret" in check.found) == ("missing", False)


def test_the_table_shows_brackets_and_every_status(monkeypatch, muxrec):
    checks = [Diagnosis("a", "ok", "x"), Diagnosis("b", "missing", "no y", "get [y]")]
    monkeypatch.setattr(doctor, "diagnose", lambda: checks)
    lines = [line.split() for line in muxrec("doctor").out.splitlines()]
    assert ["a", "ok", "x"] in lines
    assert ["b", "missing", "no", "y", "get", "[y]"] in lines


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("note", 0), ("missing", 1)])
def test_the_command_fails_only_for_what_is_missing(monkeypatch, muxrec, status, code):
    monkeypatch.setattr(doctor, "diagnose", lambda: [Diagnosis("a", status, "x")])
    assert muxrec("doctor").code == code
    result = muxrec("doctor", "--json")
    assert result.code == code
    assert json.loads(result.out) == [{"name": "a", "status": status, "found": "x", "remedy": None}]
