"""The life of a server process: listen, load, watch, drain."""

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import threading
from collections.abc import Iterator

import uvicorn

from features.errors import InputError
from serving.server.access import is_loopback
from serving.server.app import SLOW_SECONDS, App
from serving.server.connection import protocol_of
from serving.server.hosting import ModelHost, Resolve, check_name
from serving.server.limits import Limits
from serving.server.logs import start_logging
from serving.server.metrics import ServerMetrics

TOKEN_VARIABLE = "MUXREC_SERVE_TOKEN"
DRAIN_SECONDS = 2.0
BACKLOG = 1024
LOG_LEVELS = ("debug", "info", "warning", "error")
KEEP_ALIVE_SECONDS = 75
"""Longer than the 60 s of most balancers: if the server closed first, a request on its way would be lost."""
MAX_CONNECTIONS = 900
"""Open connections; fewer if the process may open less than twice as many files."""
MAX_FILES = 4096
"""Limit of open files to ask the system for."""

_log = logging.getLogger(__name__)


def serve(
    resolve: Resolve,
    name: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    limits: Limits | None = None,
    num_threads: int = 1,
    watch_seconds: float = 60.0,
    drain_seconds: float = DRAIN_SECONDS,
    slow_seconds: float = SLOW_SECONDS,
    log_level: str = "info",
) -> None:
    """Serve the bundle that `resolve` finds, until SIGTERM or SIGINT.

    The server answers as soon as it listens, and is ready once the model is loaded; raises `InputError` if the first
    model is refused. With `watch_seconds` 0 it looks for new versions only on request. After SIGTERM it reports not
    ready, answers for `drain_seconds` more, finishes the requests in progress and exits.
    """
    check_name(name)
    start_logging(log_level)
    limits = limits or Limits()
    token = _token()
    metrics = ServerMetrics()
    models = ModelHost(resolve, name, num_threads=num_threads, on_load=metrics.add_load)
    app = App(models, limits, metrics, token=token, slow_seconds=slow_seconds)
    listener = _listen(host, port)
    num_files = _allowed_files()
    config = uvicorn.Config(
        app,
        http=protocol_of(limits.timeout_seconds, min(MAX_CONNECTIONS, num_files // 2)),
        lifespan="off",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        # The event loop accepts this many per round, and takes about four rounds to close others for them.
        backlog=min(BACKLOG, num_files // 16),
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(limits.timeout_seconds) + 1,
    )
    server = _Server(config, app, drain_seconds)
    loader = _ModelLoader(models, server, watch_seconds)
    address = listener.getsockname()
    details = {"host": address[0], "port": address[1], "pid": os.getpid(), "model": name}
    _log.info("listening", extra=details | {"has_token": token is not None})
    if token is None and not is_loopback(address):
        _log.warning("open_to_the_network", extra={"remedy": f"set {TOKEN_VARIABLE}, or listen on 127.0.0.1"})
    loader.start()
    try:
        server.run(sockets=[listener])
    finally:
        loader.stop.set()
        app.close()
    if loader.failure is not None:
        raise loader.failure
    _log.info("stopped")


class _ModelLoader(threading.Thread):
    """Loads the first model and each new one; a daemon, so that a slow registry cannot delay the exit."""

    def __init__(self, models: ModelHost, server: "_Server", watch_seconds: float) -> None:
        super().__init__(name="models", daemon=True)
        self.stop = threading.Event()
        self.failure: InputError | None = None
        self._models, self._server, self._watch_seconds = models, server, watch_seconds

    def run(self) -> None:
        """Load the first model, then watch until `stop` is set."""
        # Garbage collection stops every thread: exclude the loaded modules from it.
        gc.collect()
        gc.freeze()
        try:
            self._models.refresh()
        except InputError as error:
            self.failure = error
            self._server.should_exit = True
            return
        _log.info("ready", extra={"model": self._models.name, "version": self._models.find().version})
        if self._watch_seconds > 0:
            self._models.watch(self._watch_seconds, self.stop)


class _Server(uvicorn.Server):
    """uvicorn that answers for a while after SIGTERM, and then exits with code 0."""

    def __init__(self, config: uvicorn.Config, app: App, drain_seconds: float) -> None:
        super().__init__(config)
        self._app, self._drain_seconds = app, drain_seconds

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, with a longer queue than the number accepted per round."""
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(BACKLOG)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals on the event loop; uvicorn's handlers would raise the signal again at the end."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._drain, loop)
        loop.add_signal_handler(signal.SIGINT, self._end)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
            loop.remove_signal_handler(signal.SIGINT)

    def _drain(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give balancers time to send requests elsewhere, then end; a second signal ends at once."""
        if self._app.is_draining:
            self._end()
            return
        _log.info("draining", extra={"seconds": self._drain_seconds})
        self._app.is_draining = True
        loop.call_later(self._drain_seconds, self._end)

    def _end(self) -> None:
        self._app.is_draining = True
        self.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Explicitly TCP, or asyncio leaves Nagle's algorithm on, and answers wait 40 ms for an acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        found, remedy = getattr(error, "strerror", None) or str(error), "choose --host and --port"
        raise InputError(f"cannot listen on {host} port {port}", found=found, remedy=remedy) from None
    return listener


def _allowed_files() -> int:
    """Raise the limit of open files, of which each connection is one; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_FILES
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft >= wanted:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # a sandbox may forbid it
        return soft
    return wanted


def _token() -> str | None:
    token = os.environ.get(TOKEN_VARIABLE)
    if token is not None and (len(token) < 8 or not token.isascii() or not token.isprintable() or " " in token):
        remedy = "set a long random one, or unset the variable"
        raise InputError(f"{TOKEN_VARIABLE}: expected 8 printable characters or more", found="others", remedy=remedy)
    return token
