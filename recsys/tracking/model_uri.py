"""What a user may call a model: a directory, or `models:/NAME@alias` and `models:/NAME/7` of MLflow's registry.

The registry is asked by a process of its own (`recsys.tracking.fetch_model`), which ends when the bundle is on the
disk. So
whoever scores or serves never imports mlflow, and keeps serving when the registry is away.
"""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from features.errors import InputError
from features.files import made_in_cache

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
    """What a `models:/` URI says; None for a path. Raises `InputError` for a URI of another form.

    >>> parse_model_uri("models:/frappe@champion"), parse_model_uri("models:/frappe/7"), parse_model_uri("work/bundle")
    (ModelUri(name='frappe', version=None, alias='champion'), ModelUri(name='frappe', version='7', alias=None), None)
    """
    # A Path has swallowed one of two slashes; nobody means a directory called "models:".
    found = re.match(r"models:/*(.*)", str(text), flags=re.DOTALL)
    if found is None:
        return None
    parts = re.fullmatch(r"([^/:@]+)(?:@([\w-]+)|/([1-9]\d{0,17}))", found[1])
    if parts is None:
        raise InputError("expected a version of a registered model", found=repr(str(text))[:200], remedy=REMEDY)
    return ModelUri(name=parts[1], version=parts[3], alias=parts[2])


def resolve_bundle(uri_or_path: str | Path, *, current: Path | None = None) -> Path:
    """Bundle directory that a path or a `models:/` URI means; the directory of a URI is named by version and content.

    A bundle that is fetched is verified before it gets its name, and so is one that was fetched before, unless it is
    `current`, which the caller has open. Raises `InputError` for a URI of another form, an unknown model, version or
    alias, and a registry that cannot be reached. A path is handed back as it is.
    """
    uri = parse_model_uri(uri_or_path)
    if uri is None:
        return Path(uri_or_path)
    if importlib.util.find_spec("mlflow") is None:
        remedy = "pip install mlflow, or name a bundle directory"
        raise InputError(f"{uri}: its registry is asked through mlflow", found="no mlflow", remedy=remedy)
    # -P: the working directory of a service is not a place to import code from.
    command = [sys.executable, "-P", "-m", "recsys.tracking.fetch_model", str(uri), str(made_in_cache("models"))]
    command += [str(current)] if current else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        remedy = "check MLFLOW_TRACKING_URI, or name a bundle directory"
        raise InputError(f"cannot fetch {uri}", found=lines[-1][:200], remedy=remedy) from None
    if "path" not in answer:
        raise InputError(answer["expected"], found=answer["found"], remedy=answer["remedy"])
    return Path(answer["path"])
