"""Experiment scripts: named runs and studies."""

import features as features  # before onnxruntime, mlflow and ray: it turns their telemetry off
