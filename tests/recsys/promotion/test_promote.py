"""The gate: what passes, what does not, what is written down; twice, against a moving champion, and on other rows."""

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

import recsys.promotion.promote as gate
from features.dataset.info import read_dataset
from features.errors import InputError
from recsys.evaluation.metrics import auc
from recsys.evaluation.paired_difference import ONE_SIDED_95, Difference
from recsys.evaluation.predictions import Predictions
from recsys.export import export_bundle
from recsys.promotion.compare_models import ModelComparison, TestSet, compare_models, comparison_table, score_test
from recsys.promotion.promote import Margins, promote
from recsys.runs.evaluate import export_run
from recsys.runs.parity import parity_of
from recsys.runs.run_directory import RunDirectory
from recsys.tracking.model_registry import ModelRegistry
from serving.bundle.bundle import Bundle
from serving.bundle.manifest import PriorCorrection
from serving.scorer import Scorer
from tests.conftest import SMALL
from tests.planted import write_dataset

WIDE = Margins(auc=0.5, calibration=1.0)


@pytest.fixture
def other(project: Path, dataset: Path, muxrec) -> Path:
    """Another run on the same data, trained once: of another seed, and hardly at all."""
    out = project / "other"
    if not (out / "metrics.json").exists():
        settings = (*SMALL, "seed=9", "trainer.epochs=1", "trainer.learning_rate=1e-5")
        result = muxrec("train", "final_mlp", "--data", dataset, "--out", out, "--no-track", "--json", *settings)
        assert result.code == 0, result.err
    return out


def difference(loss: float, error: float) -> Difference:
    """A challenger whose AUC is lower by `loss`, known to one standard error."""
    reach = ONE_SIDED_95 * error
    return Difference("auc", 0.8, 0.8 - loss, -loss, error, -loss - reach, -loss + reach, True)


@pytest.mark.parametrize(
    ("loss", "error", "outcome", "said"),
    [
        (-0.01, 0.001, "passed", "may lose 0.001"),  # better for sure
        (0.0005, 0.0001, "passed", "may lose 0.001"),  # worse for sure, and within the margin
        (0.0, 0.01, "failed", "1,000 rows cannot tell: some 270,554 rows or a wider margin"),
        (0.002, 0.01, "failed", "may lose 0.001"),  # more rows would not help
        (0.01, 0.0001, "failed", "may lose 0.001"),  # worse for sure
    ],
)
def test_a_challenger_has_to_prove_it(loss: float, error: float, outcome: str, said: str):
    check = gate._not_worse("auc", difference(loss, error), 0.001, 1000)
    assert check.outcome == outcome
    assert check.note.endswith(said)


def test_the_rows_that_it_asks_for_would_do():
    """0.001 = 1.645 x 0.01 x sqrt(1000 / rows)."""
    assert pytest.approx(270_554, abs=1) == 1000 * (ONE_SIDED_95 * 0.01 / 0.001) ** 2


@pytest.mark.slow
def test_the_first_one_passes_and_again_changes_nothing(run: Path, project: Path, muxrec):
    arguments = ("promote", run, "--name", "first", "--input", project / "test.parquet", "--json")
    result = muxrec(*arguments)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert (found["version"], found["champion"], found["passed"]) == ("1", None, True)
    outcomes = {check["name"]: (check["outcome"], check["note"]) for check in found["checks"]}
    assert outcomes["auc"] == ("passed", "no champion yet")
    assert outcomes["verify"][0] == outcomes["parity"][0] == "passed"
    assert "500 raw rows: ids equal" in outcomes["parity"][1]
    registry = ModelRegistry.open()
    champion = registry.holder("first", "champion")
    assert champion is not None
    assert champion.number == "1"
    assert champion.tags["validation_status"] == "passed"
    assert champion.tags["muxrec.model_id"] == Bundle.open(run / "bundle").model_id

    # The run had no MLflow run; now it has one, with its metrics, at its end.
    run_info = RunDirectory(run).run_info()
    tracked = registry.client.get_run(run_info["mlflow_run_id"])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["seed"] == str(RunDirectory(run).experiment().seed)
    assert tracked.data.params["model.name"] == "final_mlp"
    assert tracked.data.metrics["test/auc"] == pytest.approx(RunDirectory(run).metrics()["test"]["auc"])

    again = json.loads(muxrec(*arguments).out)
    assert again["version"] == "1"
    assert registry.holder("first", "champion") == champion  # its tags, too
    assert len(registry.client.search_model_versions("name = 'first'")) == 1


