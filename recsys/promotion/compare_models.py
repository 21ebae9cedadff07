"""Champion and challenger compared on the same rows, without torch: metric differences and their intervals.

N rows. A test set is a dataset directory with a test split and the registry of both models, or raw files with labels,
which each model encodes itself.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.table import Table

from features.dataset.info import read_dataset
from features.encode import EncodedBatch
from features.errors import InputError
from features.files import sha256_of
from features.io.readers import expand, read_chunks
from features.labels import LabelReader, group_column, weight_column
from features.registry import FeatureRegistry
from recsys.evaluation.metrics import evaluate
from recsys.evaluation.paired_difference import Difference, compare
from recsys.evaluation.predictions import Predictions
from recsys.report.text import rich_table, text_of
from recsys.runs.process import require_finished
from recsys.runs.serving_cost import serving_cost
from recsys.tracking.model_uri import resolve_bundle
from serving.scorer import Encoded, Scorer

BATCH_ROWS = 16_384
Floats = npt.NDArray[np.float64]


class TestSet(NamedTuple):
    """Source of labelled rows."""

    __test__ = False  # no test case for pytest

    source: tuple[str, ...]
    """A dataset directory alone, or raw files, directories and globs."""
    negative_rate: float
    """Share of the negatives that these rows kept; probabilities are brought to it."""

    @staticmethod
    def of(sources: Sequence[str], challenger: Scorer, negative_rate: float | None) -> "TestSet":
        """`negative_rate` None: the challenger's for a dataset, 1 for raw files.

        Raises `InputError` for an impossible rate.
        """
        if negative_rate is None:
            negative_rate = rate_of(challenger) if _is_dataset(sources) else 1.0
        if not 0 < negative_rate <= 1:
            remedy = "give the share of the negatives that the test rows kept"
            expected = "the test rows' share of negatives must be above 0 and at most 1"
            raise InputError(expected, found=str(negative_rate), remedy=remedy)
        return TestSet(tuple(sources), negative_rate)


class Scored(NamedTuple):
    """A test set under several models."""

    labels: npt.NDArray[np.float32]  # [N]
    groups: npt.NDArray[np.uint64] | None  # [N]
    weights: npt.NDArray[np.float32] | None  # [N]
    probabilities: list[Floats]  # [N] for each model
    digest: str
    """32 hexadecimal digits of the rows' files."""
    name: str


@dataclass(frozen=True, kw_only=True)
class ModelComparison:
    """Two models on one test set."""

    champion: dict[str, Any]
    """Model, model_id, bytes and latencies."""
    challenger: dict[str, Any]
    test: dict[str, Any]
    """Name, digest, rows, negative_rate."""
    metrics: dict[str, tuple[float, float]]
    """Every metric of the champion and of the challenger."""
    differences: list[Difference]

    def as_json(self) -> dict[str, Any]:
        differences = {one.metric: {**one._asdict()} for one in self.differences}
        return {**vars(self), "differences": differences}


def compare_models(
    champion: str | Path,
    challenger: str | Path,
    *,
    test: Sequence[str | Path] = (),
    negative_rate: float | None = None,
) -> ModelComparison:
    """Compare two models: bundles, finished runs or `models:/` URIs; `test` is by default a run's own dataset.

    `negative_rate` is the share of the negatives that the test rows kept, by default that of `TestSet.of`. Raises
    `InputError` for models that cannot be found and rows that one of the two cannot score.
    """
    sources = [str(one) for one in test] or _test_of(challenger) or _test_of(champion)
    if not sources:
        raise InputError("a comparison needs test rows", found="two bundles", remedy="give --test DATASET or raw files")
    scorers = [Scorer(bundle_of(one)) for one in (champion, challenger)]
    return compare_scorers(scorers[0], scorers[1], TestSet.of(sources, scorers[1], negative_rate))


def compare_scorers(champion: Scorer, challenger: Scorer, test: TestSet) -> ModelComparison:
    """`compare_models` for two open models."""
    labels, groups, weights, (old, new), digest, name = score_test([champion, challenger], test)
    metrics = [evaluate(Predictions.of(labels, probabilities, groups, weights)) for probabilities in (old, new)]
    return ModelComparison(
        champion=_description(champion),
        challenger=_description(challenger),
        test={"name": name, "digest": digest, "rows": len(labels), "negative_rate": test.negative_rate},
        metrics={name: (metrics[0][name], metrics[1][name]) for name in metrics[0]},
        differences=compare(labels, old, new, groups=groups, weights=weights),
    )


def bundle_of(model: str | Path) -> Path:
    """Bundle directory of a finished run, a bundle or a `models:/` URI."""
    path = resolve_bundle(model)
    if not (path / "run.json").is_file():
        return path
    require_finished(path)
    return path / "bundle"


def rate_of(scorer: Scorer) -> float:
    """Share of the negatives that a model's training data kept."""
    correction = scorer.bundle.manifest.prior_correction
    return correction.negative_rate if correction else 1.0


