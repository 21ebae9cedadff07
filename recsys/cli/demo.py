"""`make demo`: MovieLens-100K from its raw ratings to scored probabilities, by the commands that a user would type.

A second call finds each step done and only shows the results.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from recsys.cli.app import run_command
from recsys.report.text import text_of
from recsys.tracking.store import place_of

WORK = Path("work")
DATASET = WORK / "movielens-100k"
RUN = WORK / "runs" / "movielens-100k"
BUNDLE = WORK / "bundles" / "movielens-100k"
SCORES = WORK / "scores" / "movielens-100k"
TEST_FILE = DATASET / "raw" / "test.parquet"

console = Console(highlight=False)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def demo() -> None:
    """MovieLens-100K from its raw ratings to scored probabilities; every step that is not done, then one table."""
    began = time.perf_counter()
    if not (DATASET / "dataset.json").is_file():
        _run(["-m", "data.movielens", "--out", str(DATASET)])
    if not (RUN / "metrics.json").is_file():
        _muxrec("train", "movielens_100k", "--data", str(DATASET), "--out", str(RUN))
    if not _is_bundle_of_run():
        _muxrec("export", str(RUN), "--out", str(BUNDLE), "--overwrite")
        shutil.rmtree(SCORES, ignore_errors=True)  # those of another model
    verified = _muxrec("verify", str(BUNDLE), "--json")
    parity = _muxrec("parity", str(RUN), str(BUNDLE), "--input", str(TEST_FILE), "--json")
    scored = _muxrec(
        "score", str(BUNDLE), "--input", str(TEST_FILE), "--out", str(SCORES), "--keep", "user_id,item_id", "--json"
    )
    assert verified is not None
    assert parity is not None
    assert scored is not None
    console.print(_summary(verified, parity, scored, time.perf_counter() - began))


def _is_bundle_of_run() -> bool:
    manifest = BUNDLE / "manifest.json"
    if not manifest.is_file():
        return False
    run_id = json.loads((RUN / "run.json").read_text(encoding="utf-8"))["mlflow_run_id"]
    return json.loads(manifest.read_text(encoding="utf-8"))["run_id"] == run_id


def _muxrec(*arguments: str) -> dict[str, Any] | None:
    """One `muxrec` command in a process of its own; its result where it was asked for as JSON."""
    line = _run(["-m", "experiments", *arguments], shown="muxrec " + " ".join(arguments))
    return json.loads(line.splitlines()[-1]) if "--json" in arguments else None


def _run(arguments: list[str], shown: str | None = None) -> str:
    console.print(f"[bold]$ {shown or 'python ' + ' '.join(arguments)}[/bold]")
    keep_output = "--json" in arguments
    done = subprocess.run([sys.executable, *arguments], text=True, stdout=subprocess.PIPE if keep_output else None)
    if done.returncode:
        console.print(done.stdout or "")
        sys.exit(done.returncode)
    return done.stdout or ""


def _summary(verified: dict[str, Any], parity: dict[str, Any], scored: dict[str, Any], seconds: float) -> Table:
    info = json.loads((DATASET / "dataset.json").read_text(encoding="utf-8"))
    metrics = json.loads((RUN / "metrics.json").read_text(encoding="utf-8"))
    manifest = json.loads((BUNDLE / "manifest.json").read_text(encoding="utf-8"))
    layout, test, perf = manifest["layout"], metrics["test"], metrics["perf"]
    table = Table(title="MovieLens-100K, FinalMLP on one multiplexed table", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")  # an address that is cut leads nowhere
    rows = {name: text_of(split["rows"]) for name, split in info["splits"].items()}
    num_floats = layout["num_rows"] * layout["width"]
    bundle_bytes = sum(file["bytes"] for file in manifest["files"].values())
    heavy = scored["heavy_modules"]
    place = place_of(json.loads((RUN / "run.json").read_text(encoding="utf-8")))
    for name, value in {
        "rows": ", ".join(f"{name} {count}" for name, count in rows.items()),
        "features": len(manifest["registry"]["features"]),
        "table": f"{layout['num_rows']:,} rows x {layout['width']} floats, {num_floats * 4:,} bytes",
        "test AUC": f"{test['auc']:.4f}   (gAUC {test['gauc']:.4f})",
        "test logloss": f"{test['logloss']:.4f}",
        "calibration": f"ratio {test['calibration_ratio']:.3f}, ECE {test['ece']:.4f}",
        "training": f"{perf['samples_per_s']:,.0f} samples/s, {perf['epochs']} epochs, {perf['train_seconds']:.0f} s",
        "bundle": f"{bundle_bytes:,} bytes in {BUNDLE}, golden rows off by {verified['max_abs_diff']:.1e}",
        "parity": f"max |trainer - scorer| {parity['max_abs_diff']:.1e} on {parity['rows']:,} raw rows, "
        f"ids {'equal bit for bit' if parity['ids_equal'] else 'DIFFER'}",
        "scores": f"{scored['rows']:,} rows in {SCORES}/, torch, pandas and mlflow "
        + (f"imported: {heavy}" if heavy else "never imported"),
        "MLflow": f"make ui, then open {place.get('mlflow', 'the address that it prints')}",
        "this call": f"{seconds:.0f} s",
    }.items():
        table.add_row(name, str(value))
    return table


if __name__ == "__main__":
    run_command(app, "demo")
