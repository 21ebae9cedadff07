"""Tuned runs on MovieLens-100K and MovieLens-1M."""

from experiments.config import Experiment


def movielens_100k() -> Experiment:
    """FinalMLP on MovieLens-100K: what `make demo` trains."""
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
    """The same on MovieLens-1M."""
    return movielens_100k().model_copy(update={"name": "movielens_1m"})
