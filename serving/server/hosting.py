"""The served model: a new version is opened and checked next to the running one, then replaces it in one step.

A version is the bundle's `model_id`, so the same files have the same version on every server.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from features.errors import InputError
from serving.bundle.bundle import PROBABILITY, Bundle
from serving.scorer import Scorer
from serving.server.coverage_window import CoverageWindow
from serving.server.limits import RefusedError

# The current version and the one before it, which clients can still ask for by its version.
KEPT_VERSIONS = 2
WARM_UP_ROUNDS = 10

LoadOutcome = Literal["loaded", "unchanged", "refused"]
Resolve = Callable[[Path | None], Path]
"""Finds the bundle directory to serve now, given the open one, if any; raises `InputError` if there is none."""

_log = logging.getLogger(__name__)


_Files = tuple[Path, tuple[tuple[str, int, int, int, int], ...]]
"""State of a bundle directory, to notice a change without reading the files: its path and, by file, the name, inode,
size, and times of the last change of content and of anything else, permissions included."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ServedModel:
    """A loaded version of the model."""

    name: str
    scorer: Scorer = field(repr=False)
    loaded_at: float
    """Seconds since 1970."""
    window: CoverageWindow = field(repr=False)

    @property
    def version(self) -> str:
        """The bundle's `model_id`."""
        return self.scorer.bundle.model_id


class ModelHost:
    """The loaded versions of one model. `refresh` looks for a new one; any thread may call it.

    Paths come from `resolve` alone. Requests name models and versions, which are looked up among the loaded ones.
    """

    def __init__(
        self, resolve: Resolve, name: str, *, num_threads: int = 1, on_load: Callable[[LoadOutcome], None] | None = None
    ) -> None:
        self.name = name
        self.served: tuple[ServedModel, ...] = ()
        """Loaded versions, the current one first; empty until the first is loaded."""
        self._resolve, self._num_threads = resolve, num_threads
        self._on_load = on_load or (lambda outcome: None)
        self._path: Path | None = None
        """Directory that was accepted last."""
        self._seen: _Files | None = None
        self._refusal: InputError | None = None
        """Error of the directory in `_seen`, if it was refused."""
        self._refreshing = threading.Lock()

    def find(self, name: str | None = None, version: str | None = None) -> ServedModel:
        """The current version, or the requested one; raises `RefusedError` if it is not loaded."""
        served = self.served  # read once: another thread may replace it
        self.check_name(name)
        if not served:
            expected, found = "expected a loaded model", "one that is loading"
            raise RefusedError(503, "not_ready", expected, found=found, remedy="try again")
        if version is None:
            return served[0]
        if found := [model for model in served if model.version == version]:
            return found[0]
        expected = f"expected a version of {', '.join(model.version for model in served)}"
        raise RefusedError(404, "not_found", expected, found=repr(version[:80]), remedy="leave the version out")

    def check_name(self, name: str | None) -> None:
        """Raise `RefusedError` for the name of another model; None means this one."""
        if name is not None and name != self.name:
            expected = f"expected model {self.name!r}"
            raise RefusedError(404, "not_found", expected, found=repr(name[:80]), remedy="correct the path")

    def refresh(self) -> LoadOutcome:
        """Load the bundle that `resolve` finds if it is new; raises `InputError` if it is refused, now or before.

        The current version answers meanwhile, and stays if the new one is refused. A refused directory is opened again
        when its files change, or at the next call if the machine was the reason: too many open files, no memory.
        """
        with self._refreshing:
            outcome = self._look()
            if outcome == "refused":
                assert self._refusal is not None
                raise self._refusal.with_traceback(None)
            return outcome

    def watch(self, seconds: float, stop: threading.Event) -> None:
        """Refresh at this interval until `stop` is set; a failure is logged, and the current version stays."""
        while not stop.wait(seconds):
            try:
                with self._refreshing:
                    self._look()  # a refusal is logged once
            except InputError as error:
                _log.error("model_refused", extra={"model": self.name, "error": str(error)})

    def _look(self) -> LoadOutcome:
        """Refresh and count the outcome; raises `InputError` for a bundle refused for the first time."""
        try:
            outcome = self._refresh()
        except BaseException as error:  # polars' panics are no `Exception`
            self._on_load("refused")
            if isinstance(error, InputError):
                raise
            # A half-copied directory can cause any error (a missing file, memory): refuse it for all of them.
            _log.exception("model_error", extra={"model": self.name})
            found = f"{type(error).__name__}: {error}"[:160]
            raise InputError("expected a bundle that opens", found=found, remedy="see the log") from None
        self._on_load(outcome)
        return outcome

    def _refresh(self) -> LoadOutcome:
        current = self.served[0] if self.served else None
        path = self._resolve(self._path)
        files = _files(path.resolve())  # resolve a symbolic link once, so that all files are of one target
        if files == self._seen:
            return "unchanged" if self._refusal is None else "refused"
        self._seen, self._refusal = None, None
        try:
            outcome = self._load(path, files, current)
        except InputError as error:
            if not _is_passing(error):  # a copy: the error itself keeps the opened files alive
                self._seen = files
                self._refusal = InputError(error.expected, found=error.found, remedy=error.remedy, row=error.row)
            raise
        self._seen = files
        return outcome

    def _load(self, path: Path, files: _Files, current: ServedModel | None) -> LoadOutcome:
        begun = time.monotonic()
        bundle = Bundle.open(files[0])
        if current is not None and bundle.model_id == current.version:
            self._path = path
            return "unchanged"  # the same model from another path: keep the mapped files
        scorer = Scorer(bundle, num_threads=self._num_threads)
        model = ServedModel(name=self.name, scorer=scorer, loaded_at=time.time(), window=CoverageWindow(bundle))
        _check_and_warm(scorer)
        others = tuple(one for one in self.served if one.version != model.version)
        self.served, self._path = (model, *others)[:KEPT_VERSIONS], path
        details = {"model": self.name, "version": model.version, "path": str(path)}
        details |= {"seconds": round(time.monotonic() - begun, 3), "previous": current.version if current else None}
        _log.info("model_loaded", extra=details)
        return "loaded"


