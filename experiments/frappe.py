"""Tuned runs on Frappe (BARS `Frappe_x1`), all on 131,072 floats: 32,768 rows of 4, eight probes.

`frappe` has a schedule of our own, which ends as good in about half as many epochs; the others follow BARS's.
"""

from recsys.config import Experiment, variant
from recsys.recipe import COSINE, NEAR_ZERO
from recsys.sweep.search_space import Choice, Float, SearchSpace


def frappe() -> Experiment:
    """FinalMLP as BARS tuned it, but for the schedule and the initial table."""
    return variant(_bars(), "frappe", embedding=NEAR_ZERO, trainer=COSINE)


def _bars() -> Experiment:
    return Experiment.model_validate(
        {
            "name": "frappe",
            "model": {
                "name": "final_mlp",
                "mlp1_hidden": [400],
                "mlp2_hidden": [100],
                "mlp1_dropout": 0.4,
                "mlp2_dropout": 0.4,
                "gate_hidden": [400],
                "fs1_context": ["user"],
                "fs2_context": ["item"],
                "num_heads": 5,
            },
            "embedding": {"num_rows": 32_768, "width": 4, "probes": 8, "l2": 0.05},
            "trainer": {"batch_size": 4096},
        }
    )


def frappe_final_net() -> Experiment:
    """FinalNet of two blocks, whose defaults are BARS's for Frappe."""
    return variant(_bars(), "frappe_final_net", model={"name": "final_net"}, embedding={"l2": 0.1})


def frappe_dcn_v2() -> Experiment:
    """DCN V2, parallel, as BARS tuned it."""
    model = {"name": "dcn_v2", "num_cross_layers": 4, "hidden": [400, 400, 400], "dropout": 0.4}
    return variant(_bars(), "frappe_dcn_v2", model=model)


def frappe_deep_fm() -> Experiment:
    """DeepFM as BARS tuned it."""
    model = {"name": "deep_fm", "hidden": [400, 400, 400], "dropout": 0.2}
    return variant(_bars(), "frappe_deep_fm", model=model)


SPACES: dict[str, SearchSpace] = {
    "frappe": {
        "embedding.l2": Float(low=0.005, high=0.5, log=True),
        "embedding.probes": Choice(values=(4, 8)),
        "trainer.learning_rate": Float(low=3e-4, high=3e-3, log=True),
        "model.mlp1_hidden": Choice(values=([200], [400], [400, 400])),
        "model.mlp1_dropout": Float(low=0.0, high=0.6),
        "model.mlp2_dropout": Float(low=0.0, high=0.6),
    },
}
