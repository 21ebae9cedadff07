"""Tuned runs on Frappe (BARS `Frappe_x1`)."""

from experiments.config import Experiment


def frappe() -> Experiment:
    """FinalMLP on 131,072 floats: 32,768 rows of 4, four probes."""
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
            "embedding": {"num_rows": 32_768, "width": 4, "probes": 4, "l2": 0.05},
            "trainer": {"batch_size": 4096},
        }
    )
