"""Names of models: a bundle directory, or `models:/NAME@alias` and `models:/NAME/7` of MLflow's registry.

The registry is asked by a worker process (`recsys.tracking.fetch_model`), which ends when the bundle is on the disk. So
a process that scores or serves never imports mlflow, and keeps serving while the registry is away.
"""

import importlib.util
import re
from pathlib import Path
from typing import NamedTuple

from features.errors import InputError
from features.files import made_in_cache
from features.line_worker import WorkerError, ask_once

SCHEME = "models:/"
REMEDY = "write models:/NAME@alias or models:/NAME/VERSION, or name a bundle directory"


class ModelUri(NamedTuple):
    """A version of a registered model: by number, or by the alias that points to it."""

    name: str
    version: str | None
    alias: str | None

    def __str__(self) -> str:
        return f"{SCHEME}{self.name}" + (f"@{self.alias}" if self.alias else f"/{self.version}")


def parse_model_uri(text: str | Path) -> ModelUri | None:
    """The parts of a `models:/` URI; None for a path. Raises `InputError` for a URI of another form.

    >>> parse_model_uri("models:/frappe@champion"), parse_model_uri("models:/frappe/7"), parse_model_uri("work/bundle")
    (ModelUri(name='frappe', version=None, alias='champion'), ModelUri(name='frappe', version='7', alias=None), None)
    """
    # A Path merges slashes; a directory called "models:" is not supported.
    found = re.match(r"models:/*(.*)", str(text), flags=re.DOTALL)
    if found is None:
        return None
    parts = re.fullmatch(r"([^/:@]+)(?:@([\w-]+)|/([1-9]\d{0,17}))", found[1])
    if parts is None:
        raise InputError("expected a version of a registered model", found=repr(str(text))[:200], remedy=REMEDY)
    return ModelUri(name=parts[1], version=parts[3], alias=parts[2])


def resolve_bundle(uri_or_path: str | Path, *, current: Path | None = None) -> Path:
    """Bundle directory of a path, which is returned as it is, or of a `models:/` URI, named by version and content.

    A bundle is verified when it is fetched, and again when it was fetched before, unless it is `current`, which the
    caller has open. Raises `InputError` for a URI of another form, an unknown model, version or alias, and a registry
    that cannot be reached.
    """
    uri = parse_model_uri(uri_or_path)
    if uri is None:
        return Path(uri_or_path)
    if importlib.util.find_spec("mlflow") is None:
        remedy = "pip install mlflow, or name a bundle directory"
        raise InputError(f"{uri}: reading its registry needs mlflow", found="no mlflow", remedy=remedy)
    request = {"uri": str(uri), "cache": made_in_cache("models"), "current": current}
    try:
        return Path(ask_once("recsys.tracking.fetch_model", request))
    except WorkerError as error:
        remedy = "check MLFLOW_TRACKING_URI, or name a bundle directory"
        raise InputError(f"cannot fetch {uri}", found=error.last_line or str(error), remedy=remedy) from None
