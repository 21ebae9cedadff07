"""The HTTP application: Open Inference Protocol v2, row JSON, MLflow's `/invocations`, health and metrics.

It uses Starlette's router alone: a body must be bounded while it is read, and parsed outside the event loop, which
leaves a framework's argument parsing nothing to do. `openapi.py` describes the paths.
"""

import asyncio
import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route, Router
from starlette.types import Message, Receive, Scope, Send

from features.errors import InputError
from serving.bundle.manifest import installed_version
from serving.server.access import check_content, check_framing, check_token, is_loopback
from serving.server.binary import HEADER
from serving.server.bodies import INVOCATIONS, INVOCATIONS_CSV, SCORE, RequestFormat, json_response
from serving.server.hosting import ModelHost, ServedModel
from serving.server.limits import CLOSE, Bodies, Limits, Reason, RefusedError, Workers, check_lists, read_body
from serving.server.logs import request_id_of
from serving.server.metrics import NO_MODEL, ModelVersion, ServerMetrics
from serving.server.openapi import document_of
from serving.server.page import page_of
from serving.server.protocol import metadata_of, tensors_of

SLOW_SECONDS = 0.25
CLIENT_LEFT = 499
"""Status in logs and metrics of a request whose client disconnected before the answer, as in nginx."""

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Record:
    id: str
    begun: float = field(default_factory=time.perf_counter)
    version: ModelVersion = NO_MODEL
    endpoint: str = "unknown"
    status: int = 500
    reason: Reason | None = None
    error: str | None = None
    num_rows: int | None = None
    stages: dict[str, float] = field(default_factory=dict)
    """Stage to seconds."""
    stage_begun: float = field(default_factory=time.perf_counter)

    def end_stage(self, name: str) -> None:
        """Record the seconds of a stage; the next one starts."""
        now = time.perf_counter()
        self.stages[name], self.stage_begun = now - self.stage_begun, now


