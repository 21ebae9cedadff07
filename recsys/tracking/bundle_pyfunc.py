"""MLflow's loader of a logged bundle: raw rows in, `probability` out; needs only serving's dependencies.

MLflow executes this file (its "models from code"), so nothing is pickled. `recsys.tracking.logged_model` passes its
path; it is not in `serving`, which never imports mlflow.
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

from features.errors import InputError
from features.io.csv_format import CsvFormat
from features.io.readers import columns_of, read_chunks
from features.registry import FeatureRegistry
from serving.scorer import Scorer


class BundleModel(PythonModel):
    """A scorer behind MLflow's predict."""

    def load_context(self, context: Any) -> None:
        """Open and verify the bundle among the model's artifacts."""
        self.scorer = Scorer(context.artifacts["bundle"])
        _teach_csv(self.scorer.registry)

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]  (the base promises None)
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Probabilities of raw rows; an absent column reads as missing, but some feature's column must be there."""
        names = [feature.name for feature in self.scorer.registry.features]
        if not set(names) & set(model_input.columns):  # MLflow drops unknown columns, and then has no rows
            remedy = f"send some of {', '.join(names[:12])}"
            raise InputError("expected columns of the model's features", found="none", remedy=remedy)
        return pd.DataFrame(
            {"probability": self.scorer.score(model_input, allow_missing=True)}, index=model_input.index
        )


def read_csv(csv_input: TextIO | str, csv: CsvFormat | None = None) -> pd.DataFrame:
    """Read a csv as files are read: a field is literal text, and an empty one is missing.

    pandas would read 007 as 7, and NA as a missing value.
    """
    text = Path(csv_input).read_text(encoding="utf-8") if isinstance(csv_input, str) else csv_input.read()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "request.csv"
        path.write_text(text, encoding="utf-8", newline="")
        try:
            columns, chunks = columns_of(path, csv), list(read_chunks(path, csv=csv))
        except InputError as error:
            raise MlflowException(str(error).replace(f"{path}: ", ""), BAD_REQUEST) from None
    frame = pl.concat(chunks) if chunks else pl.DataFrame(schema=columns)  # a header alone
    return pd.DataFrame({name: pd.Series(frame[name].to_list(), dtype=object) for name in frame.columns})


def _teach_csv(registry: FeatureRegistry) -> None:
    """Make MLflow's scoring server read a csv for a model with these features as files are read.

    MLflow refuses every csv for a signature with columns of any type, such as ours. Without a signature, as in `mlflow
    models predict`, it would guess types; here it then reads as for the model that was loaded last.
    """
    theirs = getattr(scoring_server, "parse_csv_input", None)
    if theirs is None:  # another version of MLflow
        return
    formats: dict[frozenset[str], CsvFormat | None] | None = getattr(theirs, "formats", None)
    if formats is None:  # the process's first model of ours
        formats = {}

        def parse_csv_input(csv_input: Any, schema: Any = None) -> pd.DataFrame:
            names = [*formats][-1] if schema is None else frozenset(schema.input_names())
            return read_csv(csv_input, formats[names]) if names in formats else theirs(csv_input, schema)

        parse_csv_input.formats = formats  # pyright: ignore[reportFunctionMemberAccess]
        scoring_server.parse_csv_input = parse_csv_input
    names = frozenset(feature.name for feature in registry.features)
    formats.pop(names, None)
    formats[names] = registry.csv


set_model(BundleModel())