def check_name(name: str) -> None:
    """Raise `InputError` for a name that a URL cannot hold: clients resolve dots, and a slash separates parts.

    >>> check_name("clicks of today, 50%")
    """
    if name in ("", ".", "..") or "/" in name or not name.isprintable():
        expected, remedy = "expected a served name that a URL can hold", "pass --name NAME, such as --name clicks"
        raise InputError(expected, found=repr(name)[:80], remedy=remedy)


def _check_and_warm(scorer: Scorer) -> None:
    """Run warm-up requests; raises `InputError` if the scores of the golden rows differ from the trainer's."""
    difference, tolerance = scorer.verify(), scorer.bundle.golden_tolerance
    if not difference <= tolerance:
        expected = f"{scorer.bundle.path}: expected golden rows to score as in training, within {tolerance:.1e}"
        raise InputError(expected, found=f"a difference of {difference:.1e}", remedy="export the bundle again")
    rows = scorer.bundle.golden.drop(PROBABILITY).to_dicts()
    for _ in range(WARM_UP_ROUNDS):
        for num_rows in (1, len(rows)):
            scorer.score(rows[:num_rows], allow_missing=True)


def _is_passing(error: InputError) -> bool:
    """True if the reason was the machine instead of the bundle, so that the next attempt may succeed."""
    cause = error.__context__  # also set with `from None`
    return isinstance(cause, OSError | MemoryError) and not isinstance(cause, FileNotFoundError)


def _files(path: Path) -> _Files:
    try:
        entries = [(entry.name, entry.stat()) for entry in sorted(path.iterdir())]
    except OSError as error:
        found = error.strerror or str(error)
        remedy = "name a directory that `muxrec export` wrote"
        raise InputError(f"{path}: expected a bundle directory", found=found, remedy=remedy) from None
    return path, tuple((name, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns) for name, at in entries)
