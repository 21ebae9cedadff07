"""Runs on MovieLens-100K and MovieLens-1M, and those that BARS tuned on `MovielensLatest_x1`.

The runs of FinalMLP on the first two have a schedule of our own, which ends as good in fewer epochs; the others follow
BARS's.
"""

from recsys.config import Experiment, variant
from recsys.recipe import COSINE, NEAR_ZERO
from recsys.sweep.search_space import Choice, Float, SearchSpace


def movielens_100k() -> Experiment:
    """FinalMLP on MovieLens-100K: the run of `make demo`."""
    return variant(_bars(), "movielens_100k", embedding=NEAR_ZERO, trainer={**COSINE, "epochs": 10})


def _bars() -> Experiment:
    return Experiment.model_validate(
        {
            "name": "movielens_100k",
            "model": {
                "name": "final_mlp",
                "mlp1_hidden": [400],
                "mlp2_hidden": [400],
                "mlp1_dropout": 0.4,
                "mlp2_dropout": 0.4,
                "num_heads": 10,
            },
            "embedding": {"num_rows": 32_768, "width": 4, "probes": 4, "l2": 0.05},
            "trainer": {"batch_size": 4096},
        }
    )


def movielens_1m() -> Experiment:
    """The same network on MovieLens-1M, which has more rows per value and needs less decay."""
    trainer = {"schedule": "cosine", "epochs": 12}
    return variant(_bars(), "movielens_1m", embedding={**NEAR_ZERO, "l2": 0.01}, trainer=trainer)


def movielens_1m_final_net() -> Experiment:
    """FinalNet of two blocks in the shape that BARS tuned on MovielensLatest."""
    return variant(_bars(), "movielens_1m_final_net", model=_FINAL_NET)


def movielens_1m_dcn_v2() -> Experiment:
    """DCN V2 in the shape of Coleman et al. (Unified Embedding): one cross layer, an MLP of 192, little decay.

    Without batch norm and dropout, which cost half a point of AUC and more in a replication of their tables.
    """
    return variant(
        _bars(),
        "movielens_1m_dcn_v2",
        model={"name": "dcn_v2", "num_cross_layers": 1, "hidden": [192], "dropout": 0.0, "batch_norm": False},
        embedding={"l2": 1e-5},
        trainer={"batch_size": 1024, "patience": 5},
    )


def movielens_latest() -> Experiment:
    """FinalMLP as BARS tuned it on MovielensLatest_x1 (`user_id`, `item_id`, `tag_id`).

    The table has the bytes of the published one, 90,242 values of 10 floats: 3.6 MB.
    """
    return variant(
        _bars(),
        "movielens_latest",
        model={"mlp2_hidden": [800], "mlp2_dropout": 0.2, "gate_hidden": [800]},
        embedding={"num_rows": 90_242 * 10 // 4, "l2": 0.01},
    )


def movielens_latest_final_net() -> Experiment:
    """FinalNet of two blocks as BARS tuned it, on the same table."""
    return variant(movielens_latest(), "movielens_latest_final_net", model=_FINAL_NET)


_FINAL_NET = {
    "name": "final_net",
    "block1_hidden": [400, 400],
    "block2_hidden": [500],
    "block1_dropout": 0.0,
    "block2_dropout": 0.0,
}

_FINAL_MLP: SearchSpace = {
    "embedding.l2": Float(low=0.003, high=0.3, log=True),
    "embedding.probes": Choice(values=(2, 4, 8)),
    "trainer.learning_rate": Float(low=3e-4, high=3e-3, log=True),
    "model.mlp1_hidden": Choice(values=([200], [400], [400, 400])),
    "model.mlp1_dropout": Float(low=0.0, high=0.6),
    "model.mlp2_dropout": Float(low=0.0, high=0.6),
}

SPACES: dict[str, SearchSpace] = {
    "movielens_100k": _FINAL_MLP,
    "movielens_1m": _FINAL_MLP,
    "movielens_1m_dcn_v2": {
        "embedding.l2": Float(low=1e-6, high=1e-3, log=True),
        "embedding.probes": Choice(values=(2, 4, 8)),
        "trainer.learning_rate": Float(low=3e-4, high=5e-3, log=True),
        "model.hidden": Choice(values=([96], [192], [192, 192])),
        "model.dropout": Float(low=0.0, high=0.3),
    },
}
