"""docs/python.md and the README's first example run as they are, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from data.synthetic import planted_frame
from tests.recsys.test_sklearn import EXPECTED_FAILURES

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks_of(name: str) -> list[str]:
    """The Python of a page, block by block."""
    return BLOCK.findall((ROOT / name).read_text(encoding="utf-8"))


def run(code: str, directory: Path) -> str:
    """Output of a script, which must succeed without a warning of ours."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": f"sqlite:///{directory / 'mlflow.db'}",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([sys.executable, "-c", code], cwd=directory, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert "Warning" not in done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_page_runs_from_a_frame_to_an_estimator(tmp_path):
    printed = run("\n".join(blocks_of("docs/python.md")), tmp_path)
    assert "click [('user', 'categorical')" in printed
    assert "did you mean 'trainer.epochs'?" in printed
    for folder in ("dataset", "runs/first", "bundles/first", "bundles/classifier"):
        assert (tmp_path / folder).is_dir()


@pytest.mark.slow
def test_the_readme_trains_from_python_within_its_first_40_lines(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = blocks_of("README.md")[0]
    assert code in "\n".join(text.splitlines()[:40])
    rows = planted_frame(2_000, seed=3, num_features=3, num_distinct=20)
    names = {"label": "click", "f00": "user", "f01": "film"}
    rows.rename(names).with_columns(price=pl.int_range(pl.len()) % 97 / 7).write_parquet(tmp_path / "clicks.parquet")
    run(code, tmp_path)
    assert len([*tmp_path.glob("work/runs/final_mlp-*/metrics.json")]) == 1


def test_the_page_names_the_checks_that_do_not_apply():
    text = " ".join((ROOT / "docs" / "python.md").read_text(encoding="utf-8").split())
    for name, reason in EXPECTED_FAILURES.items():
        assert f"`{name}`, because {reason}" in text
