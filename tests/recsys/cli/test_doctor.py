"""The doctor: sound here, and with a word and a command for everything that can be broken elsewhere."""

import http.server
import importlib.metadata
import json
import re
import sqlite3
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

from features.hashing import hash_text
from recsys.cli import doctor
from recsys.cli.doctor import Check, Findings, diagnose, diagnosis_table, run_probe, store_check

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"
NAMES = [
    *("python", "scoring packages", "token hash", "onnxruntime", "training packages", "torch", "table kernels"),
    *("torchrec", "versions", "onnx export", "mlflow", "tracking store", "server packages", "cores", "memory", "disk"),
    *("bfloat16", "git commit"),
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
    """Let the doctor see the given distributions alone: name to (version, files)."""

    def use(distributions: dict[str, tuple[str, list[str]]]) -> None:
        def look_up(name: str) -> tuple[str, list[str]]:
            if name not in distributions:
                raise importlib.metadata.PackageNotFoundError(name)
            return distributions[name]

        paths = importlib.metadata.PackagePath
        monkeypatch.setattr(importlib.metadata, "version", lambda name: look_up(name)[0])
        monkeypatch.setattr(importlib.metadata, "files", lambda name: [paths(path) for path in look_up(name)[1]])

    return use


@pytest.fixture
def no_probes(monkeypatch):
    """Let every probe fail as if nothing were installed."""
    monkeypatch.setattr(doctor, "run_probe", lambda name: Findings({}, f"ModuleNotFoundError: {name}"))


@pytest.mark.slow
def test_this_environment_is_sound():
    began = time.perf_counter()
    checks = diagnose()
    assert [check.name for check in checks] == NAMES
    assert [check for check in checks if check.status == "missing"] == []
    found = {check.name: check.found for check in checks}
    assert found["token hash"] == "0x06eed105b82285fa"
    assert found["table kernels"] == "a fused step on the CPU"
    assert "belong together" in found["versions"]
    assert time.perf_counter() - began < 60  # some 5 s; the margin is for a machine that does other things too


def test_importing_the_doctor_imports_nothing_heavy():
    code = "import sys, recsys.cli.doctor; print(sorted({'torch', 'mlflow', 'pandas', 'polars'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PYPROJECT.parent
    )
    assert done.stdout.strip() == "[]"