@pytest.mark.slow
def test_a_worse_one_does_not_pass_unless_it_may(run: Path, other: Path, project: Path, muxrec):
    assert promote(run, alias="champion", name="worse").passed
    result = muxrec("promote", other, "--name", "worse")
    assert result.code == 1
    assert "failed" in result.out
    registry = ModelRegistry.open()
    champion = registry.holder("worse", "champion")
    assert champion is not None
    assert champion.number == "1"
    tags = registry.version("worse", "2").tags
    assert tags["validation_status"] == "failed"
    assert tags["gate.auc"].startswith("failed: 0.")
    assert tags["gate.champion"] == "1"
    assert "500 rows of" in tags["gate.test"]

    found = promote(other, alias="champion", name="worse", margins=WIDE)
    assert found.passed
    assert found.version.number == "2"
    moved = registry.holder("worse", "champion")
    assert moved is not None
    assert moved.number == "2"
    assert moved.tags["validation_status"] == "passed"
    # What was measured is what the metrics say, but for a pair of rows or two that rounding turns round.
    assert found.comparison is not None
    metrics = [RunDirectory(path).metrics()["test"] for path in (run, other)]
    assert found.comparison.metrics["auc"] == pytest.approx([one["auc"] for one in metrics], abs=1e-4)


@pytest.mark.slow
def test_another_alias_has_a_champion_of_its_own(run: Path, other: Path):
    assert promote(run, alias="champion", name="aliases").passed
    found = promote(other, alias="challenger", name="aliases")
    assert found.passed
    assert found.champion is None
    with pytest.raises(InputError, match="expected a name that an alias may have; found 'latest'"):
        promote(other, alias="latest", name="aliases")


@pytest.mark.slow
@pytest.mark.parametrize("table_dtype", ["int8", "int4"])
def test_a_rounded_table_is_judged_as_it_is_served(run: Path, project: Path, tmp_path: Path, table_dtype: str):
    export_run(run, tmp_path / "small", table_dtype=table_dtype)
    raw = [str(project / "test.parquet")]
    assert not parity_of(run, tmp_path / "small", raw)["ok"]  # `muxrec parity` shows what rounding costs
    for inputs, rows in ((raw, "500 raw rows"), ([], "64 golden rows")):
        check = gate._parity(run, tmp_path / "small", inputs)
        assert check.outcome == "passed", check.note
        assert check.note.startswith(f"{rows}: ids equal, probabilities differ by ")
    # Another model's bundle does not pass, with raw rows or without.
    ranker = RunDirectory(run).ranker()
    ranker.embedding.table.data.mul_(1.5)
    export_bundle(ranker, RunDirectory(run).registry(), tmp_path / "other", model="final_mlp", table_dtype="int8")
    for inputs in (raw, []):
        assert gate._parity(run, tmp_path / "other", inputs).outcome == "failed"


def test_raw_rows_have_all_their_negatives_unless_it_is_said(tmp_path: Path):
    golden = Bundle.open(Path(__file__).parents[2] / "golden" / "bundle")
    correction = PriorCorrection(negative_rate=0.1)
    scorer = Scorer(replace(golden, manifest=golden.manifest.model_copy(update={"prior_correction": correction})))
    (tmp_path / "dataset.json").touch()
    assert TestSet.of(["rows.parquet"], scorer, None).negative_rate == 1.0
    assert TestSet.of([str(tmp_path)], scorer, None).negative_rate == 0.1
    assert TestSet.of([str(tmp_path)], scorer, 0.5).negative_rate == 0.5
    for rate in (0.0, 1.5, float("nan")):
        with pytest.raises(InputError, match="share of negatives must be above 0 and at most 1; found"):
            TestSet.of(["rows.parquet"], scorer, rate)


def test_without_a_test_split_nothing_is_judged_on_the_validation_rows(tmp_path: Path):
    golden = Bundle.open(Path(__file__).parents[2] / "golden" / "bundle")
    rows = golden.golden.drop("probability").with_columns(pl.Series("label", [0, 1] * 32))
    data = write_dataset(tmp_path, golden.registry, {"train": rows, "valid": rows})
    scorer: Any = SimpleNamespace(registry=read_dataset(data)[1])
    with pytest.raises(InputError, match=r"expected a test split; found train, valid; give other rows .* as --test"):
        score_test([scorer, scorer], TestSet((str(data),), 1.0))


@pytest.mark.slow
def test_failed_parity_and_failed_golden_rows_keep_the_alias(run: Path, project: Path, monkeypatch: pytest.MonkeyPatch):
    inputs = [str(project / "test.parquet")]
    with monkeypatch.context() as patch:
        failed = {"ok": False, "ids_equal": False, "rows": 5, "max_abs_diff": 0.5}
        patch.setattr(gate, "parity_of", lambda *_, **__: failed)
        found = promote(run, alias="champion", name="parity", inputs=inputs)
        assert not found.passed
        assert found.checks[1].note == "5 raw rows: ids differ, probabilities differ by 5.0e-01"
    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "verify", lambda scorer: 0.1)
        assert not promote(run, alias="champion", name="parity").passed
    assert ModelRegistry.open().holder("parity", "champion") is None


