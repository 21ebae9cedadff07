"""`muxrec doctor`: what is installed, what works here, and the command that mends what does not.

Whatever is heavy or may crash (compiled kernels above all) is tried in processes of its own, all at once: one that dies
is a finding, not a traceback.
"""

import http.client
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import typer
from pydantic import BaseModel, ConfigDict
from rich.table import Table
from rich.text import Text

from recsys.cli.options import Json, console

Status = Literal["ok", "missing", "note"]

PARSERS = ("pydantic", "pyyaml", "typer")
SCORING = ("numpy", "onnxruntime", "polars", "polars-hash", "rich", "safetensors", "xxhash", *PARSERS)
TRAINING = ("matplotlib", "numba", "optuna", "pandas", "psutil", "pyarrow", "scipy")
EXPORT = ("onnx", "onnxscript")
SERVER = ("starlette", "uvicorn", "h11", "prometheus-client")
ABI_BOUND = {"torch": "2.13.0", "fbgemm-gpu": "1.8.0", "torchrec": "1.8.0"}
"""As pinned in pyproject.toml; on a CPU `fbgemm-gpu-cpu` stands for `fbgemm-gpu`."""
GOLDEN_TEXT, GOLDEN_TOKEN = "7", 0x06EED105B82285FA

TIMEOUT_SECONDS = 60
STORE_TIMEOUT_SECONDS = 3
LOW_MEMORY_GB, LOW_DISK_GB = 4, 5
REINSTALL = "rm -rf .venv && make env"
LOCAL_STORE = "unset MLFLOW_TRACKING_URI  (runs then go to ./mlflow.db)"
_COLOURS = {"ok": "green", "missing": "red", "note": "yellow"}
_MARK = "muxrec-doctor "


class Check(BaseModel):
    """One line of the diagnosis."""

    model_config = ConfigDict(frozen=True)

    name: str
    status: Status
    """`missing` is something that has to be mended; a `note` is worth knowing."""
    found: str
    remedy: str | None = None
    """The command that mends it."""


class Findings(NamedTuple):
    """What a probe found before it ended."""

    values: dict[str, str]
    failure: str | None
    """Why it ended early."""


def diagnose() -> list[Check]:
    """Look at everything; never raises. Takes some seconds, as torch and mlflow are really imported."""
    with ThreadPoolExecutor() as pool:
        running = {name: pool.submit(run_probe, name) for name in PROBES}
        findings = {name: future.result() for name, future in running.items()}
    checks = [_python(), _packages("scoring packages", SCORING, "pip install -e ."), *_scoring(findings["scoring"])]
    if any(_version(name) for name in ("torch", "torchrec", "mlflow")):
        checks += [_packages("training packages", TRAINING, "make env"), *_training(findings["training"])]
        checks += [_versions(), _packages("onnx export", EXPORT, "make env"), *_tracking(findings["tracking"])]
    else:
        found = "none: this environment scores, and does not train"
        checks.append(Check(name="training packages", status="note", found=found, remedy="make env"))
    server = _packages("server packages", SERVER, "pip install -e '.[server]'")
    checks.append(server if server.status == "ok" else server.model_copy(update={"status": "note"}))
    local = {"cores": _cores, "memory": _memory, "disk": _disk, "bfloat16": _bfloat16, "git commit": _commit}
    return [*checks, *(_guarded(name, look) for name, look in local.items())]


def _guarded(name: str, look: Callable[[], Check]) -> Check:
    """A check that fails itself, in a folder that was removed, say, is a note."""
    try:
        return look()
    except Exception as error:
        return Check(name=name, status="note", found=f"cannot tell: {error}")


def diagnosis_table(checks: list[Check]) -> Table:
    """The checks for a terminal.

    >>> diagnosis_table([Check(name="python", status="ok", found="3.11.7")]).row_count
    1
    """
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("check", "status", "found", "remedy"):
        table.add_column(name, overflow="fold", no_wrap=name in ("check", "status"))
    for check in checks:
        # As Text, not markup: a remedy may hold brackets.
        status = Text(check.status, style=_COLOURS[check.status])
        table.add_row(Text(check.name), status, Text(check.found), Text(check.remedy or ""))
    return table


# --- Probes: each runs in a process of its own and hands over what it found, line by line.


def _probe_scoring() -> Iterator[tuple[str, str]]:
    from features.hashing import hash_text

    yield "token", f"{hash_text(GOLDEN_TEXT):#018x}"
    import onnxruntime

    yield "onnxruntime", f"{onnxruntime.__version__}, {', '.join(onnxruntime.get_available_providers())}"


