"""`python -m experiments` is the `muxrec` command, and docs/experiments.md does what it says."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from experiments.runs import RUNS
from recsys.cli.app import main
from recsys.cli.options import NamedRuns
from recsys.config import with_overrides
from recsys.runs.run_directory import RunDirectory
from recsys.sweep.search_space import check_space, read_space
from tests.recsys.tracking.test_compare_runs import Page

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
SMALL = ("trainer.epochs=1", "trainer.batch_size=512", "embedding.num_rows=200", "model.hidden=[4]")


def blocks(language: str) -> list[str]:
    """The code blocks of a language on the page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_the_module_is_the_command(dataset, monkeypatch, tmp_path, capsys):
    words = ["train", "mlp", *SMALL, "--data", str(dataset), "--out", str(tmp_path / "a"), "--no-track", "--json"]
    monkeypatch.setattr(sys, "argv", ["muxrec", *words])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(str(ROOT / "experiments" / "__main__.py"), run_name="__main__")
    assert RunDirectory(tmp_path / "a").experiment() == with_overrides(RUNS["mlp"](), SMALL)


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_command_knows_the_runs_that_it_was_given(dataset, monkeypatch, tmp_path, capsys, command):
    monkeypatch.setattr(
        sys, "argv", ["muxrec", command, "nothing", "--data", str(dataset), "--out", str(tmp_path / "c")]
    )
    with pytest.raises(SystemExit, match=r"^2$"):
        main(lambda: NamedRuns({"tiny": RUNS["mlp"]}, {}))
    assert capsys.readouterr().err == "muxrec: unknown run; found 'nothing'; use one of tiny\n"


def test_the_first_script_of_the_page_is_ten_lines():
    lines = [line for line in blocks("python")[0].splitlines() if line]
    assert len(lines) <= 10


def test_both_spaces_of_the_page_are_the_same_and_fit_a_run(tmp_path):
    declared: dict = {}
    exec(blocks("python")[1], declared)
    (tmp_path / "space.yaml").write_text(blocks("yaml")[0])
    read = read_space(tmp_path / "space.yaml")
    assert {key: str(values) for key, values in read.items()} == {
        key: str(values) for key, values in declared["SPACES"]["narrow"].items()
    }
    check_space(read, RUNS["mlp"]())


def test_the_page_names_the_metrics_that_a_run_has(run):
    prefixes = set(re.findall(r"^\| `(\w+)/`", PAGE, flags=re.MULTILINE)) | {"test"}
    assert prefixes == {"train", "val", "test", "perf", "system", "parity"}
    files = set(re.findall(r"`(\w+\.(?:png|md|csv))`", PAGE)) - {"importance.csv"}
    report = {path.name for path in RunDirectory(run).report.iterdir()}
    others = {"kept.png", "trials.csv"}  # of a pruned run, and of a sweep
    assert files - others <= report
    assert {name for name in report if name.endswith(".png")} <= files


@pytest.mark.slow
def test_the_commands_of_the_page_run(dataset, muxrec, monkeypatch, tmp_path):
    """In this process, which has imported everything already; only the sweep starts another."""
    (tmp_path / "narrow.py").write_text(blocks("python")[0])
    (tmp_path / "dataset").symlink_to(dataset)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for line in "".join(blocks("bash")).splitlines():
        program, *words = shlex.split(line)
        if program == "muxrec":
            result = muxrec(*words)
            assert result.code == 0, f"{line}\n{result.err}"
        else:
            assert program == "python"
            monkeypatch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit, match=r"^0$"):
                runpy.run_path(words[0], run_name="__main__")
    rows = Page((tmp_path / "comparison.html").read_text()).rows[1:]
    assert [row for row in rows if row[1].startswith("narrow") and "1 2" in map(str.strip, row)], rows
    assert (tmp_path / "sweeps" / "mlp" / "report" / "best.yaml").is_file()
