"""Feature types, hashing and encoding of examples; numpy and polars only.

Every muxrec process imports this package before the libraries below, which turns off their telemetry. A variable that
the environment sets keeps its value.
"""

import os

# onnxruntime reads its variable on import, and only 1 turns telemetry off.
for _name, _value in {
    "ORT_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
}.items():
    os.environ.setdefault(_name, _value)
