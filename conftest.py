"""Settings of the whole test run."""

import features as features  # before any test imports onnxruntime, so that no test sends telemetry

# The script that MLflow itself runs to load a bundle: importing it registers a model, and MLflow warns of its types.
collect_ignore = ["recsys/tracking/bundle_pyfunc.py"]
