"""Runs on Criteo with the settings that BARS tuned for `Criteo_x1` and `Criteo_x4_001`.

The table has as many bytes as the tables of the published run (vocabulary times width), so that a difference in score
is due to sharing rows, not to memory. A value reads four probes of width 4: on Frappe, at equal bytes, that scored
better than two of width 8 or one of 16.
"""

from recsys.config import Experiment, variant


def criteo_x1() -> Experiment:
    """FinalMLP on numbers as numbers: `python -m data.criteo --protocol log1p`.

    2,086,329 values of 10 floats are 83 MB. The first gate reads the numbers I1 to I13, the second C6.
    """
    return Experiment.model_validate(
        {
            "name": "criteo_x1",
            "model": {
                "name": "final_mlp",
                "mlp1_hidden": [400, 400, 400],
                "mlp2_hidden": [1000],
                "mlp1_dropout": 0.2,
                "mlp2_dropout": 0.3,
                "gate_hidden": [800],
                "fs1_context": [f"I{number}" for number in range(1, 14)],
                "fs2_context": ["C6"],
                "num_heads": 200,
            },
            "embedding": {"num_rows": 2_086_329 * 10 // 4, "width": 4, "probes": 4, "l2": 1e-5},
            "trainer": {"batch_size": 4096},
        }
    )


def criteo_x1_final_net() -> Experiment:
    """FinalNet of two blocks, as BARS tuned it."""
    return variant(
        criteo_x1(),
        "criteo_x1_final_net",
        model={"name": "final_net", "block2_hidden": [400, 400], "block2_dropout": 0.0},
    )


def criteo_x4() -> Experiment:
    """FinalMLP without gates and batch norm on numbers as tokens: `python -m data.criteo --protocol x4`.

    910,747 values of 16 floats are 58 MB. BARS left out values seen fewer than ten times; here they have rows too.
    """
    return Experiment.model_validate(
        {
            "name": "criteo_x4",
            "model": {
                "name": "final_mlp",
                "mlp1_hidden": [1000] * 5,
                "mlp2_hidden": [500],
                "mlp1_dropout": 0.2,
                "mlp2_dropout": 0.1,
                "mlp1_batch_norm": False,
                "mlp2_batch_norm": False,
                "use_gates": False,
                "num_heads": 50,
            },
            "embedding": {"num_rows": 910_747 * 16 // 4, "width": 4, "probes": 4, "l2": 1e-5},
            "trainer": {"batch_size": 10_000},
        }
    )
