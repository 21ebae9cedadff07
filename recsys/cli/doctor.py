"""`muxrec doctor`: which packages are installed, what works here, and the command that fixes each problem.

Everything heavy, compiled kernels above all, is tried in separate processes, all at once: a crash there is a finding.
"""

import importlib.metadata
import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import typer

from features.errors import InputError
from recsys.cli.options import Json, console
from recsys.report.text import rich_table

GOLDEN_TEXT, GOLDEN_TOKEN = "7", 0x06EED105B82285FA
REINSTALL = "rm -rf .venv && make env"
REINSTALL_SCORING = "pip install --force-reinstall -c constraints.txt -e ."
ANOTHER_STORE = (
    "export MLFLOW_TRACKING_URI=sqlite:///runs.db, or a server's address, with MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD where it asks for them"
)


class Diagnosis(NamedTuple):
    """One line of the table."""

    name: str
    status: Literal["ok", "missing", "note"]
    """`missing` has to be fixed; a `note` is worth knowing."""
    found: str
    remedy: str | None = None


def diagnose() -> list[Diagnosis]:
    """Look at everything; never raises. Takes some seconds, as torch and mlflow are really imported."""
    with ThreadPoolExecutor() as pool:
        probed = {line.name: line for line in pool.map(run_probe, PROBES)}
    lines = [
        Diagnosis("python", "ok", f"{platform.python_version()}, {sys.executable}"),
        _packages("scoring packages", "", REINSTALL_SCORING),
        *(probed[name] for name in ("token hash", "onnxruntime")),
    ]
    if any(_version(name) for name in ("torch", "torchrec", "mlflow")):
        extra = "train-gpu" if _version("fbgemm-gpu-cpu") is None else "train"
        lines.append(_packages("training packages", extra, REINSTALL))
        lines += [probed[name] for name in ("table kernels", "tracking store")]
    else:
        lines.append(Diagnosis("training packages", "note", "none: this environment scores, not trains", "make env"))
    server = _packages("server packages", "server", "pip install -e '.[server]'")
    lines.append(server if server.status == "ok" else server._replace(status="note"))
    return lines


# --- Probes: each runs in a separate process and returns what it finds, or raises.


def _token_hash() -> str:
    from features.hashing import hash_text

    token = hash_text(GOLDEN_TEXT)
    if token != GOLDEN_TOKEN:
        raise RuntimeError(f"{token:#018x} for {GOLDEN_TEXT!r}, not {GOLDEN_TOKEN:#018x}: not the rows of training")
    return f"{token:#018x}"


def _onnxruntime() -> str:
    import onnxruntime

    return f"{onnxruntime.__version__}, {', '.join(onnxruntime.get_available_providers())}"


def _table_kernels() -> str:
    """One lookup and one fused update of a table of two rows."""
    import torch
    import torchrec
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(2, 4, EmbeddingLocation.HOST, ComputeDevice.CPU)], learning_rate=0.5
    )
    (weights,) = table.split_embedding_weights()
    weights.zero_()
    table(torch.tensor([1]), torch.tensor([0, 1])).sum().backward()
    if weights[:, 0].tolist() != [0.0, -0.5]:
        raise RuntimeError(f"a fused step moved rows 0 and 1 to {weights[:, 0].tolist()}, not to [0.0, -0.5]")
    device = f"CUDA, {torch.cuda.device_count()} devices" if torch.cuda.is_available() else "CPU"
    versions = (
        f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads; torchrec {torchrec.__version__}"
    )
    return f"a fused step on the CPU; {versions}"


def _tracking_store() -> str:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    from recsys.tracking.store import connect, is_there, shown_uri, store_errors, tracking_uri

    uri = tracking_uri()
    path = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    if uri.startswith("sqlite:///") and not os.access(path if path.is_file() else path.parent, os.W_OK):
        raise InputError(f"{shown_uri(uri)} cannot be written")
    if is_there(uri):
        with store_errors(f"{shown_uri(uri)} does not answer"):
            connect(uri).search_experiments(max_results=1)
        return f"{shown_uri(uri)}, answers"
    return f"{shown_uri(uri)}, made by the first run"


PROBES: dict[str, tuple[Callable[[], str], str]] = {
    "token hash": (_token_hash, REINSTALL_SCORING),
    "onnxruntime": (_onnxruntime, REINSTALL_SCORING),
    "table kernels": (_table_kernels, REINSTALL),
    "tracking store": (_tracking_store, ANOTHER_STORE),
}
"""Name to the probe, and the remedy if it fails."""


def run_probe(name: str, timeout: float = 60) -> Diagnosis:
    """Run a probe in a separate process: the last line that it writes is what was found."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
    command = [sys.executable, "-m", "recsys.cli.doctor", name]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout, env=environment, stdin=subprocess.DEVNULL)
    except (subprocess.TimeoutExpired, OSError) as error:
        return Diagnosis(name, "missing", str(error), PROBES[name][1])
    lines = (done.stderr if done.returncode else done.stdout).decode(errors="replace").strip().splitlines()
    if done.returncode == 0 and lines:
        return Diagnosis(name, "ok", lines[-1])
    ended = f"died: {signal.strsignal(-done.returncode)}" if done.returncode < 0 else f"exit code {done.returncode}"
    return Diagnosis(name, "missing", lines[-1][:200] if lines and done.returncode > 0 else ended, PROBES[name][1])


# --- Checks that need no separate process.


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def required(extra: str) -> dict[str, str | None]:
    """Packages of an extra of muxrec ("" for the base install) to their exact versions, where those are pinned."""
    pins: dict[str, str | None] = {}
    for text in importlib.metadata.requires("muxrec") or []:
        requirement, _, marker = text.partition(";")
        if marker.strip() == (f"extra == '{extra}'" if extra else ""):
            pin = re.search(r"==([\d.]+)", requirement)
            pins[re.split(r"[^\w.-]", requirement)[0]] = pin[1] if pin else None
    return pins


def _packages(name: str, extra: str, remedy: str) -> Diagnosis:
    """Check that the packages of an extra are installed, in versions that belong together."""
    try:
        pins = required(extra)
    except importlib.metadata.PackageNotFoundError:
        return Diagnosis(name, "missing", "muxrec itself is not installed", remedy)
    versions = {package: _version(package) for package in pins}
    wrong = [f"no {package}" for package, version in versions.items() if version is None]
    for package, version in versions.items():
        if version and pins[package] and version.partition("+")[0] != pins[package]:
            wrong.append(f"{package} {version}, expected {pins[package]}")
    if wrong:
        return Diagnosis(name, "missing", "; ".join(wrong), remedy)
    return Diagnosis(name, "ok", ", ".join(f"{package} {version}" for package, version in versions.items()))


def doctor(as_json: Json = False) -> None:
    """Check the installation, and print a fix for each problem.

    Exit 1 if something is missing.
    """
    lines = diagnose()
    if as_json:
        sys.stdout.write(json.dumps([line._asdict() for line in lines]) + "\n")
    else:
        headings = ["check", "status", "found", "remedy"]
        rows = [(name, status, found, remedy or "") for name, status, found, remedy in lines]
        console.print(rich_table("", headings, rows, left=headings, folding=headings[2:]))
    if any(line.status == "missing" for line in lines):
        raise typer.Exit(1)


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{PROBES[sys.argv[1]][0]()}\n")
    except InputError as error:
        sys.exit(error.expected + (f": {error.found}" if error.found else ""))
