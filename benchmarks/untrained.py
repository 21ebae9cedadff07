"""Untrained models for `benchmarks.serve`: random weights take as long as trained ones."""

from pathlib import Path

from benchmarks.requests import Case
from experiments.runs import RUNS
from recsys.export import export_bundle
from recsys.ranker import Ranker, build_ranker, model_config


def ranker_of(case: Case) -> Ranker:
    """The untrained ranker of a case's run; the same in every process."""
    experiment = RUNS[case.run]()
    name, settings = experiment.model["name"], {k: v for k, v in experiment.model.items() if k != "name"}
    config = model_config(name, settings)
    return build_ranker(case.registry, name, config, experiment.embedding, seed=1, learning_rate=1e-3)[0].eval()


def write_bundle_of(case: Case, out: Path) -> None:
    """Export that ranker."""
    export_bundle(ranker_of(case), case.registry, out, model=case.run)
