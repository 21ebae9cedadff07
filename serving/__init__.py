"""Score a raw example: bundles, the scorer, the batch job; never torch, pandas or mlflow."""
