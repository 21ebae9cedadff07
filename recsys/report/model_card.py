"""The model card of a run (Mitchell et al., "Model cards for model reporting", 2019), for readers who do not know it.

It holds only what the run measured or recorded.
"""

from collections.abc import Mapping, Sequence

from features.dataset.info import DatasetInfo
from features.registry import FeatureRegistry
from recsys.compression.kept import KeptColumns
from recsys.config import Experiment
from recsys.evaluation.collisions import CollisionReport
from recsys.evaluation.metrics import CORRECTED, METRICS
from recsys.report.text import markdown_table, text_of
from recsys.report.write import EvaluatedSplit

MOST_FEATURES = 3
"""Features whose segments the card shows: those that matter most; report/segments.csv has all."""
SEGMENT_METRICS = ("auc", "logloss", "calibration_ratio")
LARGE_CALIBRATION_ERROR = 0.05
HIGH_UNKNOWN_SHARE = 0.01


def model_card(
    experiment: Experiment,
    info: DatasetInfo,
    registry: FeatureRegistry,
    metrics: Mapping[str, Mapping[str, float]],
    judged: EvaluatedSplit,
    collisions: CollisionReport,
    kept: Sequence[KeptColumns] = (),
) -> str:
    """The card as Markdown; `metrics` are those of metrics.json."""
    parts = [
        f"# Model card: {experiment.name}",
        _summary(experiment, registry, metrics[judged.split], judged.split),
        "## Data",
        *_data(info),
        "## Metrics",
        _metrics(metrics),
        "Weights are those with the best validation score, so `valid` flatters where there is a `test`.",
        "## Metrics by segment",
        *_segments(judged),
        "## Features",
        _features(registry, judged, collisions, kept),
        "Loss of AUC where the feature's values are shuffled among a sample of rows; % of values that share a row of "
        "the table with another value of the feature, or with another feature, in the mean over probes.",
        "## Size and speed",
        _costs(experiment, metrics["perf"], collisions),
        "Speeds are those of the machine that trained, with any other load that it had then.",
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(experiment, info, metrics[judged.split], judged)),
        "## How to score",
        _how_to_score(registry),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(experiment: Experiment, registry: FeatureRegistry, figures: Mapping[str, float], split: str) -> str:
    table = experiment.embedding
    return (
        f"`{experiment.model.name}` on a {table.kind} table of {table.num_rows:,} rows of {table.width}, seed "
        f"{experiment.seed}. It gives the probability that `{registry.label}` is 1. {split.capitalize()}: AUC "
        f"{figures['auc']:.4f}, log loss {figures['logloss']:.4f}, calibration ratio "
        f"{figures['calibration_ratio']:.3f}. "
        "`experiment.yaml` in the run directory has every setting and repeats the run."
    )


def _data(info: DatasetInfo) -> list[str]:
    rows = [[name, f"{split.rows:,}", f"{split.label_rate:.4f}"] for name, split in info.splits.items()]
    about = {"name": info.name, "source": info.source, "terms": info.licence, "split": info.split_rule}
    lines = [f"- {name}: {text}" for name, text in {**about, "digest": f"`{info.digest}`"}.items()]
    return ["\n".join(lines), markdown_table(["split", "rows", "label rate"], rows)]


def _metrics(metrics: Mapping[str, Mapping[str, float]]) -> str:
    splits = [name for name in ("valid", "test") if name in metrics]
    ratio = METRICS["calibration_ratio"]
    shown = {**METRICS, CORRECTED: ratio._replace(title=f"{ratio.title}, corrected")}
    rows = [[split, *(metric.text(metrics[split].get(name)) for name, metric in shown.items())] for split in splits]
    return markdown_table(["split", *(metric.title for metric in shown.values())], rows)


def _segments(judged: EvaluatedSplit) -> list[str]:
    with_segments = dict.fromkeys(one.feature for one in judged.segments)
    by_importance = dict.fromkeys(one.feature for one in judged.importance) | with_segments
    shown = [name for name in by_importance if name in with_segments][:MOST_FEATURES]
    rows = [
        [
            *(one.feature, one.seen_in_train, f"{one.rows:,}"),
            "" if one.label_rate is None else f"{one.label_rate:.4f}",
            *(METRICS[metric].text(one.metrics[metric]) for metric in SEGMENT_METRICS),
        ]
        for name in shown
        for one in judged.segments
        if one.feature == name
    ]
    if not rows:
        return ["There is no categorical feature."]
    header = ["feature", "seen in train", "rows", "label rate", *(METRICS[name].title for name in SEGMENT_METRICS)]
    about = f"On {judged.split}, by how often training saw the value of a feature."
    return [f"{about} The other features are in `report/segments.csv`.", markdown_table(header, rows)]


