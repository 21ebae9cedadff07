"""The MLflow store: where it is, how it is opened, what its errors say, and which run and experiment are meant.

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
    from mlflow.entities import Experiment, Run
    from mlflow.tracking import MlflowClient

DEFAULT_FILE = "mlflow.db"
LOCAL_UI = "http://127.0.0.1:5000"
"""Where `mlflow ui` listens unless told otherwise."""
VIEW = "workflowType=machine_learning"
"""Has MLflow show its pages for training, and not those for agents."""
T = TypeVar("T")
CHECK_STORE = "check MLFLOW_TRACKING_URI, and whether its server answers"


def tracking_uri(recorded: str | None = None) -> str:
    """The store: `MLFLOW_TRACKING_URI`, else a recorded one, else a SQLite file in the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or recorded or f"sqlite:///{Path(DEFAULT_FILE).absolute()}"


def shown_uri(uri: str) -> str:
    """A store's address without what may be a password: the user's part, and what follows a question mark.

    >>> shown_uri("postgresql://me:p@ss/w@host:5432/db?password=x"), shown_uri("sqlite:////home/me/mlflow.db")
    ('postgresql://***@host:5432/db', 'sqlite:////home/me/mlflow.db')
    """
    uri = uri.partition("?")[0]
    return uri if uri.startswith("sqlite:") else re.sub("//.*@", "//***@", uri)


def ui_address(uri: str | None = None) -> str:
    """Where the UI of a store (of the environment's) is: the server itself, or where `mlflow ui` listens."""
    uri = uri or tracking_uri()
    if not uri.startswith(("http://", "https://")):
        return LOCAL_UI
    return re.sub("//[^/]*@", "//", uri)  # without a name and a password


def page_of(experiment_id: str, uri: str | None = None) -> str:
    """Address of an experiment in MLflow's UI, in its pages for training."""
    return f"{ui_address(uri).rstrip('/')}/#/experiments/{experiment_id}/runs?{VIEW}"


def place_of(run_info: Mapping[str, Any]) -> dict[str, str]:
    """For people: store and page of what a run.json or sweep.json names; empty where it names none."""
    uri, experiment_id = tracking_uri(run_info["mlflow_tracking_uri"]), run_info.get("mlflow_experiment_id")
    if experiment_id is None or run_info["mlflow_run_id"] is None:  # not tracked, or nobody wrote it down
        return {}
    return {"store": shown_uri(uri), "mlflow": page_of(experiment_id, uri)}


def is_there(uri: str) -> bool:
    """False for a SQLite file that does not exist, which MLflow would make; others are asked when they are used."""
    return not uri.startswith("sqlite:///") or "?" in uri or Path(uri.removeprefix("sqlite:///")).is_file()


def reason(error: Exception) -> str:
    """What MLflow says, on one line; an address in it may hold a password."""
    text = str(getattr(error, "message", None) or error).partition("[SQL: ")[0]
    text = re.sub(r"^\(raised as a result of [^)]*\)", "", text)
    if "Max retries" in text:
        return "no answer from its server"
    return re.sub(r"\w+://\S+", "(address)", " ".join(text.split()))[:200]


@contextmanager
def store_errors(expected: str, remedy: str = CHECK_STORE) -> Iterator[None]:
    """Whatever a store or its driver raises, as an `InputError`."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, ImportError) as error:
        raise InputError(expected, found=reason(error), remedy=remedy) from None


def connect(uri: str, remedy: str = CHECK_STORE) -> "MlflowClient":
    """A client of the store; its migrations and MLflow's hints stay out of the terminal.

    Raises `InputError` for a store that cannot be opened.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it prints the traceback of what we say
    warnings.filterwarnings("ignore", module="mlflow.*")
    with store_errors(f"cannot open the MLflow store {shown_uri(uri)}", remedy):
        _make_store(uri)
        with _environment_kept():
            mlflow.set_tracking_uri(uri)
        return mlflow.MlflowClient()


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Undo what MLflow writes into the environment: there it would be the user's word, here and in what we start."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    if before is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = before


