"""A bundle as a LoggedModel of an MLflow run: a pyfunc from code, with the requirements of serving."""

import importlib.metadata
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import features
import serving
from recsys.tracking.tracker import Tracker
from serving.bundle import Bundle

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

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
"""The project's dependencies without the command line's typer."""


def log_model(tracker: Tracker, bundle: Bundle, *, name: str = "bundle") -> None:
    """Log a bundle under a name, with signature, example, the code that scores it, and its requirements.

    Nothing is pickled: the artifact is the bundle itself. A model that the run has under this name, such as one that a
    killed process left half-written, is deleted, unless it is a registered version.
    """
    import mlflow.pyfunc
    from mlflow.models import Model

    client, run_id = tracker.client, tracker.run_id
    inputs = bundle.golden.drop("probability").to_pandas()
    # MLflow checks that the requirements are installed, which takes most of a second; they are the installed versions.
    check = "mlflow.utils.requirements_utils._check_requirement_satisfied"
    with tracker.timed(), patch(check, lambda requirement_str: None, create=True):
        of_this_run = f"source_run_id = '{run_id}' and name = '{name}'"
        old = {model.model_id for model in client.search_logged_models([tracker.experiment_id], of_this_run)}
        for model_id in old - (_registered_models(tracker) if old else set()):
            client.delete_logged_model(model_id)
        # The steps of `mlflow.pyfunc.log_model` inside `mlflow.start_run`, which would restart an ended run.
        params = client.get_run(run_id).data.params
        made = client.create_logged_model(tracker.experiment_id, name, run_id, params=params)
        Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            model_id=made.model_id,
            python_model=str(Path(__file__).parent / "bundle_pyfunc.py"),
            artifacts={"bundle": str(bundle.path)},
            code_paths=[package.__path__[0] for package in (features, serving)],
            pip_requirements=[f"{package}=={importlib.metadata.version(package)}" for package in SERVING_PACKAGES],
            signature=_signature(inputs.columns),
            input_example=inputs.head(3),
        )


def _registered_models(tracker: Tracker) -> set[str]:
    """Identifiers of the run's LoggedModels that are versions of a registered model."""
    versions = tracker.client.search_model_versions(f"run_id = '{tracker.run_id}'")
    return {one.model_id or (one.source or "").removeprefix("models:/") for one in versions}


def _signature(columns: Iterable[str]) -> "ModelSignature":
    """Column names without types: a category may be text, an integer or a boolean, a number of any width.

    A column may be absent, which reads as missing. The scorer checks values itself.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType

    inputs = Schema([ColSpec(AnyType(), name, required=False) for name in columns])
    return ModelSignature(inputs, Schema([ColSpec(DataType.double, "probability")]))
