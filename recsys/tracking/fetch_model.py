"""`python -m recsys.tracking.fetch_model URI CACHE [CURRENT]`: a registered bundle to the disk; run by
`resolve_bundle`.

Prints one line of JSON: `path`, or `expected`, `found` and `remedy`.
"""

import json
import os
import sys
from pathlib import Path

from features.errors import InputError
from recsys.tracking.model_uri import parse_model_uri


def main(arguments: list[str]) -> int:
    """Fetch a bundle; exit code 0, or 2 where it cannot be had."""
    uri = parse_model_uri(arguments[0])
    assert uri is not None
    current = Path(arguments[2]) if len(arguments) > 2 else None
    os.nice(5)  # whoever asks may be serving
    # A service asks again soon, and a person wants to read why it failed: no minutes of retries.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    try:
        from recsys.tracking.model_registry import ModelRegistry

        path = ModelRegistry.open().fetch(
            uri.name, uri.version, alias=uri.alias, cache=Path(arguments[1]), current=current
        )
        answer, code = {"path": str(path)}, 0
    except InputError as error:
        answer, code = {"expected": error.expected, "found": error.found, "remedy": error.remedy}, 2
    sys.stdout.write(json.dumps(answer) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