def _make_store(uri: str) -> None:
    """Make a SQLite store whole or not at all: MLflow cannot use one that it was killed over.

    It is a copy of an empty one in the user's cache directory, where there is one of this version of MLflow: to make
    one takes some sixty migrations and two seconds.
    """
    from mlflow.tracking import MlflowClient

    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or "?" in uri or path.exists() or not path.parent.is_dir():
        return
    empty: Path | None = None
    with suppress(InputError):  # without a cache it takes those two seconds each time
        empty = made_in_cache("") / f"mlflow-{importlib.metadata.version('mlflow-skinny')}.db"
    with temporary_directory_beside(path.absolute()) as temporary:
        made = temporary / path.name
        if empty and empty.is_file():
            shutil.copyfile(empty, made)
        else:
            MlflowClient(f"sqlite:///{made}")
            if empty:
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


def refuse_other_run(expected: str, run_id: str | None = None) -> None:
    """Raise `InputError` where `MLFLOW_RUN_ID` asks for another run than this: it is MLflow's way to log into one."""
    given = os.environ.get("MLFLOW_RUN_ID")
    if given and given != run_id:
        raise InputError(expected, found=f"MLFLOW_RUN_ID={given}", remedy="unset MLFLOW_RUN_ID")


def run_of(run_info: Mapping[str, Any], written: Path) -> "tuple[MlflowClient, str, Run]":
    """The MLflow run that a run.json or sweep.json (`written`) names; its store is the environment's, else recorded.

    Raises `InputError`, naming both stores, where the run is not there; and where it, or its experiment, was deleted.
    """
    run_id, recorded = run_info["mlflow_run_id"], run_info["mlflow_tracking_uri"]
    refuse_other_run(f"{written} names its own MLflow run", run_id)
    uri = tracking_uri(recorded)
    expected = f"expected the MLflow run {run_id} in {shown_uri(uri)}"
    anew = f"set mlflow_run_id in {written} to null, and it is logged anew (a finished run by `muxrec promote`)"
    if not is_there(uri):
        raise InputError(expected, found="no such store", remedy=_way_to(uri, recorded, anew))
    client = connect(uri)
    with store_errors(f"cannot ask {shown_uri(uri)} for the MLflow run {run_id}"):
        run = _unless_absent(lambda: client.get_run(run_id))
        if run is None:
            raise InputError(expected, found="no such run", remedy=_way_to(uri, recorded, anew))
        _refuse_deleted(client, run, f"{expected}; found it deleted", anew)
    return client, uri, run


def _unless_absent(ask: Callable[[], T]) -> T | None:
    """An answer of the store; None where there is no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        return ask()
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _way_to(uri: str, recorded: str | None, anew: str) -> str:
    """What to do where a run is not in a store."""
    if recorded and recorded != uri:
        return f"unset MLFLOW_TRACKING_URI to use {shown_uri(recorded)}, where it was logged, or {anew}"
    return f"set MLFLOW_TRACKING_URI to the store that holds it, or {anew}"


def _refuse_deleted(client: "MlflowClient", run: "Run", expected: str, anew: str) -> None:
    """Raise `InputError` for a run that was deleted, as in MLflow's UI, by itself or with its experiment."""
    if run.info.lifecycle_stage != "deleted":
        return
    experiment = client.get_experiment(run.info.experiment_id)
    if experiment.lifecycle_stage == "deleted":
        restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        expected += f" with its experiment {experiment.name!r}"
    else:
        restore = f"mlflow runs restore --run-id {run.info.run_id}"
    raise InputError(expected, remedy=f"bring it back ({restore}), or {anew}")


def experiment_of_environment(client: "MlflowClient", default: str) -> "Experiment | None":
    """The experiment that `MLFLOW_EXPERIMENT_ID` or `MLFLOW_EXPERIMENT_NAME` names, else the one called `default`.

    None where there is none of that name yet. Raises `InputError` where the two contradict, for an unknown number, and
    for an experiment that was deleted.
    """
    number, name = os.environ.get("MLFLOW_EXPERIMENT_ID"), os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if number:
        known = _unless_absent(lambda: client.get_experiment(number)) if number.isdecimal() else None
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
    """Raise `InputError` for an experiment that was deleted, as in MLflow's UI."""
    if known and known.lifecycle_stage == "deleted":
        restore = f"mlflow experiments restore --experiment-id {known.experiment_id}"
        remedy = f"bring it back ({restore}), or use another name (MLFLOW_EXPERIMENT_NAME)"
        raise InputError(f"expected the MLflow experiment {known.name!r}", found="it deleted", remedy=remedy)
