"""`muxrec promote`: register a run's bundle as a model version, and move an alias to it if it passes the checks.

The checks: golden rows score as in training, trainer and scorer agree on raw rows, and neither AUC nor calibration is
worse than the champion's on the same test rows by more than a margin. The unfavourable end of a 95 % interval must be
inside the margin, so a model does not pass by luck on a small test set.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from rich.table import Table

from features.errors import InputError
from features.files import made_in_cache, take_lock
from recsys.evaluation.paired_difference import Difference
from recsys.promotion.compare_models import ModelComparison, TestSet, compare_scorers
from recsys.report.text import rich_table
from recsys.runs.finish import mlflow_names
from recsys.runs.parity import parity_of
from recsys.runs.run_directory import RunDirectory
from recsys.tracking.logged_model import log_model
from recsys.tracking.model_registry import ModelRegistry, RegisteredVersion
from recsys.tracking.tracker import Tracker
from serving.bundle import Bundle
from serving.scorer import Scorer

MAX_ROUNDS = 5
"""Comparisons before a promotion gives up, if other promotions keep changing the champion."""


class Margins(BaseModel):
    """Allowed loss of a challenger against the champion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    auc: float = Field(default=0.001, ge=0)
    """Allowed loss of AUC; CTR papers call .001 a difference that matters."""
    calibration: float = Field(default=0.01, ge=0)
    """Allowed loss of calibration: wrongly placed clicks as a share of all clicks."""


class PromotionCheck(NamedTuple):
    """One check, and whether the model passed it."""

    name: str
    outcome: Literal["passed", "failed"]
    note: str


