"""Runs on Avazu with the settings that BARS tuned for `Avazu_x1` and `Avazu_x4_001`.

The table has as many bytes as the tables of the published run (vocabulary times width), for the reason given in
`experiments.criteo`. `data.avazu` makes the 24 columns of Avazu_x4; the 22 of Avazu_x1 are anonymous, so the run of
that name applies its settings to the same 24 columns.
"""

from recsys.config import Experiment, variant


def avazu_x1() -> Experiment:
    """FinalMLP whose gates have no context. 1,298,621 values of 10 floats are 52 MB."""
    return Experiment.model_validate(
        {
            "name": "avazu_x1",
            "model": {
                "name": "final_mlp",
                "mlp1_hidden": [400, 400, 400],
                "mlp2_hidden": [800],
                "mlp1_dropout": 0.3,
                "mlp2_dropout": 0.3,
                "gate_hidden": [800],
                "num_heads": 10,
            },
            "embedding": {"num_rows": 1_298_621 * 10 // 4, "width": 4, "probes": 4, "l2": 0.05},
            "trainer": {"batch_size": 4096},
        }
    )


def avazu_x1_final_net() -> Experiment:
    """FinalNet of two blocks, as BARS tuned it."""
    return variant(
        avazu_x1(),
        "avazu_x1_final_net",
        model={
            "name": "final_net",
            "block1_hidden": [800],
            "block2_hidden": [800, 800],
            "block1_dropout": 0.3,
            "block2_dropout": 0.2,
        },
    )


def avazu_x4() -> Experiment:
    """FinalMLP without gates, and one epoch without progress ends it: the second overfits.

    3,750,999 values of 16 floats are 240 MB. BARS left values seen once out; here they have rows too.
    """
    return Experiment.model_validate(
        {
            "name": "avazu_x4",
            "model": {
                "name": "final_mlp",
                "mlp1_hidden": [2000, 2000, 2000],
                "mlp2_hidden": [500],
                "mlp1_dropout": 0.0,
                "mlp2_dropout": 0.0,
                "mlp2_batch_norm": False,
                "use_gates": False,
                "num_heads": 20,
            },
            "embedding": {"num_rows": 3_750_999 * 16 // 4, "width": 4, "probes": 4, "l2": 1e-9},
            "trainer": {"batch_size": 10_000, "patience": 1},
        }
    )