def _probe_training() -> Iterator[tuple[str, str]]:
    import torch

    cuda = getattr(torch.version, "cuda", None)
    devices = f"CUDA {cuda} build, {torch.cuda.device_count()} devices" if cuda else "CPU build"
    yield "torch", f"{torch.__version__}, {devices}, {torch.get_num_threads()} threads"
    yield "kernels", _fused_step()
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
    from recsys.tracking.tracker import tracking_uri

    yield "uri", tracking_uri()


PROBES: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
    "scoring": _probe_scoring,
    "training": _probe_training,
    "tracking": _probe_tracking,
}


def run_probe(name: str, timeout: float = TIMEOUT_SECONDS) -> Findings:
    """Run a probe in a process of its own."""
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


def _from_probe(name: str, findings: Findings, key: str, remedy: str) -> Check:
    """The check of one thing that a probe tries; after the one that failed, the others were not tried."""
    if key in findings.values:
        return Check(name=name, status="ok", found=findings.values[key])
    return Check(name=name, status="missing", found=findings.failure or "nothing", remedy=remedy)


def _scoring(findings: Findings) -> list[Check]:
    token = _from_probe("token hash", findings, "token", "pip install --force-reinstall -c constraints.txt -e .")
    expected = f"{GOLDEN_TOKEN:#018x}"
    if token.status == "ok" and token.found != expected:
        found = f"{token.found} for {GOLDEN_TEXT!r}, not {expected}: other rows would be read than trained"
        token = Check(name=token.name, status="missing", found=found, remedy="pip install polars-hash==0.9.3")
    remedy = "pip install --force-reinstall -c constraints.txt onnxruntime"
    return [token, _from_probe("onnxruntime", findings, "onnxruntime", remedy)]


def _training(findings: Findings) -> list[Check]:
    torch = _from_probe("torch", findings, "torch", REINSTALL)
    if torch.status != "ok":  # nothing else can be tried
        return [torch]
    kernels = _from_probe("table kernels", findings, "kernels", REINSTALL)
    return [torch, kernels, _from_probe("torchrec", findings, "torchrec", REINSTALL)]


def _tracking(findings: Findings) -> list[Check]:
    if "uri" not in findings.values:
        return [_from_probe("mlflow", findings, "uri", "make env")]
    mlflow = Check(name="mlflow", status="ok", found=_version("mlflow") or "unknown version")
    return [mlflow, _guarded("tracking store", lambda: store_check(findings.values["uri"]))]


# --- Checks that need no process of their own.


def _python() -> Check:
    return Check(name="python", status="ok", found=f"{platform.python_version()}, {sys.executable}")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages(name: str, packages: tuple[str, ...], remedy: str) -> Check:
    versions = {package: _version(package) for package in packages}
    absent = [package for package, version in versions.items() if version is None]
    if absent:
        return Check(name=name, status="missing", found=f"no {', '.join(absent)}", remedy=remedy)
    return Check(name=name, status="ok", found=", ".join(f"{package} {v}" for package, v in versions.items()))


def _versions() -> Check:
    """The compiled trio: the versions that belong together, and one owner of the package `fbgemm_gpu`."""
    kernels = [name for name in ("fbgemm-gpu", "fbgemm-gpu-cpu") if _owns_kernels(name)]
    found = {name: _version(name) for name in ("torch", *(kernels or ["fbgemm-gpu"]), "torchrec")}
    text = ", ".join(f"{name} {version or 'absent'}" for name, version in found.items())
    expected = {name: ABI_BOUND[name.removesuffix("-cpu")] for name in found}
    public = {name: (version or "").partition("+")[0] for name, version in found.items()}
    if len(kernels) > 1:
        text += ": two builds own one package"
    elif public != expected:
        text += f"; expected {', '.join(f'{name} {version}' for name, version in expected.items())}"
    else:
        return Check(name="versions", status="ok", found=f"{text} belong together")
    return Check(name="versions", status="missing", found=text, remedy=REINSTALL)


def _owns_kernels(name: str) -> bool:
    """Whether a distribution brings the package itself; the stand-in in third_party does not."""
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        return False
    return any(file.parts[0] == "fbgemm_gpu" for file in files)


def store_check(uri: str) -> Check:
    """Whether a tracking store can be reached and written; makes nothing.

    >>> store_check("postgresql://me:secret@host/db").found
    'postgresql://***@host/db, not tried'
    """
    from recsys.tracking.store import shown_uri, ui_address  # here, as it imports polars

    shown = shown_uri(uri)
    name = "tracking store"
    kind = uri.partition(":")[0] if "://" in uri or uri == "databricks" else "file"
    if kind == "sqlite":
        return _sqlite_check(name, uri, shown)
    if kind in ("http", "https"):
        return _server_check(name, ui_address(uri), shown)
    if kind == "file" and os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() != "true":
        found = f"{shown}, a store in plain files, which MLflow refuses"
        return Check(name=name, status="missing", found=found, remedy=LOCAL_STORE)
    return Check(name=name, status="note", found=f"{shown}, not tried")