def test_constants_agree_with_the_project():
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    extras = project["optional-dependencies"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[^A-Za-z0-9_-]", line)[0] for line in requirements}

    assert names(project["dependencies"]) == set(doctor.SCORING)
    assert names(extras["server"]) == set(doctor.SERVER)
    known = {*doctor.TRAINING, *doctor.EXPORT, "torchrec", "mlflow"}
    assert names(extras["train-core"]) == known
    pins = {*extras["train-gpu"], *extras["train-core"]}
    assert {f"{name}=={version}" for name, version in doctor.ABI_BOUND.items()} <= pins
    assert "fbgemm-gpu-cpu==" + doctor.ABI_BOUND["fbgemm-gpu"] in extras["train"]
    assert hash_text(doctor.GOLDEN_TEXT) == doctor.GOLDEN_TOKEN


def test_a_probe_that_crashes_is_a_finding(interpreter):
    interpreter("""echo 'muxrec-doctor ["torch", "2.13.0"]'; echo noise; kill -SEGV $$""")
    assert run_probe("training") == Findings({"torch": "2.13.0"}, "died: Segmentation fault")


def test_a_probe_that_raises_hands_over_the_last_line(interpreter):
    interpreter("echo 'Traceback' >&2; echo 'OSError: Could not load this library: tbe.so' >&2; exit 1")
    assert run_probe("training").failure == "OSError: Could not load this library: tbe.so"


def test_a_probe_that_is_silent_or_stuck_is_a_finding(interpreter, tmp_path):
    interpreter("exit 3")
    assert run_probe("training").failure == "exit code 3"
    interpreter("exec sleep 5")
    assert run_probe("training", timeout=0.2).failure == "no answer within 0.2 s"
    (tmp_path / "python").unlink()
    assert "No such file" in str(run_probe("training").failure)


def test_kernels_that_do_not_load_are_missing_and_torch_is_not(monkeypatch):
    findings = Findings({"torch": "2.13.0"}, "OSError: fbgemm_gpu_tbe_utils.so")
    monkeypatch.setattr(doctor, "run_probe", lambda name: findings)
    checks = {check.name: check for check in diagnose()}
    assert checks["torch"].status == "ok"
    assert checks["table kernels"] == Check(
        name="table kernels", status="missing", found="OSError: fbgemm_gpu_tbe_utils.so", remedy=doctor.REINSTALL
    )


def test_a_check_that_fails_itself_is_a_note(monkeypatch, no_probes, tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    checks = {check.name: check for check in diagnose()}
    assert checks["disk"].status == "note"
    assert "cannot tell" in checks["disk"].found


def test_another_hash_is_missing(monkeypatch):
    monkeypatch.setattr(doctor, "run_probe", lambda name: Findings({"token": "0x0000000000000001"}, None))
    check = next(check for check in diagnose() if check.name == "token hash")
    assert check.status == "missing"
    assert "other rows" in check.found


def test_without_training_packages_the_environment_still_scores(installed, no_probes):
    installed(dict.fromkeys(doctor.SCORING, ("1.0", [])))
    checks = {check.name: check for check in diagnose()}
    assert checks["scoring packages"].status == "ok"
    assert checks["training packages"].status == "note"
    assert checks["training packages"].remedy == "make env"
    assert checks["server packages"].status == "note"
    assert "torch" not in checks


def test_half_of_the_training_packages_is_missing(installed, no_probes):
    installed({"torch": ("2.13.0+cpu", [])})
    checks = {check.name: check for check in diagnose()}
    for name in ("scoring packages", "training packages", "torch", "versions", "onnx export", "mlflow"):
        assert checks[name].status == "missing", name
        assert checks[name].remedy, name


KERNELS = ["fbgemm_gpu/__init__.py"]


@pytest.mark.parametrize(
    ("distributions", "status", "found"),
    [
        ({"fbgemm-gpu": ("1.8.0", []), "fbgemm-gpu-cpu": ("1.8.0", KERNELS)}, "ok", "belong together"),
        ({"fbgemm-gpu": ("1.8.0", KERNELS)}, "ok", "belong together"),
        ({"fbgemm-gpu": ("1.8.0", []), "fbgemm-gpu-cpu": ("1.9.0", KERNELS)}, "missing", "expected"),
        ({"fbgemm-gpu": ("1.8.0", KERNELS), "fbgemm-gpu-cpu": ("1.8.0", KERNELS)}, "missing", "two builds"),
        ({}, "missing", "fbgemm-gpu absent"),
    ],
)
def test_versions_belong_together(installed, no_probes, distributions, status, found):
    installed({"torch": ("2.13.0+cpu", []), "torchrec": ("1.8.0", []), **distributions})
    check = next(check for check in diagnose() if check.name == "versions")
    assert check.status == status
    assert found in check.found


def test_a_sqlite_store_is_tried_and_never_made(tmp_path):
    path = tmp_path / "mlflow.db"
    assert store_check(f"sqlite:///{path}").status == "ok"
    assert not path.exists()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE runs (id)")
    assert "writable" in store_check(f"sqlite:///{path}").found
    connection.execute("BEGIN EXCLUSIVE")
    assert store_check(f"sqlite:///{path}").status == "note"
    connection.close()
    path.write_text("no database at all, but a text of some length")
    broken = store_check(f"sqlite:///{path}")
    assert (broken.status, broken.remedy) == ("missing", f"mv '{path}' '{path}.broken'")
    assert store_check(f"sqlite:///{tmp_path}/absent/mlflow.db").status == "missing"
    assert store_check(f"sqlite:///{tmp_path}").status == "missing"


@pytest.mark.parametrize(("code", "status"), [(200, "ok"), (401, "note"), (500, "note")])
def test_a_tracking_server_is_asked(code, status):
    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        check = store_check(f"http://me:secret@127.0.0.1:{server.server_port}/")
        server.shutdown()
    assert check.status == status
    assert "secret" not in check.found
    assert ("MLFLOW_TRACKING_USERNAME" in (check.remedy or "")) == (code == 401)


def test_a_store_that_cannot_be_used_has_a_remedy(monkeypatch):
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        port = server.server_port  # free again below, so that nobody answers
    for uri in (f"http://127.0.0.1:{port}", "http://[", "file:///tmp/mlruns", "mlruns"):
        check = store_check(uri)
        assert (check.status, check.remedy) == ("missing", doctor.LOCAL_STORE), uri
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for uri in ("mlruns", "databricks", "mysql://host/db"):
        assert store_check(uri).status == "note", uri


def test_the_table_shows_brackets_and_every_status():
    checks = [
        Check(name="a", status="ok", found="x"),
        Check(name="b", status="missing", found="no y", remedy="get [y]"),
    ]
    console = Console(width=100)
    with console.capture() as capture:
        console.print(diagnosis_table(checks))
    lines = capture.get().splitlines()
    assert lines[1].split() == ["a", "ok", "x"]
    assert lines[2].split() == ["b", "missing", "no", "y", "get", "[y]"]


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("note", 0), ("missing", 1)])
def test_the_command_fails_only_for_what_is_missing(monkeypatch, muxrec, status, code):
    monkeypatch.setattr(doctor, "diagnose", lambda: [Check(name="a", status=status, found="x")])
    assert muxrec("doctor").code == code
    result = muxrec("doctor", "--json")
    assert result.code == code
    assert json.loads(result.out) == [{"name": "a", "status": status, "found": "x", "remedy": None}]
