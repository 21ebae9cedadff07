"""The model that is served: opened and checked beside the running one, then put in its place in one step.

A version is the bundle's `model_id`, so the same files have the same version wherever they are served.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from features.errors import InputError
from serving.bundle.bundle import PROBABILITY, Bundle
from serving.scorer import Scorer
from serving.server.limits import RefusedError
from serving.server.unlike import Window

# The one that is served, and the one before it, for those who ask for it by its version.
KEPT_VERSIONS = 2
WARM_UP_ROUNDS = 10

LoadOutcome = Literal["loaded", "unchanged", "refused"]
Resolve = Callable[[Path | None], Path]
"""The bundle directory to serve now, given the one that is open, if any; raises `InputError` where there is none."""

_log = logging.getLogger(__name__)


class _Files(NamedTuple):
    """What tells one state of a bundle directory from another without reading it."""

    path: Path
    entries: tuple[tuple[str, int, int, int, int], ...]
    """Name, inode, size, times of the last change of content and of anything else, permissions included."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ServedModel:
    """A version that answers requests."""

    name: str
    scorer: Scorer = field(repr=False)
    loaded_at: float
    """Seconds since 1970."""
    window: Window = field(repr=False)

    @property
    def version(self) -> str:
        """The bundle's `model_id`."""
        return self.scorer.bundle.model_id


class ModelHost:
    """The versions of one model that are loaded. `refresh` looks whether there is a new one; any thread may call it.

    `resolve` says where the bundle is: the only place that a path comes from. Requests name models and versions, which
    are looked up among those that are loaded.
    """

    def __init__(
        self, resolve: Resolve, name: str, *, num_threads: int = 1, on_load: Callable[[LoadOutcome], None] | None = None
    ) -> None:
        self.name = name
        self._resolve, self._num_threads = resolve, num_threads
        self._on_load = on_load or (lambda outcome: None)
        self._served: tuple[ServedModel, ...] = ()
        self._path: Path | None = None
        """Of the directory that was accepted last."""
        self._seen: _Files | None = None
        self._refusal: InputError | None = None
        """Of what was seen."""
        self._refreshing = threading.Lock()

    @property
    def served(self) -> tuple[ServedModel, ...]:
        """Versions that answer requests, the current one first; none before the first is loaded."""
        return self._served

    def find(self, name: str | None = None, version: str | None = None) -> ServedModel:
        """The current version, or the one that is asked for; raises `RefusedError` where it is not here."""
        served = self._served  # once: another thread may put others in its place
        self.check_name(name)
        if not served:
            error = InputError("expected a loaded model", found="one that is loading", remedy="try again")
            raise RefusedError(503, "not_ready", error, retry_seconds=1)
        if version is None:
            return served[0]
        for model in served:
            if model.version == version:
                return model
        known = ", ".join(model.version for model in served)
        error = InputError(f"expected a version of {known}", found=repr(version[:80]), remedy="leave the version out")
        raise RefusedError(404, "not_found", error)

    def check_name(self, name: str | None) -> None:
        """Raise `RefusedError` for another model's name; None is this one's."""
        if name is not None and name != self.name:
            error = InputError(f"expected model {self.name!r}", found=repr(name[:80]), remedy="correct the path")
            raise RefusedError(404, "not_found", error)

    def refresh(self) -> LoadOutcome:
        """Load what `resolve` names if it is new; raises `InputError` for a bundle that is refused, now or before.

        The version that is served answers all the while and stays where the new one is refused. A refused directory is
        opened again when its files change, or where the machine was to blame: too many open files, no memory.
        """
        with self._refreshing:
            outcome = self._look()
            if outcome == "refused":
                assert self._refusal is not None
                raise self._refusal.with_traceback(None)
            return outcome

    def watch(self, seconds: float, stop: threading.Event) -> None:
        """Refresh every so many seconds until told to stop; a failure is logged, and the served version stays."""
        while not stop.wait(seconds):
            try:
                with self._refreshing:
                    self._look()  # what was refused before is no news
            except InputError as error:
                _log.error("model_refused", extra={"model": self.name, "error": str(error)})

    def _look(self) -> LoadOutcome:
        """The outcome, counted; raises `InputError` for what is refused for the first time."""
        try:
            outcome = self._refresh()
        except BaseException as error:  # polars' panics are no `Exception`
            self._on_load("refused")
            if isinstance(error, InputError):
                raise
            # Whatever a half-copied directory makes happen (a file that is gone, memory) is a reason to refuse it.
            _log.exception("model_error", extra={"model": self.name})
            found = f"{type(error).__name__}: {error}"[:160]
            raise InputError("expected a bundle that opens", found=found, remedy="look at the log") from None
        self._on_load(outcome)
        return outcome

    def _refresh(self) -> LoadOutcome:
        current = self._served[0] if self._served else None
        path = self._resolve(self._path)
        files = _files(path.resolve())  # what a symbolic link leads to now, and not a mixture of then and later
        if files == self._seen:
            return "unchanged" if self._refusal is None else "refused"
        self._seen, self._refusal = None, None
        try:
            outcome = self._load(path, files, current)
        except InputError as error:
            if not _is_passing(error):  # a copy: the error itself holds on to all that was opened
                self._seen = files
                self._refusal = InputError(error.expected, found=error.found, remedy=error.remedy, row=error.row)
            raise
        self._seen = files
        return outcome

    def _load(self, path: Path, files: _Files, current: ServedModel | None) -> LoadOutcome:
        begun = time.monotonic()
        bundle = Bundle.open(files.path)
        if current is not None and bundle.model_id == current.version:
            self._path = path
            return "unchanged"  # the same model from another place: what is mapped stays as it is
        scorer = Scorer(bundle, num_threads=self._num_threads)
        model = ServedModel(name=self.name, scorer=scorer, loaded_at=time.time(), window=Window(bundle))
        _check_and_warm(model.scorer)
        others = tuple(one for one in self._served if one.version != model.version)
        self._served, self._path = (model, *others)[:KEPT_VERSIONS], path
        seconds = round(time.monotonic() - begun, 3)
        details = {"model": self.name, "version": model.version, "path": str(path), "seconds": seconds}
        _log.info("model_loaded", extra=details | {"previous": current.version if current else None})
        return "loaded"


