"""RUNS: every name that `muxrec train` knows; a run is a function that returns an Experiment.

Every model has a run of its own name with general defaults; a variant calls its parent and changes some fields.
"""

from collections.abc import Callable
from functools import partial

from experiments.config import Experiment
from experiments.frappe import frappe
from experiments.movielens import movielens_1m, movielens_100k
from recsys.models import MODELS


def default_run(model: str) -> Experiment:
    """General settings of a model, for any dataset directory.

    >>> default_run("final_mlp").model_name
    'final_mlp'
    """
    if model == "logistic_regression":
        # One weight a value, and as many floats as the other models' tables. A linear weight has to grow to the size of
        # a logit, which the decay that suits embeddings would not let it do.
        return Experiment.model_validate(
            {
                "name": model,
                "model": {"name": model},
                "embedding": {"num_rows": 131_072, "width": 1, "probes": 1, "l2": 1e-5},
                "trainer": {"learning_rate": 0.01},
            }
        )
    return Experiment(name=model, model={"name": model})


RUNS: dict[str, Callable[[], Experiment]] = {
    **{model: partial(default_run, model) for model in MODELS},
    "frappe": frappe,
    "movielens_100k": movielens_100k,
    "movielens_1m": movielens_1m,
}
