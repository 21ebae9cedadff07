"""`muxrec doctor`: which packages are installed, what works here, and the command that fixes each problem.

Everything heavy, compiled kernels above all, is tried in separate processes, all at once: a crash there is a finding.
"""

import importlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import typer
from rich.table import Table
from rich.text import Text

from features.errors import InputError
from recsys.cli.options import Json, console

GOLDEN_TEXT, GOLDEN_TOKEN = "7", 0x06EED105B82285FA
TIMEOUT_SECONDS = 60
LOW_MEMORY_GB, LOW_DISK_GB = 4, 5
REINSTALL = "rm -rf .venv && make env"
REINSTALL_SCORING = "pip install --force-reinstall -c constraints.txt -e ."
LOCAL_STORE = "unset MLFLOW_TRACKING_URI  (runs then go to ./mlflow.db)"
LOGIN = "export MLFLOW_TRACKING_USERNAME=... MLFLOW_TRACKING_PASSWORD=..."
_COLOURS = {"ok": "green", "missing": "red", "note": "yellow"}
_MARK = "muxrec-doctor "


class Diagnosis(NamedTuple):
    """One line of the table."""

    name: str
    status: Literal["ok", "missing", "note"]
    """`missing` has to be fixed; a `note` is worth knowing."""
    found: str
    remedy: str | None = None


class Findings(NamedTuple):
    """The values that a probe found before it ended."""

    values: dict[str, str]
    failure: str | None


def diagnose() -> list[Diagnosis]:
    """Look at everything; never raises. Takes some seconds, as torch and mlflow are really imported."""
    with ThreadPoolExecutor() as pool:
        running = {name: pool.submit(run_probe, name) for name in PROBES}
        findings = {name: future.result() for name, future in running.items()}
    scoring, training, tracking = (findings[name] for name in ("scoring", "training", "tracking"))
    lines = [
        Diagnosis("python", "ok", f"{platform.python_version()}, {sys.executable}"),
        _packages("scoring packages", "", REINSTALL_SCORING),
        *(_from_probe(name, scoring, REINSTALL_SCORING) for name in ("token hash", "onnxruntime")),
    ]
    if any(_version(name) for name in ("torch", "torchrec", "mlflow")):
        extra = "train-gpu" if _version("fbgemm-gpu-cpu") is None else "train"
        lines.append(_packages("training packages", extra, REINSTALL))
        lines += [_from_probe(name, training, REINSTALL) for name in ("torch", "table kernels", "torchrec")]
        lines += [_from_probe("mlflow", tracking, "make env"), _tracking_store(tracking)]
    else:
        lines.append(Diagnosis("training packages", "note", "none: this environment scores, not trains", "make env"))
    server = _packages("server packages", "server", "pip install -e '.[server]'")
    lines.append(server if server.status == "ok" else server._replace(status="note"))
    return [*lines, _machine()]


def diagnosis_table(lines: list[Diagnosis]) -> Table:
    """The diagnosis for a terminal.

    >>> diagnosis_table([Diagnosis("python", "ok", "3.11.7")]).row_count
    1
    """
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("check", "status", "found", "remedy"):
        table.add_column(name, overflow="fold", no_wrap=name in ("check", "status"))
    for name, status, found, remedy in lines:
        # As Text, not markup: a remedy may hold brackets.
        table.add_row(Text(name), Text(status, style=_COLOURS[status]), Text(found), Text(remedy or ""))
    return table


# --- Probes: each runs in a separate process and reports what it finds line by line, as what follows may crash.


def _probe_scoring() -> Iterator[tuple[str, str]]:
    from features.hashing import hash_text

    token = hash_text(GOLDEN_TEXT)
    if token != GOLDEN_TOKEN:
        raise RuntimeError(
            f"{token:#018x} for {GOLDEN_TEXT!r}, not {GOLDEN_TOKEN:#018x}: reads other rows than training"
        )
    yield "token hash", f"{token:#018x}"
    import onnxruntime

    yield "onnxruntime", f"{onnxruntime.__version__}, {', '.join(onnxruntime.get_available_providers())}"


def _probe_training() -> Iterator[tuple[str, str]]:
    import torch

    cuda = getattr(torch.version, "cuda", None)
    devices = f"CUDA {cuda} build, {torch.cuda.device_count()} devices" if cuda else "CPU build"
    yield "torch", f"{torch.__version__}, {devices}, {torch.get_num_threads()} threads"
    yield "table kernels", _fused_step()
    import torchrec

    yield "torchrec", torchrec.__version__