def check_name(name: str) -> None:
    """Raise `InputError` for a name that stands in no URL: clients resolve dots, and a slash ends a part of a path.

    >>> check_name("clicks of today, 50%")
    """
    if name in ("", ".", "..") or "/" in name or not name.isprintable():
        expected, remedy = "expected a served name that a URL can hold", "pass --name NAME, such as --name clicks"
        raise InputError(expected, found=repr(name)[:80], remedy=remedy)


def _check_and_warm(scorer: Scorer) -> None:
    """Score the golden rows as the trainer did, then again and again until first times are over.

    Raises `InputError` where the scores differ.
    """
    difference, tolerance = scorer.verify(), scorer.bundle.golden_tolerance
    if not difference <= tolerance:
        expected = f"{scorer.bundle.path}: expected golden rows to score as in training, within {tolerance:.1e}"
        raise InputError(expected, found=f"a difference of {difference:.1e}", remedy="export the bundle again")
    rows = scorer.bundle.golden.drop(PROBABILITY).to_dicts()
    for _ in range(WARM_UP_ROUNDS):
        for num_rows in (1, len(rows)):
            scorer.score(rows[:num_rows], allow_missing=True)


def _is_passing(error: InputError) -> bool:
    """Whether the machine refused something, and not the bundle: the next look may find it well."""
    cause = error.__context__  # also where it is not shown
    return isinstance(cause, OSError | MemoryError) and not isinstance(cause, FileNotFoundError)


def _files(path: Path) -> _Files:
    """Raises `InputError` for what is no directory."""
    try:
        entries = [(entry.name, entry.stat()) for entry in sorted(path.iterdir())]
    except OSError as error:
        found = error.strerror or str(error)
        remedy = "name a directory that `muxrec export` wrote"
        raise InputError(f"{path}: expected a bundle directory", found=found, remedy=remedy) from None
    return _Files(path, tuple((name, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns) for name, at in entries))
