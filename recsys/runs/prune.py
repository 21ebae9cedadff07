"""`muxrec prune`: train a finished run again in fewer bytes: reshape, supernet, freeze, train under the mask.

Every stage can be killed and is resumed by the same command: trainings have checkpoints, the search keeps its
measurements, and a mask in the run directory is used as it is.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from features.errors import InputError, differences
from features.files import write_text
from features.hashing import MISSING_TOKEN
from recsys import checkpoint
from recsys.compression import COMPRESSORS, Compressor, PruningContext, SlotLookups, TrainingStats, ValueCounts
from recsys.compression.quantized import stored_widths
from recsys.config import Experiment, changeable, validated, with_overrides
from recsys.dataset import Split
from recsys.embedding.mask import Mask, load_mask, save_mask
from recsys.evaluation.segments import token_counts
from recsys.ranker import Ranker, layout_of
from recsys.runs.run_directory import RunDirectory, RunMetrics, fresh_ranker
from recsys.runs.train import train_run
from recsys.target_statistics import FittedStatistics
from recsys.trainer import Trainer
from serving.bundle import Bundle
from serving.bundle.table_plan import table_bytes

DEFAULT_METHOD = "optembed"
DEFAULT_FACTOR = 10
"""Bytes before to bytes after if no budget is given; 1 for a method that keeps every row."""
MIN_BYTES_PER_VALUE = 2.5
"""Bytes per value of train below which a smaller table is better than a pruned one: docs/results."""

MISSING = np.uint64(MISSING_TOKEN)


def prune_run(
    path: Path,
    out: Path,
    *,
    method: str | None = None,
    target_bytes: int | None = None,
    table_dtype: str = "int4",
    overrides: Sequence[str] = (),
    track: bool = True,
    progress: bool = False,
) -> RunMetrics:
    """Compress a finished run into a new run directory and return its metrics; an interrupted one is resumed.

    `method` is a key into COMPRESSORS; None: `default_method`, or the one whose settings `overrides` change.
    `target_bytes` is the most that the bundle's embedding files may take; None: a tenth of the run's, or all of it for
    a method that keeps every row. `overrides` change settings of the run, or of the method as
    `compression.settings.KEY=VALUE`. Raises `InputError` for a run that is unfinished or compressed already, data that
    changed since, and budgets that cannot be met.
    """
    parent = RunDirectory(path)
    metrics = parent.metrics()
    before = {"bytes_before": float(Bundle.open(parent.bundle, verify=False).manifest.table_bytes)}
    for split in [name for name in ("valid", "test") if name in metrics]:
        before |= {f"{split}_{name}_before": metrics[split][name] for name in ("auc", "logloss")}
    train = _data_of(parent)
    if target_bytes is None:
        keeps_every_row = method in COMPRESSORS and COMPRESSORS[method].keeps_every_row
        target_bytes = max(1, int(before["bytes_before"]) // (1 if keeps_every_row else DEFAULT_FACTOR))
    experiment, stats = _planned(parent, train, method, target_bytes, table_dtype, overrides)
    assert experiment.compression is not None
    compressor = experiment.compression.compressor()
    reshaped = compressor.reshape(experiment.embedding, stats)
    if reshaped.optimizer == "rowwise_adagrad" and not compressor.replaces_table:
        expected = "pruning trains with an optimiser that shows its gradients"
        raise InputError(expected, found="rowwise_adagrad", remedy="add embedding.optimizer=adam")
    experiment = experiment.model_copy(update={"embedding": reshaped})
    stages = Stages(parent, compressor, stats, before, train, progress)
    if not compressor.replaces_table:
        stages.check(experiment)
        stages.check_reachable(experiment)
    metrics = train_run(
        experiment,
        train.directory,
        out,
        track=track,
        progress=progress,
        tags={"stage": "prune", "muxrec.parent": parent.run_info()["mlflow_run_id"] or str(path)},
        prepare=stages.prepare,
    )
    assert metrics["compression"]["bytes_after"] <= compressor.budget.num_bytes
    return metrics


def _data_of(parent: RunDirectory) -> Split:
    """The run's training split; raises `InputError` if it has changed or has no token feature."""
    train = Split(parent.run_info()["dataset"], "train")
    if train.info.digest != parent.run_info()["dataset_digest"]:
        remedy = "train the run on it first, or prepare it as it was"
        raise InputError(f"{train.directory}: expected the data of training", found="other data", remedy=remedy)
    if not train.registry.token_features:
        remedy = "there is nothing to prune"
        raise InputError("expected features that read the table", found="numeric ones alone", remedy=remedy)
    return train


