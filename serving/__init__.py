"""Score a raw example: bundles, the scorer, the batch job; never torch, pandas or mlflow."""

import features as features  # before onnxruntime
