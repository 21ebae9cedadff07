"""RUNS: the runs that `muxrec train` knows by name. SPACES: the settings that sweeps vary.

A run is a function that returns an Experiment; a variant calls its parent and changes some fields. Each model has a run
of the same name with general defaults.
"""

from collections.abc import Callable
from functools import partial

from experiments import avazu, criteo, frappe, movielens
from recsys.config import Experiment, default_run
from recsys.models import MODELS
from recsys.sweep.search_space import SearchSpace

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
"""Run to the settings that `muxrec sweep` varies; the others have `default_space`."""
