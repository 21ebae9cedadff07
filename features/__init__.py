"""What an example means: feature types, hashing, encoding; numpy and polars only.

Every process of ours imports this package before the libraries below, which then report nothing to their makers. One
that is set in the environment stays as it is.
"""

import os

# onnxruntime looks at its variable when it is imported, and takes 0 for a word too: only 1 is silent.
for _name, _value in {
    "ORT_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
}.items():
    os.environ.setdefault(_name, _value)
