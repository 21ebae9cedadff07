"""The MLflow store: its address, opening it, its errors, and the run and experiment that a command means.

Without `MLFLOW_TRACKING_URI` it is `sqlite:///mlflow.db` in the working directory, which `mlflow ui` opens.
"""

import importlib.metadata
import logging
import os
import re
import shutil
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from features.errors import InputError
from features.files import made_in_cache, temporary_directory_beside

if TYPE_CHECKING:
    from mlflow.entities import Experiment
    from mlflow.tracking import MlflowClient

DEFAULT_FILE = "mlflow.db"
LOCAL_UI = "http://127.0.0.1:5000"
"""Default address of `mlflow ui`."""
VIEW = "workflowType=machine_learning"
"""Opens MLflow's pages for training instead of those for agents."""
T = TypeVar("T")
CHECK_STORE = "check MLFLOW_TRACKING_URI, and whether its server answers"


def tracking_uri(recorded: str | None = None) -> str:
    """Address of the store: `MLFLOW_TRACKING_URI`, else a recorded one, else a SQLite file in the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or recorded or f"sqlite:///{Path(DEFAULT_FILE).absolute()}"


def shown_uri(uri: str) -> str:
    """A store's address without its user part and its query, which may hold a password.

    >>> shown_uri("postgresql://me:p@ss/w@host:5432/db?password=x"), shown_uri("sqlite:////home/me/mlflow.db")
    ('postgresql://***@host:5432/db', 'sqlite:////home/me/mlflow.db')
    """
    uri = uri.partition("?")[0]
    return uri if uri.startswith("sqlite:") else re.sub("//.*@", "//***@", uri)


def ui_address(uri: str | None = None) -> str:
    """Address of the UI of a store (by default the environment's): the server itself, or that of `mlflow ui`."""
    uri = shown_uri(tracking_uri(uri))
    return uri.replace("//***@", "//") if uri.startswith(("http://", "https://")) else LOCAL_UI


def page_of(experiment_id: str, uri: str | None = None) -> str:
    """Address of an experiment's training page in MLflow's UI."""
    return f"{ui_address(uri).rstrip('/')}/#/experiments/{experiment_id}/runs?{VIEW}"


def place_of(run_info: Mapping[str, Any]) -> dict[str, str]:
    """Store and page to show for the MLflow run of a run.json or sweep.json; empty for an untracked run."""
    uri, experiment_id = tracking_uri(run_info["mlflow_tracking_uri"]), run_info.get("mlflow_experiment_id")
    if experiment_id is None or run_info["mlflow_run_id"] is None:
        return {}
    return {"store": shown_uri(uri), "mlflow": page_of(experiment_id, uri)}


def is_there(uri: str) -> bool:
    """False for a SQLite file that does not exist, which MLflow would create; other stores fail when they are used."""
    return not uri.startswith("sqlite:///") or "?" in uri or Path(uri.removeprefix("sqlite:///")).is_file()


def reason(error: Exception) -> str:
    """MLflow's message on one line, without addresses, which may hold a password."""
    text = str(getattr(error, "message", None) or error).partition("[SQL: ")[0]
    text = re.sub(r"^\(raised as a result of [^)]*\)", "", text)
    if "Max retries" in text:
        return "no answer from its server"
    return re.sub(r"\w+://\S+", "(address)", " ".join(text.split()))[:200]


@contextmanager
def store_errors(expected: str, remedy: str = CHECK_STORE) -> Iterator[None]:
    """Turn an error of a store or its driver into an `InputError`."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, ImportError) as error:
        raise InputError(expected, found=reason(error), remedy=remedy) from None


def connect(uri: str, remedy: str = CHECK_STORE) -> "MlflowClient":
    """A client of the store, which is created where it is missing; MLflow's log lines stay out of the terminal.

    Raises `InputError` for a store that cannot be opened.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs a traceback
    warnings.filterwarnings("ignore", module="mlflow.*")
    with store_errors(f"cannot open the MLflow store {shown_uri(uri)}", remedy):
        _make_store(uri)
        before = os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(uri)
        # MLflow sets the variable too, and child processes would take that for the user's choice.
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before
        return mlflow.MlflowClient()


def connect_existing(uri: str) -> "MlflowClient":
    """A client of a store that exists already; raises `InputError` if there is none."""
    if not is_there(uri):
        remedy = "set MLFLOW_TRACKING_URI to the store that holds the runs and models"
        raise InputError("expected an MLflow store", found=f"none at {shown_uri(uri)}", remedy=remedy)
    return connect(uri)


def _make_store(uri: str) -> None:
    """Create a SQLite store atomically: MLflow cannot use one whose creation was interrupted.

    It is copied from an empty store of this MLflow version in the user's cache directory, as creating one takes some
    sixty migrations and two seconds.
    """
    from mlflow.tracking import MlflowClient

    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or "?" in uri or path.exists() or not path.parent.is_dir():
        return
    empty: Path | None = None
    with suppress(InputError):  # no cache: two seconds each time
        empty = made_in_cache("") / f"mlflow-{importlib.metadata.version('mlflow-skinny')}.db"
    with temporary_directory_beside(path.absolute()) as temporary:
        made = temporary / path.name
        if empty and empty.is_file():
            shutil.copyfile(empty, made)
        else:
            MlflowClient(f"sqlite:///{made}")
            if empty:
                _keep(made, empty)
        if not path.exists():  # another process may have been faster
            made.rename(path)


def _keep(made: Path, empty: Path) -> None:
    """Put a copy of an empty store in the cache; a cache that cannot be written only costs time."""
    with suppress(InputError), temporary_directory_beside(empty) as temporary:
        shutil.copyfile(made, temporary / empty.name)
        with closing(sqlite3.connect(temporary / empty.name)) as database, database:
            # MLflow creates "Default" again, with the artifact location of the next store.
            database.execute("DELETE FROM experiments")
        (temporary / empty.name).rename(empty)


def refuse_other_run(expected: str, run_id: str | None = None) -> None:
    """Raise `InputError` where `MLFLOW_RUN_ID`, MLflow's way to choose a run to log into, names another run."""
    given = os.environ.get("MLFLOW_RUN_ID")
    if given and given != run_id:
        raise InputError(expected, found=f"MLFLOW_RUN_ID={given}", remedy="unset MLFLOW_RUN_ID")


def unless_absent(ask: Callable[[], T]) -> T | None:
    """The store's answer; None for a resource that does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        return ask()
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def experiment_of_environment(client: "MlflowClient", default: str) -> "Experiment | None":
    """The experiment that `MLFLOW_EXPERIMENT_ID` or `MLFLOW_EXPERIMENT_NAME` names, else the one called `default`.

    None if there is none of that name yet. Raises `InputError` if the two variables contradict each other, for an
    unknown number, and for a deleted experiment.
    """
    number, name = os.environ.get("MLFLOW_EXPERIMENT_ID"), os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if number:
        known = unless_absent(lambda: client.get_experiment(number)) if number.isdecimal() else None
        if known is None:
            expected = f"MLFLOW_EXPERIMENT_ID: expected an experiment of {shown_uri(tracking_uri())}"
            raise InputError(expected, found=repr(number)[:80], remedy="unset it, or give MLFLOW_EXPERIMENT_NAME")
        if name and known.name != name:
            expected = "MLFLOW_EXPERIMENT_ID and MLFLOW_EXPERIMENT_NAME: expected one experiment"
            raise InputError(expected, found=f"{known.name!r} and {name!r}", remedy="unset one of them")
    else:
        known = client.get_experiment_by_name(name or default) if name or default else None
    refuse_deleted_experiment(known)
    return known


def refuse_deleted_experiment(known: "Experiment | None") -> None:
    """Raise `InputError` for an experiment that was deleted, for example in MLflow's UI."""
    if known and known.lifecycle_stage == "deleted":
        restore = f"mlflow experiments restore --experiment-id {known.experiment_id}"
        remedy = f"bring it back ({restore}), or use another name (MLFLOW_EXPERIMENT_NAME)"
        raise InputError(f"expected the MLflow experiment {known.name!r}", found="it deleted", remedy=remedy)
