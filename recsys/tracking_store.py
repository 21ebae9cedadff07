"""The MLflow store: where it is, and how it is opened.

Without `MLFLOW_TRACKING_URI` it is `sqlite:///mlflow.db` in the working directory, which `mlflow ui` opens.
"""

import importlib.metadata
import logging
import os
import shutil
import sqlite3
import warnings
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from features.errors import InputError
from features.files import cache_directory, temporary_directory_beside

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

DEFAULT_FILE = "mlflow.db"


def tracking_uri() -> str:
    """Where runs are kept: `MLFLOW_TRACKING_URI`, or a SQLite file in the working directory (its absolute URI)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(DEFAULT_FILE).absolute()}"


def connect(uri: str) -> "MlflowClient":
    """A client of the store; its migrations and MLflow's hints stay out of the terminal, errors still show."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="mlflow.*")
    _make_store(uri)
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient()


def _make_store(uri: str) -> None:
    """Make a SQLite store whole or not at all: MLflow cannot use one that it was killed over.

    It is a copy of an empty one in the user's cache directory, where there is one of this version of MLflow: to make
    one takes some sixty migrations and two seconds.
    """
    from mlflow.tracking import MlflowClient

    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or "?" in uri or path.exists() or not path.parent.is_dir():
        return
    empty = cache_directory() / f"mlflow-{importlib.metadata.version('mlflow-skinny')}.db"
    with temporary_directory_beside(path.absolute()) as temporary:
        made = temporary / path.name
        if empty.is_file():
            shutil.copyfile(empty, made)
        else:
            MlflowClient(f"sqlite:///{made}")
            _keep(made, empty)
        if not path.exists():  # else another process was faster
            made.rename(path)


def _keep(made: Path, empty: Path) -> None:
    """Keep a copy of an empty store; a cache that cannot be written costs time and nothing else."""
    with suppress(InputError), temporary_directory_beside(empty) as temporary:
        shutil.copyfile(made, temporary / empty.name)
        with closing(sqlite3.connect(temporary / empty.name)) as database, database:
            # "Default", which MLflow makes where there is none: it says where artifacts go, and that is elsewhere next.
            database.execute("DELETE FROM experiments")
        (temporary / empty.name).rename(empty)
