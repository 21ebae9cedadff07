"""docs/guide.md does what it says: its commands are run as they stand, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(script: str, directory: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{directory / 'mlflow.db'}",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=directory, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.slow
def test_the_guide_runs_from_the_raw_file_to_scored_files(tmp_path):
    blocks = BLOCK.findall((ROOT / "docs" / "guide.md").read_text(encoding="utf-8"))
    assert len(blocks) >= 7
    for block in blocks:
        run(block, tmp_path)
    scored = pl.read_parquet(tmp_path / "scores" / "*.parquet")
    assert scored.height == 5_000
    assert scored.columns == ["request", "user", "score"]
    assert (tmp_path / "scores" / "_SUCCESS").exists()