def _planned(
    parent: RunDirectory,
    train: Split,
    method: str | None,
    target_bytes: int,
    table_dtype: str,
    overrides: Sequence[str],
) -> tuple[Experiment, TrainingStats]:
    """The run with its compression (by default the best method for this budget), and its training stats."""
    if any(override.startswith("compression.method=") for override in overrides):
        raise InputError("expected settings", found="compression.method", remedy="give --method")
    settings = {"method": method or DEFAULT_METHOD, "target_bytes": target_bytes, "table_dtype": table_dtype}
    experiment = _with_compression(parent.experiment(), settings, overrides)  # checks the settings first
    stats = _training_stats(train, experiment)  # reads all of train
    has_settings = any(override.startswith("compression.settings.") for override in overrides)
    if not method and not has_settings:  # settings are those of the default method, as was checked
        assert experiment.compression is not None
        settings["method"] = default_method(experiment.compression.target_bytes, stats)
        experiment = _with_compression(parent.experiment(), settings, overrides)
    return experiment, stats


def _with_compression(experiment: Experiment, settings: dict[str, Any], overrides: Sequence[str]) -> Experiment:
    if experiment.compression is not None:
        found = f"one that {experiment.compression.method} made"
        raise InputError("expected a run that was not compressed", found=found, remedy="name the run it was made of")
    name = f"{experiment.name}_{settings['method']}"
    document = experiment.model_dump(mode="json")
    compressed = validated({**document, "name": name, "compression": settings}, "compression")
    return with_overrides(compressed, overrides)


def default_method(target_bytes: int, stats: TrainingStats) -> str:
    """The method that did best at such a budget in docs/results.

    For tight budgets, a small shared table, which keeps a little of every value, beats a pruned one.

    >>> tokens = np.arange(1000, dtype=np.uint64)
    >>> stats = TrainingStats({"main": ("user",)}, {"user": ValueCounts(tokens, np.ones(1000, dtype=np.int64))})
    >>> default_method(6000, stats), default_method(600, stats)
    ('optembed', 'smaller')
    """
    return "smaller" if target_bytes < MIN_BYTES_PER_VALUE * stats.num_entries else DEFAULT_METHOD


def _training_stats(train: Split, experiment: Experiment) -> TrainingStats:
    names = [feature.name for feature in train.registry.token_features]
    counts = {name: frame.sort("token") for name, frame in token_counts(train.tokens(), names).items()}
    values = {name: ValueCounts(frame["token"].to_numpy(), frame["count"].to_numpy()) for name, frame in counts.items()}
    probes = {feature.name: feature.probes for feature in train.registry.token_features if feature.probes}
    unified = experiment.embedding.model_copy(update={"kind": "unified"})
    layout = layout_of(train.registry, experiment.model.name, experiment.model, unified)
    return TrainingStats({view: tuple(names) for view, names in layout.views.items()}, values, probes)


