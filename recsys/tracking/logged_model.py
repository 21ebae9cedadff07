"""A bundle as a model of an MLflow run: with the code that scores it, and the requirements of serving alone."""

import importlib.metadata
from pathlib import Path

import features
import serving
from recsys.tracking.tracker import Tracker
from serving.bundle import Bundle

SERVING_PACKAGES = (
    "numpy",
    "onnxruntime",
    "polars",
    "polars-hash",
    "pydantic",
    "pyyaml",
    "rich",
    "safetensors",
    "xxhash",
)
"""What the project depends on, without the command line's typer."""


def log_model(tracker: Tracker, bundle: Bundle, *, name: str = "bundle") -> None:
    """Log a bundle under a name, in place of what the run has under it."""
    code = [Path(package.__path__[0]) for package in (features, serving)]
    requirements = [f"{package}=={importlib.metadata.version(package)}" for package in SERVING_PACKAGES]
    loader = Path(__file__).parent / "bundle_pyfunc.py"
    tracker.log_bundle(bundle.path, loader, code, requirements, bundle.golden, name=name)