def score_test(scorers: Sequence[Scorer], test: TestSet) -> Scored:
    """Labels and probabilities [N] of the test rows, at the rows' own share of negatives.

    Raises `InputError` for no rows and for rows that a model cannot read.
    """
    if _is_dataset(test.source):
        columns, digest, name = _dataset(scorers, Path(test.source[0]))
    else:
        files = expand(test.source)
        digest = sha256("\n".join(sha256_of(file) for file in files).encode()).hexdigest()[:32]
        name = files[0].name if len(files) == 1 else f"{len(files)} files such as {files[0].name}"
        columns = _raw(scorers, files)
    parts = [part for part in columns if len(part["label"])]
    if not parts:
        raise InputError(f"{name}: expected test rows", found="none", remedy="check the files")
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    probabilities = [_at_rate(joined[f"p{index}"], test.negative_rate) for index in range(len(scorers))]
    groups, weights = joined.get("group"), joined.get("weight")
    return Scored(joined["label"].astype(np.float32), groups, weights, probabilities, digest, name)


def _is_dataset(sources: Sequence[str]) -> bool:
    return len(sources) == 1 and (Path(sources[0]) / "dataset.json").is_file()


Columns = Iterator[dict[str, npt.NDArray[Any]]]


def _dataset(scorers: Sequence[Scorer], directory: Path) -> tuple[Columns, str, str]:
    info, registry = read_dataset(directory)
    for scorer in scorers:
        if scorer.registry.fingerprint() != registry.fingerprint():
            remedy = "give raw rows with the label as --test, which each model encodes for itself"
            expected = f"{directory}: expected the registry of model {scorer.bundle.model_id}"
            raise InputError(expected, found="another", remedy=remedy)
    if "test" not in info.splits:  # not the validation split, by which models are chosen
        remedy = "give other rows with the label as --test"
        raise InputError(f"{directory}: expected a test split", found=", ".join(info.splits), remedy=remedy)
    parts = [directory / part.file for part in info.splits["test"].parts]
    return _encoded(scorers, registry, parts), info.digest_of("test"), f"{info.name} test"


def _encoded(scorers: Sequence[Scorer], registry: FeatureRegistry, parts: Sequence[Path]) -> Columns:
    for part in parts:
        for frame in read_chunks(part, chunk_rows=BATCH_ROWS):
            batch = Encoded(examples=EncodedBatch.from_frame(frame, registry))
            kept = {key: frame[key].to_numpy() for key in ("label", "group", "weight") if key in frame}
            yield kept | {f"p{i}": s.score_encoded(batch) for i, s in enumerate(scorers)}


def _raw(scorers: Sequence[Scorer], files: Sequence[Path]) -> Columns:
    registry = scorers[-1].registry  # the challenger's defines label, group and weight
    labels = LabelReader(registry.label, registry.label_rule)
    readers = {"group": group_column, "weight": weight_column}
    named = {"group": registry.group, "weight": registry.weight}
    features = [feature.name for scorer in scorers for feature in scorer.registry.features]
    wanted = list(dict.fromkeys([registry.label, *(name for name in named.values() if name), *features]))
    for file in files:
        first_row = 0
        for raw in read_chunks(file, wanted, csv=registry.csv, chunk_rows=BATCH_ROWS):
            try:
                kept = {key: readers[key](raw, name).to_numpy() for key, name in named.items() if name}
                kept["label"] = labels.read(raw).to_numpy()
                scores = {f"p{i}": s.score(raw) for i, s in enumerate(scorers)}
            except InputError as error:
                raise error.located(str(file), first_row) from None
            yield kept | scores
            first_row += len(raw)


def _at_rate(probabilities: Floats, negative_rate: float) -> Floats:
    """Probabilities [N] for data with all negatives, converted to data that kept this share of them.

    >>> _at_rate(np.array([0.0909090909]), 0.1).round(6).tolist()
    [0.5]
    """
    return probabilities / (probabilities + (1.0 - probabilities) * negative_rate)


def _test_of(model: str | Path) -> list[str]:
    """The dataset of a model that is a run directory; else empty."""
    run_info = Path(model) / "run.json"
    return [json.loads(run_info.read_text(encoding="utf-8"))["dataset"]] if run_info.is_file() else []


def _description(scorer: Scorer) -> dict[str, Any]:
    manifest = scorer.bundle.manifest
    model = {"model": manifest.model, "model_id": scorer.bundle.model_id, "run_id": manifest.run_id}
    return model | {"table": manifest.table_dtype, **serving_cost(scorer)}


def comparison_table(comparison: ModelComparison) -> Table:
    """The comparison for a terminal; the interval leaves out 5 % on either side."""
    test = comparison.test
    title = f"{test['rows']:,} rows of {test['name']}, digest {test['digest'][:12]}; bounds of 95 % each"
    by_name = {one.metric: one for one in comparison.differences}
    others = {n: (one.champion, one.challenger) for n, one in by_name.items() if n not in comparison.metrics}
    rows = []
    for name, (old, new) in (comparison.metrics | others).items():
        bounds = [f"{by_name[name].low:+.5f}", f"{by_name[name].high:+.5f}"] if name in by_name else ["", ""]
        rows.append([name, f"{old:.5f}", f"{new:.5f}", f"{new - old:+.5f}", *bounds])
    about = [
        [key, text_of(old), text_of(comparison.challenger[key]), *[""] * 3] for key, old in comparison.champion.items()
    ]
    models = ["champion", "challenger"]  # long ids wrap, figures do not
    return rich_table(title, ["", *models, "difference", "from", "to"], rows + about, folding=models)
