"""Score raw examples with a bundle, without torch, pandas or mlflow: `from serving import Scorer`.

The scorer is imported when it is first asked for, so that a part of this package can be imported without all of it.
"""

from typing import TYPE_CHECKING, Any

import features as features  # before onnxruntime

if TYPE_CHECKING:
    from serving.scorer import Scorer

__all__ = ["Scorer"]


def __getattr__(name: str) -> Any:
    if name != "Scorer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from serving.scorer import Scorer

    return Scorer
