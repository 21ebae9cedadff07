"""docs/guide.md does what it says: its commands run as they are, in an empty folder."""

import json
import os
import re
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import polars as pl
import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PORT = "18080"
"""As the guide has it."""


def run(script: str, directory: Path) -> str:
    """Standard output of a block, which must succeed."""
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
    return done.stdout


def free_port() -> str:
    """A free port: the guide's own may be taken where the tests run."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return str(server.getsockname()[1])


@pytest.mark.slow
def test_the_guide_runs_from_the_raw_file_to_a_champion_that_answers_requests(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    blocks = BLOCK.findall(text.replace(PORT, free_port()))
    verbs = re.findall(r"^muxrec (\w+)", "".join(blocks), re.MULTILINE)
    steps = "prepare train evaluate sweep compare prune export verify parity score promote serve drift doctor"
    assert list(dict.fromkeys(verbs)) == steps.split()
    printed = {block: run(block, tmp_path) for block in blocks}

    scored = pl.read_parquet(tmp_path / "scores" / "part-*.parquet")
    assert scored.height == 5_000
    assert scored.columns == ["request", "user", "score"]
    assert (tmp_path / "scores" / "_SUCCESS").exists()

    manifest = json.loads((tmp_path / "bundles" / "small" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["files"]["table.safetensors"]["bytes"] <= 10_000

    served = next(out for block, out in printed.items() if "muxrec serve" in block)
    answer = json.loads(served[served.index('{"model"') :].splitlines()[0])
    assert answer["model"] == "dataset"
    assert len(answer["scores"]) == 2
    assert all(0 < score < 1 for score in answer["scores"])
    assert "PSI" in (tmp_path / "drift.html").read_text(encoding="utf-8")
