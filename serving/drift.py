"""Drift: the distance of today's rows and scores from the training profile in the bundle.

The population stability index of a feature is the sum over bins of (actual - expected) * ln(actual / expected); up to
.1 is little, above .25 is much (Lewis 1994, "An Introduction to Credit Scoring"; Siddiqi 2006, "Credit Risk
Scorecards"). By chance alone it is about (1/n + 1/m) chi2 with one degree of freedom less than there are bins (Yurdakul
and Naranjo 2020), so a few rows of the same kind do not look like drift.

N rows, K bins.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from features.errors import InputError
from features.io.readers import read_chunks
from features.progress import progress_bar
from features.spec import Numeric
from serving.batch.inputs import plan_parts
from serving.bundle.profile import Distributions, FloatBins, TokenBins, read_distributions
from serving.coverage import Coverage, add_coverage
from serving.moved import BucketNames, Moved, moved_floats, moved_tokens, raw_edges
from serving.scorer import CHUNK_ROWS, Scorer

MODERATE, MAJOR = 0.1, 0.25
FLOOR = 1e-4
"""Smaller shares are raised to this: an empty bin would make the index infinite."""
SCORE = "(score)"

Shares = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Drift of one feature or of the score between training and today."""

    name: str
    psi: float
    chance: float
    """Upper bound of the index in 95 of 100 samples of this size without drift."""
    unseen_psi: float
    """The index of two bins, seen and unseen values; 0 if they were not counted."""
    labels: list[str]
    expected: list[float]
    actual: list[float]
    missing: tuple[float, float]
    """Rates in training and today."""
    unseen: tuple[float, float] | None
    """Rates on the validation rows and today."""
    moved: list[Moved]
    """The values, or ranges, that moved most; empty if none moved beyond chance."""

    @property
    def worst(self) -> float:
        """The larger one of the two indices; 0 for one that chance explains."""
        return max(self.psi if self.psi > self.chance else 0.0, self.unseen_psi)

    @property
    def verdict(self) -> str:
        """stable, moderate or major."""
        return "stable" if self.worst <= MODERATE else "moderate" if self.worst <= MAJOR else "major"