def _features(
    registry: FeatureRegistry, judged: EvaluatedSplit, collisions: CollisionReport, kept: Sequence[KeptColumns]
) -> str:
    losses = {one.feature: f"{one.auc_loss:+.4f}" for one in judged.importance}
    shared = {one.feature: one for one in collisions.features}
    stored = {one.feature: one for one in kept}
    rows = []
    for name in [*losses, *(feature.name for feature in registry.features if feature.name not in losses)]:
        cells = [name, losses.get(name, "")]
        one, own = shared.get(name), stored.get(name)
        shares = (one.measured_intra, one.measured_inter) if one else ()
        cells += [f"{one.distinct:,}" if one else "", *(f"{100 * share:.1f}" for share in shares)]
        cells += [""] * (5 - len(cells))
        cells += [f"{own.rows:,} of {own.of_rows:,}", f"{own.columns} of {own.of_columns}"] if own else ["", ""]
        rows.append(cells)
    header = ["feature", "loss of AUC", "values in train", "% shared inside", "% shared outside"]
    return markdown_table([*header, "rows kept", "columns kept"], rows)


def _costs(experiment: Experiment, perf: Mapping[str, float], collisions: CollisionReport) -> str:
    rows = {
        "bundle on disk": f"{perf['bundle_bytes'] / 1000:,.0f} kB",
        "of it embedding": f"{perf['table_bytes'] / 1000:,.0f} kB",
        "rows of the table that training read": f"{collisions.occupied:,} of {collisions.num_rows:,}",
        "training": f"{perf['samples_per_s']:,.0f} examples/s, {perf['epochs']:.0f} epochs",
        "best epoch": f"{perf['best_epoch']:.0f}",
        "peak memory of training": f"{perf['peak_memory_mb']:,.0f} MB",
        "scoring one row": f"{perf['score_ms']:.2f} ms (median)",
        "scoring a hundred rows": f"{perf['score_100_ms']:.2f} ms (median)",
    }
    return markdown_table(["", f"seed {experiment.seed}"], rows.items())


def _limits(
    experiment: Experiment, info: DatasetInfo, figures: Mapping[str, float], judged: EvaluatedSplit
) -> list[str]:
    lines = [
        f"Figures hold for rows like those of the split ({info.split_rule}); they do not show how the model ages.",
        "One seed: settings are compared over several (`muxrec compare`).",
    ]
    if "test" not in info.splits:
        lines.append("There is no test split: the figures are those that chose the weights.")
    if abs(figures["calibration_ratio"] - 1) > LARGE_CALIBRATION_ERROR:
        ratio = figures["calibration_ratio"]
        lines.append(f"Probabilities are {'high' if ratio > 1 else 'low'} on average: calibration ratio {ratio:.3f}.")
    if experiment.negative_rate < 1:
        rate = text_of(experiment.negative_rate)
        lines.append(f"Trained on a share {rate} of the negatives; scores are put back to the original rate.")
    total = len(judged.predictions.labels)
    for one in judged.segments:
        if one.seen_in_train == "0" and one.rows > HIGH_UNKNOWN_SHARE * total:
            share = 100 * one.rows / total
            text = METRICS["auc"].text(one.metrics["auc"])
            auc = f" (AUC {text})" if text else ""
            lines.append(f"{share:.1f} % of {judged.split} have a `{one.feature}` that training never saw{auc}.")
    if experiment.embedding.kind == "unified":
        lines.append("Values share rows of the table by chance, so a rare value may be read as another one.")
    return lines


def _how_to_score(registry: FeatureRegistry) -> str:
    names = ", ".join(f"`{feature.name}`" for feature in registry.features)
    return (
        f"Raw columns: {names}. A column that is absent is a missing value.\n\n"
        "```bash\nmuxrec score BUNDLE --input requests.parquet --out scores\n```\n\n"
        '```python\nfrom serving.scorer import Scorer\n\nScorer("BUNDLE").score(rows)\n```\n\n'
        "`BUNDLE` is `bundle/` of the run directory, or the model that the MLflow run logged."
    )
