"""RUNS: every name that `muxrec train` knows; a run is a function that returns an Experiment. SPACES: what sweeps vary.

Every model has a run of its own name with general defaults; a variant calls its parent and changes some fields.
"""

from collections.abc import Callable
from functools import partial

from experiments import avazu, criteo, frappe, movielens
from experiments.config import Experiment
from experiments.search_space import SearchSpace, default_space
from features.errors import InputError
from recsys.models import MODELS

SHALLOW = {
    # One weight a value, and as many floats as the other models' tables.
    "logistic_regression": {"num_rows": 131_072, "width": 1, "probes": 1},
    "fm": {},
}
"""Models whose logit is a sum of what the table holds, and the shape of their table."""


def default_run(model: str) -> Experiment:
    """General settings of a model, for any dataset directory.

    >>> default_run("final_mlp").model_name
    'final_mlp'
    """
    if model in SHALLOW:
        # What the table holds has to grow to the size of a logit, which the decay that suits the embeddings of a
        # network would not let it do.
        return Experiment.model_validate(
            {
                "name": model,
                "model": {"name": model},
                "embedding": {**SHALLOW[model], "l2": 1e-5},
                "trainer": {"learning_rate": 0.01},
            }
        )
    return Experiment(name=model, model={"name": model})


RUNS: dict[str, Callable[[], Experiment]] = {
    **{model: partial(default_run, model) for model in MODELS},
    "frappe": frappe.frappe,
    "frappe_final_net": frappe.frappe_final_net,
    "frappe_dcn_v2": frappe.frappe_dcn_v2,
    "frappe_deep_fm": frappe.frappe_deep_fm,
    "movielens_100k": movielens.movielens_100k,
    "movielens_1m": movielens.movielens_1m,
    "movielens_1m_final_net": movielens.movielens_1m_final_net,
    "movielens_1m_dcn_v2": movielens.movielens_1m_dcn_v2,
    "movielens_latest": movielens.movielens_latest,
    "movielens_latest_final_net": movielens.movielens_latest_final_net,
    "criteo_x1": criteo.criteo_x1,
    "criteo_x1_final_net": criteo.criteo_x1_final_net,
    "criteo_x4": criteo.criteo_x4,
    "avazu_x1": avazu.avazu_x1,
    "avazu_x1_final_net": avazu.avazu_x1_final_net,
    "avazu_x4": avazu.avazu_x4,
}

SPACES: dict[str, SearchSpace] = {**frappe.SPACES, **movielens.SPACES}
"""Run to the settings that `muxrec sweep` varies; other runs have `default_space`."""


def named_run(name: str) -> Experiment:
    """The run of this name; raises `InputError` with the names that there are."""
    if name not in RUNS:
        raise InputError("unknown run", found=repr(name), remedy=f"use one of {', '.join(RUNS)}")
    return RUNS[name]()


def space_of(name: str) -> SearchSpace:
    """The search space of a named run.

    >>> sorted(space_of("movielens_100k"))[:2]
    ['embedding.l2', 'embedding.probes']
    """
    return SPACES[name] if name in SPACES else default_space(named_run(name))
