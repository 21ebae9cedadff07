"""Untrained models for `benchmarks.serve`: random weights take as long as trained ones."""

from pathlib import Path

from benchmarks.requests import Case
from experiments.runs import RUNS
from recsys.export import export_bundle
from recsys.ranker import Ranker, build_ranker


def ranker_of(case: Case) -> Ranker:
    """The untrained ranker of a case's run; the same in every process."""
    experiment = RUNS[case.run]()
    # Wide initial values, so that scores differ.
    name, table = experiment.model.name, experiment.embedding.model_copy(update={"init": "uniform"})
    return build_ranker(case.registry, name, experiment.model, table, seed=1, learning_rate=1e-3)[0].eval()


def write_bundle_of(case: Case, out: Path) -> None:
    """Export that ranker."""
    export_bundle(ranker_of(case), case.registry, out, model=case.run)