@dataclass(frozen=True, kw_only=True)
class DriftReport:
    """Every feature and the score."""

    model: str
    model_id: str
    created_at: str
    """Time at which the bundle was written; UTC, ISO 8601."""
    dataset: str | None
    """Dataset that it was trained on, and its digest."""
    inputs: list[str]
    files: int
    rows: int
    training_rows: int | None
    drift: list[Drift]
    """The score first, if the profile has it, then the features, the worst first."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        rows = []
        for one in self.drift:
            moved = [value._asdict() for value in one.moved]
            rows.append({**vars(one), "moved": moved, "worst": one.worst, "verdict": one.verdict})
        return {**vars(self), "drift": rows}


def psi(expected: Shares, actual: Shares) -> float:
    """Population stability index of two distributions [K]; symmetric, 0 where they are equal.

    >>> round(psi(np.array([0.5, 0.5]), np.array([0.9, 0.1])), 4)  # .4 ln 1.8 + .4 ln 5
    0.8789
    """
    expected, actual = np.maximum(expected, FLOOR), np.maximum(actual, FLOOR)
    return float(((actual - expected) * np.log(actual / expected)).sum())


def chance_psi(num_bins: int, num_expected: float, num_actual: float) -> float:
    """Upper bound of the index of K bins in 95 of 100 pairs of samples from one distribution.

    The quantile of chi2 is that of Wilson and Hilferty (1931), right to 1 % from two degrees of freedom on.

    >>> round(chance_psi(10, 1e9, 1000.0), 4)  # chi2 of 9 degrees of freedom: 16.92
    0.0169
    """
    freedom = num_bins - 1
    if freedom < 1 or num_expected <= 0 or num_actual <= 0:
        return 0.0
    spread = 2 / (9 * freedom)
    quantile = freedom * (1 - spread + 1.6448536269514722 * math.sqrt(spread)) ** 3
    return (1 / num_expected + 1 / num_actual) * quantile


def drift_of(
    scorer: Scorer, inputs: Sequence[str | Path], *, allow_missing: bool = False, progress: bool = False
) -> DriftReport:
    """Compare the rows of files with the profile of a bundle. Memory does not grow with the files.

    Raises `InputError` for a bundle without a profile, for rows that cannot be scored, and if there are no rows.
    """
    bundle = scorer.bundle
    profile = read_distributions(bundle.profile, str(bundle.path))
    counter = _Counter(scorer, profile)
    with progress_bar("drift", None, enabled=progress) as advance:
        parts = plan_parts(inputs, scorer.registry, keep=(), allow_missing=allow_missing)
        for part in parts:
            first_row = counter.num_rows
            for raw in read_chunks(part.file, part.columns, csv=scorer.registry.csv, chunk_rows=CHUNK_ROWS):
                try:
                    counter.add(raw, allow_missing=allow_missing)
                except InputError as error:
                    raise error.located(str(part.file), counter.num_rows - first_row) from None
                advance(len(raw), note=part.file.name)
    if not counter.num_rows:
        raise InputError("expected rows to compare with training", found="none", remedy="check the files")
    rows, dataset, digest = (bundle.profile.get(key) for key in ("rows", "dataset", "dataset_digest"))
    return DriftReport(
        model=bundle.manifest.model,
        model_id=bundle.model_id,
        created_at=bundle.manifest.created_at,
        dataset=f"{dataset}, digest {str(digest)[:12]}" if dataset else None,
        inputs=[str(one) for one in inputs],
        files=len(parts),
        rows=counter.num_rows,
        training_rows=rows if isinstance(rows, int) else None,
        drift=counter.score() + sorted(counter.features(), key=lambda one: -one.worst),
    )


class _Counter:
    def __init__(self, scorer: Scorer, profile: Distributions) -> None:
        self._scorer, self._profile = scorer, profile
        self._counts = {name: np.zeros(len(one.bins.shares)) for name, one in profile.features.items()}
        self._coverage: dict[str, Coverage] = {}
        self._names = {feature.name: BucketNames(feature) for feature in scorer.registry.token_features}
        self._scores = np.zeros(len(profile.score.shares) if profile.score else 0)
        self.num_rows = 0
        for feature in scorer.registry.features:
            if feature.name not in profile.features:
                remedy = "export the bundle again"
                raise InputError(f"expected a profile of {feature.name!r}", found="none", remedy=remedy)

    def add(self, raw: pl.DataFrame, *, allow_missing: bool) -> None:
        """Count a chunk of raw rows."""
        encoded = self._scorer.encode(raw, allow_missing=allow_missing)
        coverage = self._scorer.coverage(encoded)
        batch, columns = encoded.examples, [feature.name for feature in self._scorer.registry.dense_features]
        for name, one in self._profile.features.items():
            if isinstance(one.bins, TokenBins):
                self._counts[name] += one.bins.counts(batch.tokens[name])
                self._names[name].add(raw, batch)
            else:
                self._counts[name] += one.bins.counts(batch.dense[:, columns.index(name)], coverage[name].missing)
        self._coverage = add_coverage(self._coverage, coverage)
        if self._profile.score:
            self._scores += self._profile.score.counts(self._scorer.score_encoded(encoded))
        self.num_rows += len(raw)

    def score(self) -> list[Drift]:
        """Drift of the score; empty if the profile has none."""
        bins, counts = self._profile.score, self._scores
        if bins is None:
            return []
        return [_drift(SCORE, bins, bins.labels, counts, moved_floats(bins, bins.labels, counts))]

    def features(self) -> list[Drift]:
        """Drift of each feature, in registry order."""
        found: list[Drift] = []
        for feature in self._scorer.registry.features:
            profile, counts = self._profile.features[feature.name], self._counts[feature.name]
            bins, labels = profile.bins, profile.bins.labels
            if isinstance(bins, TokenBins):
                moved = moved_tokens(bins, self._names[feature.name], float(counts[0]))
            else:
                if isinstance(feature, Numeric):  # its bins are of transformed values, and people know the raw ones
                    labels = bins.model_copy(update={"edges": raw_edges(feature, bins.edges)}).labels
                moved = moved_floats(bins, labels, counts)
            unseen, coverage = profile.unseen, self._coverage[feature.name]
            rates = None if unseen is None or not coverage.num_values else (unseen, coverage.unseen_rate)
            found.append(_drift(feature.name, bins, labels, counts, moved, rates))
        return found


def _drift(
    name: str,
    bins: FloatBins | TokenBins,
    labels: list[str],
    counts: Shares,
    moved: list[Moved],
    unseen: tuple[float, float] | None = None,
) -> Drift:
    expected, actual = np.array(bins.shares), counts / max(counts.sum(), 1.0)
    num_used = int(((expected > 0) | (actual > 0)).sum())
    unseen_psi = psi(*(np.array([rate, 1 - rate]) for rate in unseen)) if unseen else 0.0
    if unseen_psi <= chance_psi(2, bins.num_values, counts.sum()):
        unseen_psi = 0.0
    return Drift(
        name=name,
        psi=psi(expected, actual),
        chance=chance_psi(num_used, bins.num_values, float(counts.sum())),
        unseen_psi=unseen_psi,
        labels=labels,
        expected=expected.tolist(),
        actual=actual.tolist(),
        missing=(bins.shares[0], float(actual[0])),
        unseen=unseen,
        moved=moved,
    )