@pytest.mark.slow
def test_a_champion_that_changes_meanwhile_is_compared_with_again(
    run: Path, other: Path, monkeypatch: pytest.MonkeyPatch
):
    """While the first challenger is judged, another promotion moves the alias to a better model."""
    assert promote(other, alias="champion", name="race").passed
    registry = ModelRegistry.open()
    better = promote(run, alias="candidate", name="race").version
    compared: list[str] = []
    compare = gate.compare_scorers

    def slow(champion: Scorer, challenger: Scorer, test: TestSet) -> Any:
        compared.append(champion.bundle.model_id)
        found = compare(champion, challenger, test)
        if len(compared) == 1:
            registry.set_alias("champion", better)
        return found

    monkeypatch.setattr(gate, "compare_scorers", slow)
    # A third version: the other run's bundle in halves, which is as good as the first champion and worse than `better`.
    export = other.parent / "other-fp16"
    export_run(other, export, table_dtype="fp16", overwrite=export.exists())
    found = promote(other, alias="champion", name="race", bundle=export, margins=Margins(auc=0.01, calibration=1.0))
    assert compared == [Bundle.open(path / "bundle").model_id for path in (other, run)]
    assert not found.passed
    assert found.champion is not None
    assert found.champion.number == better.number
    champion = registry.holder("race", "champion")
    assert champion is not None
    assert champion.number == better.number


def test_no_figure_of_a_comparison_is_cut_off_in_a_narrow_terminal():
    """Ids take two lines instead."""
    names = ("auc", "normalized_entropy", "calibration_ratio")
    differences = [Difference(name, 0.61803, 0.51413, -0.1039, 0.01, -0.12345, -0.08435, True) for name in names]
    run_info = {"model": "final_mlp", "model_id": "0123456789abcdef", "run_id": "0123456789abcdef" * 2}
    test = {"name": "dataset test", "rows": 1000, "digest": "d" * 32}
    metrics = {name: (0.61803, 0.51413) for name in names}
    comparison = ModelComparison(
        champion=run_info, challenger=run_info, test=test, metrics=metrics, differences=differences
    )
    written = io.StringIO()
    Console(width=80, file=written).print(comparison_table(comparison))
    text = written.getvalue()
    assert "…" not in text
    for shown in ("0.61803", "-0.10390", "-0.12345", "-0.08435", *names):
        assert text.count(shown) >= (1 if shown in names else 3)


@pytest.mark.slow
def test_raw_rows_are_a_test_set_too(run: Path, other: Path, project: Path, dataset: Path, muxrec, tmp_path: Path):
    raw = project / "test.parquet"
    pl.read_parquet(raw).drop("true_probability").write_csv(tmp_path / "test.csv")
    by_dataset = compare_models(run, other)
    for source in (raw, tmp_path / "test.csv"):
        found = compare_models(run / "bundle", other, test=[source])
        assert found.metrics["auc"] == pytest.approx(by_dataset.metrics["auc"], abs=1e-4)
        assert found.differences[0].standard_error == pytest.approx(by_dataset.differences[0].standard_error, rel=1e-2)
    labels = pl.read_parquet(raw)["label"].to_numpy()
    scores = Scorer(run / "bundle").score(pl.read_parquet(raw))
    assert by_dataset.metrics["auc"][0] == pytest.approx(auc(Predictions.of(labels, scores)), abs=1e-4)
    with pytest.raises(InputError, match="a comparison needs test rows"):
        compare_models(run / "bundle", other / "bundle")
    golden = Path(__file__).parents[2] / "golden" / "bundle"
    with pytest.raises(InputError, match="expected the registry of model"):
        compare_models(golden, run, test=[dataset])


@pytest.mark.slow
def test_models_of_other_shares_of_negatives_are_compared_at_the_rows_own(run: Path, project: Path, muxrec, tmp_path):
    """The same weights behind another correction: on the same rows both say the same."""
    assert muxrec("export", run, "--out", tmp_path / "corrected", "--negative-rate", "0.1").code == 0
    plain, corrected = Scorer(run / "bundle"), Scorer(tmp_path / "corrected")
    found = score_test([plain, corrected], TestSet((str(project / "test.parquet"),), 0.1))
    raw = pl.read_parquet(project / "test.parquet")
    assert found.probabilities[1] == pytest.approx(plain.score(raw), abs=1e-6)
    assert not np.allclose(found.probabilities[0], found.probabilities[1])
