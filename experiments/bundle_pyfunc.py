"""What MLflow runs to load a logged bundle: raw rows in, `probability` out; needs serving's dependencies alone.

MLflow executes this file (its "models from code"), so that nothing is pickled. It stands outside `serving`, which
never imports mlflow, and is handed to `recsys.tracking` as a path.
"""

from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from serving.scorer import Scorer


class BundleModel(PythonModel):
    """A scorer behind MLflow's predict."""

    def load_context(self, context: Any) -> None:
        """Open and verify the bundle among the model's artifacts."""
        self.scorer = Scorer(context.artifacts["bundle"])

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]  (the base promises None)
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Probabilities of raw rows; an absent column reads as missing."""
        return pd.DataFrame(
            {"probability": self.scorer.score(model_input, allow_missing=True)}, index=model_input.index
        )


set_model(BundleModel())