def _sqlite_check(name: str, uri: str, shown: str) -> Check:
    path = Path(uri.removeprefix("sqlite:///").partition("?")[0] or ".").absolute()
    if path.is_file():
        try:
            connection = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=1)
            connection.execute("BEGIN IMMEDIATE")
            connection.close()
        except sqlite3.Error as error:
            if "locked" in str(error):
                return Check(name=name, status="note", found=f"{shown}, in use by another process")
            remedy = f"chmod u+w '{path}'" if "readonly" in str(error) else f"mv '{path}' '{path}.broken'"
            return Check(name=name, status="missing", found=f"{shown}, {error}", remedy=remedy)
        return Check(name=name, status="ok", found=f"{shown}, writable")
    if path.is_dir() or not path.parent.is_dir():
        found = f"{shown}, no file can be there"
        return Check(name=name, status="missing", found=found, remedy=LOCAL_STORE)
    if not os.access(path.parent, os.W_OK):
        found = f"{shown}, its folder is not writable"
        return Check(name=name, status="missing", found=found, remedy=f"chmod u+w '{path.parent}'")
    return Check(name=name, status="ok", found=f"{shown}, made by the first run")


def _server_check(name: str, address: str, shown: str) -> Check:
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/health", timeout=STORE_TIMEOUT_SECONDS):
            return Check(name=name, status="ok", found=f"{shown}, answers")
    except urllib.error.HTTPError as error:
        remedy = (
            "export MLFLOW_TRACKING_USERNAME=... MLFLOW_TRACKING_PASSWORD=..." if error.code in (401, 403) else None
        )
        return Check(name=name, status="note", found=f"{shown}, answers {error.code}", remedy=remedy)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = str(getattr(error, "reason", error))
        return Check(name=name, status="missing", found=f"{shown}, {reason}", remedy=LOCAL_STORE)


def _cores() -> Check:
    total = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    threads = os.environ.get("OMP_NUM_THREADS")
    found = f"{usable} of {total}" + (f", OMP_NUM_THREADS={threads}" if threads else "")
    return Check(name="cores", status="ok", found=found)


def _memory() -> Check:
    facts = _proc("/proc/meminfo")
    if "MemTotal" not in facts or "MemAvailable" not in facts:
        return Check(name="memory", status="note", found="unknown on this system")
    total, free = (int(facts[key].split()[0]) / 2**20 for key in ("MemTotal", "MemAvailable"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = _read(path).strip()
        if limit.isdigit():
            total = min(total, int(limit) / 2**30)
    free = min(free, total)
    remedy = "lower embedding.num_rows and trainer.batch_size" if free < LOW_MEMORY_GB else None
    found = f"{free:.1f} of {total:.1f} GB free"
    return Check(name="memory", status="note" if remedy else "ok", found=found, remedy=remedy)


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    remedy = "work in a folder on a larger disk" if free < LOW_DISK_GB else None
    return Check(name="disk", status="note" if remedy else "ok", found=f"{free:.0f} GB free here", remedy=remedy)


def _bfloat16() -> Check:
    facts = _proc("/proc/cpuinfo")
    flags = facts.get("flags", facts.get("Features", "")).split()
    found = [flag for flag in ("avx512_bf16", "amx_bf16", "bf16") if flag in flags]
    return Check(name="bfloat16", status="ok" if found else "note", found=", ".join(found) or "not in this processor")


def _commit() -> Check:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return Check(name="git commit", status="note", found="not a git checkout")
    return Check(name="git commit", status="ok", found=done.stdout.strip())


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _proc(path: str) -> dict[str, str]:
    """`name: value` lines of a file; the first of each name."""
    facts: dict[str, str] = {}
    for line in _read(path).splitlines():
        name, separator, value = line.partition(":")
        if separator:
            facts.setdefault(name.strip(), value.strip())
    return facts


def main(probe: str) -> None:
    """Run one probe here and write what it finds, line by line."""
    for key, value in PROBES[probe]():
        sys.stdout.write(f"{_MARK}{json.dumps([key, value])}\n")
        sys.stdout.flush()  # what follows may crash


if __name__ == "__main__":
    main(sys.argv[1])


def doctor(as_json: Json = False) -> None:
    """Say what is installed, what works here, and the remedy for what does not."""
    checks = diagnose()
    if as_json:
        sys.stdout.write(json.dumps([check.model_dump() for check in checks]) + "\n")
    else:
        console.print(diagnosis_table(checks))
    if any(check.status == "missing" for check in checks):
        raise typer.Exit(1)
