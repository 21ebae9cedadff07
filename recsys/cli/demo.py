"""`make demo`: MovieLens-100K from its raw ratings to scored probabilities, by the commands that a user would type.

A second call finds the data, the run and the bundle done, and only shows the results.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from recsys.cli.options import console
from recsys.tracking.store import place_of

DATASET = Path("work/movielens-100k")
RUN, BUNDLE, SCORES = (Path("work", kind, "movielens-100k") for kind in ("runs", "bundles", "scores"))
TEST_FILE = DATASET / "raw" / "test.parquet"


def main() -> None:
    """Run the steps that are not done, then print one table."""
    began = time.perf_counter()
    if not (DATASET / "dataset.json").is_file():
        _call("data.movielens", "--out", DATASET)
    if not (RUN / "metrics.json").is_file() or not (BUNDLE / "manifest.json").is_file():
        _call("experiments", "train", "movielens_100k", "--data", DATASET, "--out", RUN)
        _call("experiments", "export", RUN, "--out", BUNDLE, "--overwrite")
    verified = _result("verify", BUNDLE)
    parity = _result("parity", RUN, BUNDLE, "--input", TEST_FILE)
    scored = _result("score", BUNDLE, "--input", TEST_FILE, "--out", SCORES, "--keep", "user_id,item_id", "--overwrite")
    info, metrics, run_info, manifest = (
        json.loads(path.read_text(encoding="utf-8"))
        for path in (DATASET / "dataset.json", RUN / "metrics.json", RUN / "run.json", BUNDLE / "manifest.json")
    )
    test, perf, (rows, width) = metrics["test"], metrics["perf"], (manifest["layout"][n] for n in ("num_rows", "width"))
    table = Table(title="MovieLens-100K, FinalMLP on one multiplexed table", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")  # an address that is cut leads nowhere
    num_rows = ", ".join(f"{name} {split['rows']:,}" for name, split in info["splits"].items())
    imports = f"imported {scored['heavy_modules']}" if scored["heavy_modules"] else "without torch, pandas or mlflow"
    ids = "equal bit for bit" if parity["ids_equal"] else "DIFFER"
    for name, value in {
        "data": f"{num_rows} rows; {len(manifest['registry']['features'])} features",
        "table": f"{rows:,} rows of {width} floats that all features share, {4 * rows * width:,} bytes",
        "test AUC": f"{test['auc']:.4f}   (gAUC {test['gauc']:.4f})",
        "test log loss": f"{test['logloss']:.4f}   (ECE {test['ece']:.4f})",
        "training": f"{perf['samples_per_s']:,.0f} samples/s, {perf['epochs']} epochs, {perf['train_seconds']:.0f} s",
        "bundle": f"{perf['bundle_bytes']:,.0f} bytes in {BUNDLE}, golden rows off by {verified['max_abs_diff']:.1e}",
        "parity": f"trainer and scorer {parity['max_abs_diff']:.1e} apart on {parity['rows']:,} raw rows, ids {ids}",
        "scores": f"{scored['rows']:,} rows in {SCORES}, {imports}",
        "MLflow": f"make ui, then open {place_of(run_info).get('mlflow', 'the address that it prints')}",
        "this call": f"{time.perf_counter() - began:.0f} s",
    }.items():
        table.add_row(name, value)
    console.print(table)


def _call(module: str, *arguments: object, **options: Any) -> str:
    """Print a command and run it; ends the demo where it fails. Returns what it printed, if `stdout` is a pipe."""
    command = ["-m", module, *map(str, arguments)]
    shown = ["muxrec", *command[2:]] if module == "experiments" else ["python", *command]
    console.print(f"$ {' '.join(shown)}", style="bold", soft_wrap=True)
    done = subprocess.run([sys.executable, *command], text=True, **options)
    if done.returncode:
        sys.exit(done.stdout or done.returncode)
    return done.stdout


def _result(*arguments: object) -> dict[str, Any]:
    return json.loads(_call("experiments", *arguments, "--json", stdout=subprocess.PIPE).splitlines()[-1])


if __name__ == "__main__":
    main()
