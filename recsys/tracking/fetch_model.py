"""Copies registered bundles to the disk; `resolve_bundle` runs it as a worker, so that its own process never imports
mlflow.
"""

import os
from pathlib import Path
from typing import Any

from features.line_worker import LineServer
from recsys.tracking.model_uri import parse_model_uri


def fetch(request: dict[str, Any]) -> str:
    """Directory of the bundle that `uri` means, below `cache`; `current` is a bundle that is open already, or None.

    Raises `InputError` if it cannot be fetched.
    """
    # A service asks again soon, and a person wants to read why it failed: no minutes of retries.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from recsys.tracking.model_registry import ModelRegistry

    uri = parse_model_uri(request["uri"])
    assert uri is not None
    current = Path(request["current"]) if request["current"] else None
    cache = Path(request["cache"])
    return str(ModelRegistry.open().fetch(uri.name, uri.version, alias=uri.alias, cache=cache, current=current))


if __name__ == "__main__":
    os.nice(5)  # the process that asks may be serving
    LineServer().run(fetch)
