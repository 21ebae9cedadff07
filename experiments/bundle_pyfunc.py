"""What MLflow runs to load a logged bundle: raw rows in, `probability` out; needs serving's dependencies alone.

MLflow executes this file (its "models from code"), so that nothing is pickled. It stands outside `serving`, which
never imports mlflow, and is handed to `recsys.tracking` as a path.
"""

import tempfile
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
import polars as pl
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc import scoring_server
from mlflow.pyfunc.model import PythonModel
from mlflow.types.schema import AnyType

from features.errors import InputError
from features.readers import read_chunks
from serving.scorer import Scorer


class BundleModel(PythonModel):
    """A scorer behind MLflow's predict."""

    def load_context(self, context: Any) -> None:
        """Open and verify the bundle among the model's artifacts."""
        self.scorer = Scorer(context.artifacts["bundle"])

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]  (the base promises None)
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Probabilities of raw rows; an absent column reads as missing, as long as there is one of a feature."""
        names = [feature.name for feature in self.scorer.registry.features]
        if not set(names) & set(model_input.columns):  # MLflow leaves others out, and with them all rows
            remedy = f"send some of {', '.join(names[:12])}"
            raise InputError("expected columns of the model's features", found="none", remedy=remedy)
        return pd.DataFrame(
            {"probability": self.scorer.score(model_input, allow_missing=True)}, index=model_input.index
        )


def read_csv(csv_input: TextIO | str) -> pd.DataFrame:
    """A csv, read by the reader of files: a field is text to the letter, and an empty one missing.

    pandas would make 7 of 007, and a missing value of NA.
    """
    text = Path(csv_input).read_text(encoding="utf-8") if isinstance(csv_input, str) else csv_input.read()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "request.csv"
        path.write_text(text, encoding="utf-8", newline="")
        try:
            chunks = list(read_chunks(path))
        except InputError as error:
            raise MlflowException(str(error).replace(f"{path}: ", ""), BAD_REQUEST) from None
    frame = pl.concat(chunks) if chunks else pl.DataFrame()
    return pd.DataFrame({name: pd.Series(frame[name].to_list(), dtype=object) for name in frame.columns})


def _teach_csv() -> None:
    """Let MLflow's scoring server read csv as files are read, where a column of the signature may be anything.

    MLflow refuses every csv for such a signature, which is ours. Without one, as `mlflow models predict` asks, it would
    guess types.
    """
    theirs = getattr(scoring_server, "parse_csv_input", None)
    if theirs is None or hasattr(theirs, "reads_any_type"):  # a version that has it elsewhere; another of our models
        return

    def parse_csv_input(csv_input: Any, schema: Any = None) -> pd.DataFrame:
        is_ours = schema is None or any(isinstance(kind, AnyType) for kind in schema.input_types())
        return read_csv(csv_input) if is_ours else theirs(csv_input, schema)

    setattr(parse_csv_input, "reads_any_type", True)  # noqa: B010  (a function has no such attribute for a type checker)
    scoring_server.parse_csv_input = parse_csv_input


_teach_csv()
set_model(BundleModel())
