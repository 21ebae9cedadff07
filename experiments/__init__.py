"""Which combination: named runs, the `muxrec` command and its reports."""

import features as features  # before onnxruntime, mlflow and ray