class Stages(NamedTuple):
    """The stages before the last training."""

    parent: RunDirectory
    compressor: Compressor
    stats: TrainingStats
    before: dict[str, float]
    train: Split
    progress: bool

    def check(self, experiment: Experiment) -> None:
        """Raise `InputError` where the run's own weights are needed but model or seed were changed."""
        own = self.parent.experiment()
        changed = next(
            (key for key in ("model", "seed", "target_statistics") if getattr(own, key) != getattr(experiment, key)),
            None,
        )
        if changed is not None and not self._trains(experiment):
            asked, mine = ({changed: changeable(one)[changed]} for one in (experiment, own))
            found = differences(asked, mine)
            remedy = "leave it as it is, or train another run with it and prune that one"
            raise InputError("pruning starts from the run's weights here", found=found[:300], remedy=remedy)

    def check_reachable(self, experiment: Experiment) -> None:
        """Raise `InputError` before anything is trained or written where even the smallest result is too large."""
        vocabulary = {name: np.setdiff1d(values.tokens, MISSING) for name, values in self.stats.value_counts.items()}
        model, budget = experiment.model, self.compressor.budget
        layout = layout_of(self.train.registry, model.name, model, experiment.embedding, vocabulary)
        counted = sum(8 * len(tokens) for tokens in vocabulary.values()) if layout.addressing.has_vocabulary else 0
        keeps_every_row = self.compressor.keeps_every_row and not self._trains(experiment)
        kept = np.zeros(layout.num_rows, np.int64)
        if keeps_every_row:
            kept = stored_widths(self.parent.ranker().embedding.table.detach()).numpy()
        size = counted + table_bytes(layout.num_rows, layout.width, budget.dtype, kept)
        if size > budget.num_bytes:
            found = f"{size:,} {'with every row' if keeps_every_row else 'without a single row'}"
            other = "a method that removes rows" if keeps_every_row else "--method smaller"
            raise budget.too_few(found, f"raise --target-bytes, or choose {other}")

    def prepare(self, run: RunDirectory, ranker: Ranker) -> dict[str, float]:
        """Apply the mask to a fresh ranker, building it first where there is none; returns figures of the stages."""
        if self.compressor.replaces_table:
            return self.before
        experiment = run.experiment()
        assert experiment.compression is not None
        figures_path = run.path / "supernet" / "figures.json"
        if not run.mask_path.is_file():
            found, seconds = self._built_mask(run, experiment, ranker.statistics)
            write_text(figures_path, json.dumps(seconds))
            save_mask(run.mask_path, found)
            (run.path / "supernet" / "checkpoint" / "state.safetensors").unlink(missing_ok=True)
        start = experiment.compression.start
        if start != "rewind":
            source = run.path / "supernet" if self._trains(experiment) else self.parent.path
            tensors, _ = checkpoint.load_state(source / "checkpoint" / "best.safetensors")
            ranker.load_state_dict({name: t for name, t in tensors.items() if not name.startswith("embedding.gate.")})
        ranker.embedding.apply_mask(load_mask(run.mask_path))
        if start == "as_is":
            checkpoint.save_state(run.path / "checkpoint" / "best.safetensors", ranker.state_dict(), {"epoch": 0})
        return self.before | json.loads(figures_path.read_text(encoding="utf-8"))

    def _built_mask(
        self, run: RunDirectory, experiment: Experiment, statistics: FittedStatistics | None
    ) -> tuple[Mask, dict[str, float]]:
        began = time.perf_counter()
        valid = Split(self.train.directory, "valid")
        (run.path / "supernet").mkdir(exist_ok=True)
        is_trained = not self._trains(experiment)
        ranker = self.parent.ranker() if is_trained else self._supernet(run, experiment, valid, statistics)
        ranker.statistics = statistics  # a method may train it, for which those of the parent's directory are too few
        trained = time.perf_counter()
        lookups = self.stats.lookups(ranker.embedding.layout, ranker.embedding.vocabulary)
        context = PruningContext(
            ranker=ranker.eval(),
            lookups=lookups,
            train=self.train,
            valid=valid,
            num_bytes=self._num_bytes(run, ranker, lookups),
            budget=self.compressor.budget,
            seed=experiment.seed,
            directory=run.path / "supernet",
            progress=self.progress,
            trainer=experiment.trainer,
            embedding=experiment.embedding,
        )
        mask = self.compressor.build_mask(context).check(ranker.embedding.layout)
        return mask, {"supernet_seconds": trained - began, "freeze_seconds": time.perf_counter() - trained}

    def _trains(self, experiment: Experiment) -> bool:
        """True if the mask comes from another training: a supernet, or the run's model on another table."""
        return self.compressor.has_supernet or experiment.embedding != self.parent.experiment().embedding

    def _supernet(
        self, run: RunDirectory, experiment: Experiment, valid: Split, statistics: FittedStatistics | None
    ) -> Ranker:
        ranker, optimizer = fresh_ranker(experiment, run.registry(), run.vocabulary(), statistics)
        optimizer = self.compressor.install_supernet(ranker, optimizer)
        trainer = Trainer(
            ranker,
            optimizer,
            self.compressor.supernet_trainer(experiment.trainer),
            run.path / "supernet",
            seed=experiment.seed,
            l2=experiment.embedding.l2,
            progress=self.progress,
            keep=self.compressor.supernet_keeps,
        )
        trainer.fit(self.train, valid)
        return ranker

    def _num_bytes(self, run: RunDirectory, ranker: Ranker, reads: list[SlotLookups]) -> Callable[[Mask], int]:
        layout, dtype = ranker.embedding.layout, self.compressor.budget.dtype
        vocabulary = run.vocabulary_path.stat().st_size if layout.addressing.has_vocabulary else 0
        is_unread = np.ones(layout.num_rows, dtype=np.bool_)
        for slot in reads:
            is_unread[slot.rows.numpy()] = False

        def measured(mask: Mask) -> int:
            widths = mask.row_widths.numpy()
            has_unread = bool(widths[is_unread].any())  # then the file lists the rows that training read
            return vocabulary + table_bytes(layout.num_rows, layout.width, dtype, widths, has_trained_rows=has_unread)

        return measured