def _fused_step() -> str:
    """One lookup and one fused update of a table of two rows."""
    import torch
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(2, 4, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=0.1,
        eps=1e-8,
    )
    (weights,) = table.split_embedding_weights()
    weights.zero_()
    table(torch.tensor([1]), torch.tensor([0, 1])).sum().backward()
    moved = [round(value, 3) for value in weights[:, 0].tolist()]
    if moved != [0.0, -0.1]:
        raise RuntimeError(f"a fused step moved rows 0 and 1 to {moved}, not to [0.0, -0.1]")
    return "a fused step on the CPU"


def _probe_tracking() -> Iterator[tuple[str, str]]:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    yield "mlflow", importlib.import_module("mlflow").__version__
    from recsys.tracking.store import connect, is_there, shown_uri, store_errors, tracking_uri

    uri = tracking_uri()
    path = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    place = path if path.is_file() else path.parent
    if uri.startswith("sqlite:///") and (path.is_dir() or not os.access(place, os.W_OK)):
        raise InputError(f"{shown_uri(uri)} cannot be written")
    if not is_there(uri):
        yield "tracking store", f"{shown_uri(uri)}, made by the first run"
        return
    with store_errors(f"{shown_uri(uri)} does not answer"):
        connect(uri).search_experiments(max_results=1)
    yield "tracking store", f"{shown_uri(uri)}, answers"


PROBES: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
    "scoring": _probe_scoring,
    "training": _probe_training,
    "tracking": _probe_tracking,
}


def run_probe(name: str, timeout: float = TIMEOUT_SECONDS) -> Findings:
    """Run a probe in a separate process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
    command = [sys.executable, "-m", "recsys.cli.doctor", name]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout, env=environment, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return Findings({}, f"no answer within {timeout:g} s")
    except OSError as error:
        return Findings({}, f"{sys.executable}: {error}")
    lines = done.stdout.decode(errors="replace").splitlines()
    values = dict(json.loads(line.removeprefix(_MARK)) for line in lines if line.startswith(_MARK))
    if done.returncode == 0:
        return Findings(values, None)
    if done.returncode < 0:
        return Findings(values, f"died: {signal.strsignal(-done.returncode)}")
    errors = done.stderr.decode(errors="replace").strip().splitlines()
    return Findings(values, errors[-1].strip()[:200] if errors else f"exit code {done.returncode}")


def _from_probe(name: str, findings: Findings, remedy: str) -> Diagnosis:
    """The line of one thing that a probe tries; after one that failed, the others were not tried."""
    if name in findings.values:
        return Diagnosis(name, "ok", findings.values[name])
    return Diagnosis(name, "missing", findings.failure or "nothing", remedy)


def _tracking_store(tracking: Findings) -> Diagnosis:
    failure = tracking.failure or ""
    broken = re.search(r"sqlite:///(\S+):.* not a database", failure)
    remedy = f"mv '{broken[1]}' '{broken[1]}.broken'" if broken else LOCAL_STORE
    return _from_probe("tracking store", tracking, LOGIN if re.search(r"\b40[13]\b", failure) else remedy)


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


def _machine() -> Diagnosis:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    available = re.search(r"MemAvailable: +(\d+)", _read("/proc/meminfo"))
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    sizes = [int(available[1]) / 2**20] if available else []
    sizes += [int(limit) / 2**30] if limit.isdigit() else []
    memory = min(sizes, default=float("nan"))
    disk = shutil.disk_usage(".").free / 1e9
    bfloat16 = "bfloat16" if re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", _read("/proc/cpuinfo")) else "no bfloat16"
    remedy = "lower embedding.num_rows and trainer.batch_size" if memory < LOW_MEMORY_GB else None
    remedy = "work in a folder on a larger disk" if disk < LOW_DISK_GB else remedy
    found = f"{cores} cores, {bfloat16}, {memory:.1f} GB of memory and {disk:.0f} GB of disk free"
    return Diagnosis("machine", "note" if remedy else "ok", found, remedy)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def doctor(as_json: Json = False) -> None:
    """Check the installation, and print a fix for each problem.

    Exit 1 if something is missing.
    """
    lines = diagnose()
    if as_json:
        sys.stdout.write(json.dumps([line._asdict() for line in lines]) + "\n")
    else:
        console.print(diagnosis_table(lines))
    if any(line.status == "missing" for line in lines):
        raise typer.Exit(1)


def main(probe: str) -> None:
    """Run one probe here and write what it finds, line by line."""
    try:
        for key, value in PROBES[probe]():
            sys.stdout.write(f"{_MARK}{json.dumps([key, value])}\n")
            sys.stdout.flush()
    except InputError as error:
        sys.exit(error.expected + (f": {error.found}" if error.found else ""))


if __name__ == "__main__":
    main(sys.argv[1])