class App:
    """An ASGI application; `is_draining` turns readiness off and asks clients to reconnect, to another server.

    `token`: the bearer token that clients must send; None: no token is needed.
    """

    def __init__(
        self,
        host: ModelHost,
        limits: Limits,
        metrics: ServerMetrics,
        *,
        token: str | None = None,
        slow_seconds: float = SLOW_SECONDS,
    ) -> None:
        self.is_draining = False
        self._host, self._limits, self._metrics = host, limits, metrics
        self._token, self._slow_seconds = token, slow_seconds
        self._workers, self._bodies = Workers(limits), Bodies(limits)
        self._is_loading = False
        gets = {
            "/v2": self.server_metadata,
            "/v2/health/live": self.live,
            **dict.fromkeys(("/v2/health/ready", "/ping", "/health"), self.ready),
            "/version": self.server_version,
            "/metrics": self.metrics,
            "/openapi.json": self.openapi,
            "/docs": self.docs,
        }
        posts = {"/score": self.score, "/invocations": self.invocations}
        posts["/v2/repository/models/{name:str}/load"] = self.load
        for model in ("/v2/models/{name:str}", "/v2/models/{name:str}/versions/{version:str}"):
            gets |= {model: self.model_metadata, f"{model}/ready": self.model_ready}
            posts[f"{model}/infer"] = self.infer
        routes = [Route(path, handler, methods=["GET"]) for path, handler in gets.items()]
        routes += [Route(path, handler, methods=["POST"]) for path, handler in posts.items()]
        self._router = Router(routes, redirect_slashes=False)

    def close(self) -> None:
        """Wait for running work."""
        self._workers.close()

    @property
    def is_ready(self) -> bool:
        """True if the server takes new requests: a model is loaded, and it is not stopping."""
        return bool(self._host.served) and not self.is_draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, count it and log it."""
        if scope["type"] != "http":  # lifespan events: nothing to start or stop
            await self._router(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = _Record(id=request_id_of(headers.get("x-request-id")))
        scope["app"] = self  # then the router raises for an unknown path
        scope.setdefault("state", {})["record"] = record

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                out = MutableHeaders(scope=message)
                out["X-Request-Id"] = record.id
                if self.is_draining:
                    out["Connection"] = "close"
            await send(message)

        self._metrics.add_in_flight(1)
        try:
            check_framing(headers, scope.get("http_version", "1.1"))
            check_token(self._token, scope["path"], headers.get("authorization"))
            await self._router(scope, receive, answer)
        except ConnectionAbortedError:
            record.status = CLIENT_LEFT
            record.reason = "disconnected"
        except Exception as error:
            refusal = _refusal_of(error, record)
            record.reason, record.error = refusal.reason, str(refusal)
            response = json_response({"error": str(refusal)}, refusal.status, refusal.headers)
            await response(scope, receive, answer)
        finally:
            self._metrics.add_in_flight(-1)
            record.endpoint = getattr(scope.get("endpoint"), "__name__", "unknown")
            self._finish(record, scope["method"])

    # --- scoring ------------------------------------------------------------------------------------------------------

    async def score(self, request: Request) -> Response:
        """Score row JSON."""
        return await self._answer(request, SCORE, "application/json")

    async def infer(self, request: Request) -> Response:
        """Score tensors of the Open Inference Protocol."""
        lengths = request.headers.getlist(HEADER)
        length = ", ".join(lengths) if lengths else None
        # The protocol's clients send no Content-Type.
        media_types = ("application/json", "", *(("application/octet-stream",) if lengths else ()))
        return await self._answer(request, tensors_of(length), *media_types)

    async def invocations(self, request: Request) -> Response:
        """Score MLflow's formats."""
        is_csv = request.headers.get("content-type", "").partition(";")[0].strip().lower() == "text/csv"
        if is_csv:
            return await self._answer(request, INVOCATIONS_CSV, "text/csv")
        return await self._answer(request, INVOCATIONS, "application/json")

    async def _answer(self, request: Request, format: RequestFormat, *media_types: str) -> Response:
        record: _Record = request.state.record
        served = self._host.find(request.path_params.get("name"), request.path_params.get("version"))
        record.version = ModelVersion(served.name, served.version)
        check_content(request.headers, *media_types)
        self._workers.check_free()  # refuse before reading the body
        is_read = False
        try:
            with self._bodies.held() as held:
                async with asyncio.timeout(self._limits.timeout_seconds):
                    body = await read_body(request.receive, request.headers.get("content-length"), self._limits, held)
                    is_read = True
                    record.end_stage("read")
                    # The slot is taken now, so that slow clients hold none.
                    return await self._workers.run(functools.partial(self._work, served, format, body, record))
        except TimeoutError:
            raise self._late(is_read) from None

    def _work(
        self, served: ServedModel, format: RequestFormat, body: bytes, record: _Record
    ) -> tuple[Response, Callable[[], None]]:
        """Runs in a worker's thread; returns the response, and the counting to do once it is sent."""
        record.end_stage("wait")
        scorer = served.scorer
        try:
            request = format.read(body, scorer.registry, self._limits)
            record.num_rows = request.num_rows
            self._limits.check_num_rows(request.num_rows)
            record.end_stage("parse")
            encoded = scorer.encode(*request.arguments, allow_missing=True)
            check_lists(encoded, self._limits)
            record.end_stage("features")
            probabilities = scorer.score_encoded(encoded)
            record.end_stage("network")
        except InputError as error:
            raise error if error.row is None else error.located("request") from None
        response = format.reply(record.version, request._replace(id=request.id or record.id), probabilities)
        record.end_stage("reply")

        def count() -> None:
            try:
                coverage = scorer.coverage(encoded)
                self._metrics.add_scored(record.version, probabilities, coverage, dict(record.stages))
                for line in served.window.add(coverage, encoded.num_examples if encoded.context is None else 1):
                    _log.warning("unlike_training", extra={**record.version._asdict(), "found": line})
            except Exception:  # the answer is sent: the log is the only place left to report it
                _log.exception("count_error", extra={"request_id": record.id})

        return response, count

    def _late(self, is_read: bool) -> RefusedError:
        expected = f"expected an answer within {self._limits.timeout_seconds:g} s"
        if is_read:
            return RefusedError(503, "timeout", expected, found="a busy server", remedy="try again, or send fewer rows")
        found, remedy = "a body that had not arrived", "send it faster, or send a smaller one"
        return RefusedError(408, "timeout", expected, found=found, remedy=remedy, headers=CLOSE)

    # --- about the model and the server -------------------------------------------------------------------------------

    async def server_metadata(self, request: Request) -> Response:
        """Name and version of the server."""
        return json_response({"name": "muxrec", "version": installed_version(), "extensions": ["binary_tensor_data"]})

    async def server_version(self, request: Request) -> Response:
        """Version of muxrec, as text."""
        return PlainTextResponse(installed_version())

    async def live(self, request: Request) -> Response:
        """Liveness of the process."""
        return json_response({"live": True})

    async def ready(self, request: Request) -> Response:
        """Readiness for new requests."""
        if not self.is_ready:
            self._host.find()  # raises while the first model is loading
            expected, found = "expected a running server", "one that is stopping"
            raise RefusedError(503, "not_ready", expected, found=found, remedy="use another one")
        return json_response({"ready": True})

    async def model_ready(self, request: Request) -> Response:
        """Readiness of the model: a version of it is loaded."""
        served = self._found(request)
        return json_response({"name": served.name, "ready": True})

    async def model_metadata(self, request: Request) -> Response:
        """Inputs, outputs, versions and origin of the model."""
        served = self._found(request)
        manifest = served.scorer.bundle.manifest
        fields = ("model", "run_id", "created_at", "muxrec_version", "table_dtype", "num_parameters")
        parameters = {name: value for name in fields if (value := getattr(manifest, name)) is not None}
        return json_response(
            {
                "name": served.name,
                "versions": [model.version for model in self._host.served],
                "platform": "muxrec",
                **metadata_of(served.scorer.registry),
                "parameters": parameters | {"version": served.version},
            }
        )

    async def load(self, request: Request) -> Response:
        """Look for a new version now, at the server's own path, which no request can change."""
        self._host.check_name(request.path_params["name"])
        if self._token is None and not is_loopback(request.scope.get("client")):
            expected = "expected this request from the machine itself"
            raise RefusedError(403, "unauthorised", expected, remedy="start the server with a token")
        if self._is_loading:
            raise RefusedError(503, "overloaded", "expected one load at a time", found="another", remedy="try again")
        self._is_loading = True
        try:
            outcome = await asyncio.to_thread(self._host.refresh)
        except InputError as error:
            _log.error("model_refused", extra={"model": self._host.name, "error": str(error)})
            raise RefusedError(409, "invalid", str(error)) from None
        finally:
            self._is_loading = False
        return json_response({"name": self._host.name, "version": self._host.find().version, "outcome": outcome})

    async def metrics(self, request: Request) -> Response:
        """The page that Prometheus reads."""
        versions = {ModelVersion(one.name, one.version): one.loaded_at for one in self._host.served}
        self._metrics.set_served(versions, is_ready=self.is_ready)
        return Response(await asyncio.to_thread(self._metrics.text), media_type=CONTENT_TYPE_LATEST)

    async def openapi(self, request: Request) -> Response:
        """The server's description, with the features of the served model."""
        return json_response(self._document())

    async def docs(self, request: Request) -> Response:
        """The description as a self-contained page for people."""
        return HTMLResponse(page_of(self._document(), request.headers.get("host")))

    def _document(self) -> dict[str, Any]:
        served = self._host.find()
        return document_of(served.name, served.scorer, self._limits, has_token=bool(self._token))

    def _found(self, request: Request) -> ServedModel:
        served = self._host.find(request.path_params["name"], request.path_params.get("version"))
        request.state.record.version = ModelVersion(served.name, served.version)
        return served

    def _finish(self, record: _Record, method: str) -> None:
        seconds = time.perf_counter() - record.begun
        self._metrics.add_request(record.version, record.endpoint, record.status, record.reason, seconds)
        is_slow = seconds >= self._slow_seconds
        level = logging.ERROR if record.reason == "internal" else logging.WARNING if is_slow else logging.INFO
        if not _log.isEnabledFor(level) or (record.endpoint in ("live", "ready", "metrics") and level == logging.INFO):
            return
        line: dict[str, Any] = {"request_id": record.id, "method": method, "endpoint": record.endpoint}
        line |= {"status": record.status, "ms": round(seconds * 1e3, 2), "rows": record.num_rows}
        line |= {**record.version._asdict(), "error": record.error}
        # A copy: a worker may still add stages of a request that timed out.
        line["stages_ms"] = {stage: round(1e3 * one, 2) for stage, one in list(record.stages.items())}
        _log.log(level, "slow_request" if is_slow else "request", extra={k: v for k, v in line.items() if v})


def _refusal_of(error: Exception, record: _Record) -> RefusedError:
    """The answer to any error; an error of the server's is logged with its traceback."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, InputError):
        return RefusedError(400, "invalid", str(error))
    if isinstance(error, HTTPException):  # from the router: unknown path, or method
        expected = "a path of this server" if error.status_code == 404 else "another method"
        reason: Reason = "not_found" if error.status_code == 404 else "invalid"
        remedy = "see /docs, and /v2 for the protocol's extensions"
        return RefusedError(error.status_code, reason, f"expected {expected}", remedy=remedy, headers=error.headers)
    _log.error("internal_error", exc_info=error, extra={"request_id": record.id})
    remedy = f"look for request {record.id} in the server's log"
    return RefusedError(500, "internal", "an error of the server", remedy=remedy)