@dataclass(frozen=True)
class Promotion:
    """Result of a promotion."""

    store: str
    """Address of the MLflow store, without password."""
    version: RegisteredVersion
    alias: str
    champion: RegisteredVersion | None
    """Version that had the alias before; None for the first promotion."""
    checks: list[PromotionCheck]
    comparison: ModelComparison | None

    @property
    def passed(self) -> bool:
        """True if every check passed."""
        return all(check.outcome == "passed" for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        return {
            "store": self.store,
            "name": self.version.name,
            "version": self.version.number,
            "alias": self.alias,
            "champion": _number(self.champion),
            "passed": self.passed,
            "checks": [check._asdict() for check in self.checks],
            "comparison": self.comparison.as_json() if self.comparison else None,
        }


def promote(
    path: Path,
    *,
    alias: str,
    name: str | None = None,
    bundle: Path | None = None,
    test: Sequence[str] = (),
    negative_rate: float | None = None,
    inputs: Sequence[str] = (),
    margins: Margins | None = None,
) -> Promotion:
    """Register a finished run's bundle (or another export of it), check it, and move the alias to it if it passes.

    Defaults: `name` of the registered model is the dataset's; `test` is the run's dataset; `negative_rate`, the share
    of the negatives that the test rows kept, is that of `TestSet.of`; `inputs`, raw rows for the parity check, are the
    golden ones. A second call changes nothing. Raises `InputError` for models and rows that cannot be checked.
    """
    run, margins = RunDirectory(path), margins or Margins()
    run.metrics()
    scorer = Scorer(bundle or run.bundle)
    name = name or str(scorer.bundle.profile.get("dataset") or run.experiment().name)
    gap, allowed = scorer.verify(), scorer.bundle.golden_tolerance
    checks = [_check("verify", gap <= allowed, f"golden rows differ by {gap:.1e}, {allowed:.1e} allowed")]
    if not re.fullmatch(r"[\w-]+", alias) or re.fullmatch(r"latest|v\d+", alias, re.IGNORECASE):
        remedy = "use letters, digits, _ and -; `latest`, `v1` and so on are MLflow's own"
        raise InputError("--to: expected a name that an alias may have", found=repr(alias), remedy=remedy)
    registry, version = _registered(run, scorer.bundle, name)
    checks.append(_parity(path, scorer.bundle.path, inputs))
    rows = TestSet.of(tuple(test) or (run.run_info()["dataset"],), scorer, negative_rate)
    for _ in range(MAX_ROUNDS):
        champion = registry.holder(name, alias)
        against_champion, comparison = _against_champion(registry, champion, version, scorer, rows, margins)
        found = Promotion(registry.store, version, alias, champion, [*checks, *against_champion], comparison)
        with _promotion_lock(name):
            # Another promotion may have moved the alias meanwhile: then compare with the new champion.
            if _number(registry.holder(name, alias)) == _number(champion):
                if _number(champion) != version.number:  # a champion keeps the tags of its own promotion
                    registry.tag(version, _tags(found))
                    if found.passed:
                        registry.set_alias(alias, version)
                return found
    remedy = "wait for the other promotions to end"
    raise InputError(f"{name}@{alias}: expected a stable champion", found=f"{MAX_ROUNDS} in a row", remedy=remedy)


def _number(version: RegisteredVersion | None) -> str | None:
    return version.number if version else None


def _parity(path: Path, bundle: Path, inputs: Sequence[str]) -> PromotionCheck:
    found = parity_of(path, bundle, inputs, quantized=True)
    rows = f"{found['rows']:,} {'raw' if inputs else 'golden'} rows"
    ids = "ids equal" if found["ids_equal"] else "ids differ"
    return _check("parity", found["ok"], f"{rows}: {ids}, probabilities differ by {found['max_abs_diff']:.1e}")


def _against_champion(
    registry: ModelRegistry,
    champion: RegisteredVersion | None,
    version: RegisteredVersion,
    scorer: Scorer,
    test: TestSet,
    margins: Margins,
) -> tuple[list[PromotionCheck], ModelComparison | None]:
    if champion is None or champion.number == version.number:
        note = "no champion yet" if champion is None else "is the champion"
        return [PromotionCheck("auc", "passed", note), PromotionCheck("calibration", "passed", note)], None
    fetched = registry.fetch(champion.name, champion.number, cache=made_in_cache("models"))
    comparison = compare_scorers(Scorer(fetched), scorer, test)
    by_name = {one.metric: one for one in comparison.differences}
    rows = comparison.test["rows"]
    return [
        _not_worse("auc", by_name["auc"], margins.auc, rows),
        _not_worse("calibration", by_name["calibration_error"], margins.calibration, rows),
    ], comparison


def _not_worse(name: str, one: Difference, margin: float, rows: int) -> PromotionCheck:
    """Passed if, with 95 % confidence, the challenger is worse by at most the margin."""
    bounds = f"bounds {one.low:+.5f} to {one.high:+.5f}"
    note = f"{one.champion:.5f} -> {one.challenger:.5f} ({one.difference:+.5f}, {bounds}), may lose {margin:g}"
    room = margin - (one.loss + one.loss_at_least) / 2
    if one.loss > margin and room > 0:  # if the loss itself were too large, more rows would not help
        # The interval shrinks with the square root of the rows.
        enough = rows * ((one.loss - one.loss_at_least) / 2 / room) ** 2
        note += f"; {rows:,} rows cannot tell: some {enough:,.0f} rows or a wider margin"
    return _check(name, one.loss <= margin, note)


def _check(name: str, passed: bool, note: str) -> PromotionCheck:
    return PromotionCheck(name, "passed" if passed else "failed", note)


def _registered(run: RunDirectory, bundle: Bundle, name: str) -> tuple[ModelRegistry, RegisteredVersion]:
    """A bundle's version, which is logged and registered if it is not yet."""
    with _promotion_lock(name):
        tracker = Tracker.of(run.record) or _track(run)
        registry, run_id = ModelRegistry.open(tracker.uri), tracker.run_id
        logged = registry.logged_model(run_id, bundle)
        if logged is None:
            is_own = bundle.path.resolve() == run.bundle.resolve()
            label = "bundle" if is_own else f"bundle-{bundle.manifest.table_dtype}-{bundle.model_id[:8]}"
            log_model(tracker, bundle, name=label)
            logged = registry.logged_model(run_id, bundle)
        assert logged is not None, "just logged"
        made_of = f"{run.experiment().name}, {bundle.manifest.table_dtype}, {bundle.num_bytes:,} bytes"
        about = f"{made_of}, from {run.path.absolute()}"
        return registry, registry.register(name, logged, run_id, {"muxrec.model_id": bundle.model_id}, about)


def _track(run: RunDirectory) -> Tracker:
    """A new MLflow run, with settings and metrics, for a run that was trained without tracking."""
    experiment, run_info = run.experiment(), run.run_info()
    dataset = str(Bundle.open(run.bundle).profile.get("dataset") or experiment.name)
    tags = {"dataset.digest": run_info["dataset_digest"], "seed": str(experiment.seed), "stage": "promote"}
    tags["mlflow.note.content"] = f"{experiment.name} on {dataset}, in {run.path.absolute()}"
    tracker = Tracker.start(experiment=dataset, name=experiment.name, tags=tags, key=run_info["key"])
    with tracker.ending():
        tracker.log_settings(experiment.params(), run.info(), Path(run_info["dataset"]))
        tracker.log_metrics(mlflow_names(run.metrics()))
    run.update_run_info(tracker.run_info())
    return tracker


@contextmanager
def _promotion_lock(name: str) -> Iterator[None]:
    """Lock out other promotions of the model on this machine, as MLflow cannot move an alias conditionally."""
    descriptor = take_lock(made_in_cache("locks") / (re.sub(r"[^\w-]", "_", name) + ".lock"))
    assert descriptor is not None, "without a timeout"
    try:
        yield
    finally:
        os.close(descriptor)


def _tags(found: Promotion) -> dict[str, str]:
    tags = {f"gate.{check.name}": f"{check.outcome}: {check.note}" for check in found.checks}
    tags |= {"validation_status": "passed" if found.passed else "failed", "gate.alias": found.alias}
    tags["gate.champion"] = _number(found.champion) or "none"
    if found.comparison:
        test = found.comparison.test
        tags["gate.test"] = f"{test['rows']} rows of {test['name']}, digest {test['digest']}"
    return tags


def promotion_table(found: Promotion) -> Table:
    """The checks for a terminal."""
    before = f"champion so far: version {found.champion.number}" if found.champion else "no champion so far"
    title = f"{found.version.name} version {found.version.number} to @{found.alias}; {before}\nstore: {found.store}"
    headings = ["check", "outcome", "found"]
    return rich_table(title, headings, found.checks, left=headings, folding=headings)
