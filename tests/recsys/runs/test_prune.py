"""`muxrec prune`: what it refuses, what it writes, and that a killed one goes on to the same result."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import get_args

import pytest
import torch
import yaml

from recsys.checkpoint import load_state
from recsys.cli.prune import METHODS
from recsys.compression import COMPRESSORS
from recsys.embedding.mask import load_mask
from recsys.runs import prune
from recsys.runs.run_directory import RunDirectory
from serving.bundle.quantize import TableDtype

BUDGET = ("--target-bytes", 5000, "--table-dtype", "int8")
QUICK = ("compression.settings.search.generations=2", "compression.settings.tuning_steps=3")
OWN_TABLE = ("--method", "importance", "compression.settings.rows_a_value=null")
OPTEMBED_QUICK = {"importance": (), "optembed": ("search.generations=1", "tuning_steps=2")}
SEARCH = (*QUICK, "compression.settings.supernet=true")


@pytest.fixture
def pruned(project, run, muxrec):
    """The run once more in 5,000 bytes, pruned once."""
    out = project / "small"
    if not (out / "metrics.json").exists():
        result = muxrec("prune", run, "--out", out, *BUDGET, *QUICK, "--no-track", "--json")
        assert result.code == 0, result.err
    return out


def test_prune_writes_an_ordinary_run_directory(run, pruned, muxrec, project):
    result = muxrec("prune", run, "--out", pruned, *BUDGET, *QUICK, "--no-track", "--json")
    assert result.code == 0, result.err
    figures = json.loads(result.out)["compression"]
    assert figures["bytes_after"] <= 5000 < figures["bytes_before"]
    document = yaml.safe_load((pruned / "experiment.yaml").read_text())
    assert document["compression"]["method"] == "optembed"
    assert document["compression"]["table_dtype"] == "int8"
    manifest = json.loads((pruned / "bundle" / "manifest.json").read_text())
    assert manifest["compression"]["before"]["bytes_before"] == figures["bytes_before"]
    assert set(manifest["compression"]["columns_kept"]["main"]) == {"f00", "f01", "f02", "f03", "l00"}
    assert muxrec("verify", pruned / "bundle").code == 0
    assert muxrec("parity", pruned, pruned / "bundle", "--input", project / "test.parquet").code == 0
    evaluated = json.loads(muxrec("evaluate", pruned, "--json").out)
    assert evaluated["auc"] == RunDirectory(pruned).metrics()["test"]["auc"]


def test_export_keeps_the_runs_type_unless_told(run, pruned, muxrec, tmp_path):
    same = json.loads(muxrec("export", pruned, "--out", tmp_path / "same", "--json").out)
    other = json.loads(muxrec("export", pruned, "--out", tmp_path / "other", "--table-dtype", "fp32", "--json").out)
    assert (same["table"], other["table"]) == ("int8", "fp32")
    assert (tmp_path / "same" / "table.safetensors").read_bytes() == (
        pruned / "bundle" / "table.safetensors"
    ).read_bytes()


def test_a_tight_budget_takes_a_smaller_table(run, muxrec, tmp_path, monkeypatch):
    monkeypatch.setattr(
        prune, "MIN_BYTES_PER_VALUE", 1e6
    )  # the values are so few here that the file's header would outweigh them
    result = muxrec("prune", run, "--out", tmp_path / "tiny", "--target-bytes", 5000, "trainer.epochs=1", "--no-track")
    assert result.code == 0, result.err
    assert yaml.safe_load((tmp_path / "tiny" / "experiment.yaml").read_text())["compression"]["method"] == "smaller"
    assert (tmp_path / "tiny" / "bundle" / "table.safetensors").stat().st_size <= 5000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "optembedd"), "unknown method of compression; found 'optembedd'"),
        (("compression.settings.rows_a_valu=3",), "did you mean 'compression.settings.rows_a_value'"),
        (("compression.settings.rows_a_value=-3",), "rows_a_value"),
        (("--target-bytes", "100"), "100 bytes are too few"),
        (("--table-dtype", "int3"), "table_dtype"),
        (("embedding.optimizer=rowwise_adagrad",), "shows its gradients"),
        (("--method", "mixed_dimensions", "--table-dtype", "opq4"), "cut rows short; found opq4 rows"),
        (
            (*OWN_TABLE, "model.mlp1_hidden=[4]"),
            "from the run's weights here; found model.mlp1_hidden: [4], not [20]",
        ),
        ((*OWN_TABLE, "seed=2"), "found seed: 2, not 1; leave it as it is"),
        (("--method", "smaller", "compression.start=as_is"), "in only one way; found compression.start=as_is"),
        (("--method", "opt_fs", "compression.start=finetune"), "opt_fs begins its last training in only one way"),
        (("--method", "robe"), "every value reads 16 floats of ROBE's array; found 1 of 'f02'"),
        (("--method", "quantized", "--target-bytes", "2000"), "with every row; raise --target-bytes"),
        (("compression.method=magnitude",), "found compression.method; give --method"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(run, muxrec, tmp_path, arguments, message):
    result = muxrec("prune", run, "--out", tmp_path / "out", *arguments, "--no-track")
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_low_bit_rows_are_as_many_bytes_as_were_counted(run, muxrec, tmp_path):
    """Without L2 rows that training never reads are stored as well, and the file says which they are."""
    words = ("--no-track", "--json")
    base = tmp_path / "base"
    settings = ("trainer.epochs=1", "embedding.num_rows=3000", "embedding.l2=0")
    data = RunDirectory(run).run_info()["dataset"]
    assert muxrec("train", "mlp", "--data", data, "--out", base, *words, *settings).code == 0
    first = muxrec("prune", base, "--out", tmp_path / "first", "--method", "quantized", *words)
    assert first.code == 0, first.err
    size = int(json.loads(first.out)["compression"]["bytes_after"])
    for num_bytes, code in ((size, 0), (size - 1, 2)):
        out = tmp_path / str(num_bytes)
        other = muxrec("prune", base, "--out", out, "--method", "quantized", "--target-bytes", num_bytes, *words)
        assert other.code == code, other.err


def test_a_hashed_table_is_not_charged_for_a_vocabulary(run, muxrec, tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    settings = ("trainer.epochs=1", "embedding.kind=hashed", "embedding.width=16", "embedding.probes=1")
    data = RunDirectory(run).run_info()["dataset"]
    assert muxrec("train", "mlp", "--data", data, "--out", base, "--no-track", "--json", *settings).code == 0
    budget = ("--target-bytes", 1500, "--table-dtype", "int8")
    result = muxrec("prune", base, "--out", out, *budget, *OWN_TABLE, "--no-track", "--json")
    assert result.code == 0, result.err
    assert 1300 < json.loads(result.out)["compression"]["bytes_after"] <= 1500


def test_settings_of_the_default_method_choose_it_at_any_budget(run, muxrec, tmp_path, monkeypatch):
    monkeypatch.setattr(prune, "MIN_BYTES_PER_VALUE", 1e6)
    result = muxrec("prune", run, "--out", tmp_path / "out", *BUDGET, *QUICK, "trainer.epochs=1", "--no-track")
    assert result.code == 0, result.err
    assert RunDirectory(tmp_path / "out").experiment().compression.method == "optembed"  # pyright: ignore[reportOptionalMemberAccess]


def test_the_help_names_every_method():
    assert set(METHODS.replace("or tables of another shape: ", "").split(", ")) == set(COMPRESSORS)


def test_a_compressed_run_and_another_budget_are_refused(run, pruned, muxrec, tmp_path):
    twice = muxrec("prune", pruned, "--out", tmp_path / "out", "--no-track")
    assert twice.code == 2
    assert "not compressed" in twice.err
    other = muxrec("prune", run, "--out", pruned, "--target-bytes", 4000, "--table-dtype", "int8", "--no-track")
    assert other.code == 2
    assert "another experiment" in other.err


def test_as_is_keeps_the_weights_that_the_mask_was_found_with(run, muxrec, tmp_path):
    out = tmp_path / "out"
    result = muxrec("prune", run, "--out", out, *BUDGET, *OWN_TABLE, "compression.start=as_is", "--no-track", "--json")
    assert result.code == 0, result.err
    before, _ = load_state(run / "checkpoint" / "best.safetensors")
    after = RunDirectory(out).ranker(quantized=False)
    mask = load_mask(out / "mask.safetensors")
    kept = torch.arange(after.embedding.table.shape[1]) < mask.row_widths[:, None]
    name = next(name for name, tensor in before.items() if tensor is not None and tensor.shape == kept.shape)
    assert torch.equal(after.embedding.table.detach(), before[name] * kept)


def test_tuning_that_does_harm_is_undone(dataset, muxrec, tmp_path):
    """With a rate far too high the run ends as one that is not trained at all."""
    run = tmp_path / "learned"
    longer = ("trainer.epochs=4", "trainer.batch_size=64", "trainer.learning_rate=0.01", "embedding.num_rows=500")
    assert muxrec("train", "mlp", "--data", dataset, "--out", run, "--no-track", "--json", *longer).code == 0
    metrics = {}
    for name, setting in (("as_is", "start=as_is"), ("tuned", "learning_rate_share=30")):
        words = (*BUDGET, *OWN_TABLE, f"compression.{setting}", "trainer.epochs=1", "--no-track", "--json")
        result = muxrec("prune", run, "--out", tmp_path / name, *words)
        assert result.code == 0, result.err
        metrics[name] = json.loads(result.out)
    (epoch,) = RunDirectory(tmp_path / "tuned").history()
    assert epoch["valid_auc"] < metrics["as_is"]["valid"]["auc"] - 0.01
    assert metrics["tuned"]["perf"]["best_epoch"] == 0
    for split in ("valid", "test"):
        assert metrics["tuned"][split] == metrics["as_is"][split]


@pytest.mark.parametrize("method", ["importance", "optembed"])
def test_rotated_rows_are_pruned_whole(run, muxrec, tmp_path, method):
    out = tmp_path / "out"
    settings = [f"compression.settings.{text}" for text in ("rows_a_value=null", *OPTEMBED_QUICK[method])]
    budget = ("--target-bytes", 3500, "--table-dtype", "opq4")
    arguments = ("--method", method, *settings, "compression.start=as_is", "--no-track", "--json")
    result = muxrec("prune", run, "--out", out, *budget, *arguments)
    assert result.code == 0, result.err
    assert json.loads(result.out)["compression"]["bytes_after"] <= 3500
    widths = load_mask(out / "mask.safetensors").row_widths
    assert len(set(widths.tolist())) == 2
    assert 0 < int((widths > 0).sum()) < len(widths)


def test_a_run_on_data_that_changed_says_what_to_do(run, dataset, muxrec, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    run_info = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**run_info, "dataset_digest": "0" * 64}))
    result = muxrec("prune", tmp_path / "run", "--out", tmp_path / "out", "--no-track")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "train the run on it first, or prepare it as it was" in result.err


@pytest.mark.parametrize("verb", ["prune", "export"])
def test_help_names_every_type_of_rows(verb, muxrec, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    words = set(re.findall(r"\w+", muxrec(verb, "--help").out))
    assert set(get_args(TableDtype)) <= words


@pytest.mark.slow
def test_a_killed_prune_ends_as_one_that_was_not(run, tmp_path, muxrec):
    """Killed in the supernet, in the search and in the last training; every stage goes on."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert muxrec("prune", run, "--out", whole, *BUDGET, *SEARCH, "--no-track").code == 0
    command = [sys.executable, "-m", "experiments", "prune", run, "--out", cut, *BUDGET, *SEARCH, "--no-track"]
    places = [cut / "supernet" / "log.jsonl", cut / "supernet" / "search.jsonl", cut / "mask.safetensors"]
    for place in places:
        process = subprocess.Popen(
            list(map(str, command)), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=os.environ.copy()
        )
        while process.poll() is None and not place.exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert muxrec("prune", run, "--out", cut, *BUDGET, *SEARCH, "--no-track").code == 0
    for name in ("mask.safetensors", "bundle/table.safetensors", "supernet/search.jsonl"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
