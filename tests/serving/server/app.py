"""An application over the small bundle of conftest.py, called in this process."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import polars as pl

from serving.server.app import App
from serving.server.hosting import ModelHost
from serving.server.limits import Limits
from serving.server.metrics import ServerMetrics

NAME = "clicks"
JSON = {"Content-Type": "application/json"}
FORMS = ("/score", f"/v2/models/{NAME}/infer", "/invocations")


class Served:
    """An application and its parts."""

    def __init__(self, path: Path | Callable[[], Path], *, limits: Limits | None = None, **settings: Any) -> None:
        self.metrics = ServerMetrics()
        self.host = ModelHost(lambda current: path() if callable(path) else path, NAME, on_load=self.metrics.add_load)
        self.app = App(self.host, limits or Limits(), self.metrics, **settings)

    def start(self) -> "Served":
        """Load the model."""
        self.host.refresh()
        return self

    def client(self, address: str = "127.0.0.1") -> "Client":
        """A client that connects from an address."""
        return Client(self.app, address)


class Client:
    """Requests one after the other, each on its own event loop."""

    def __init__(self, app: App, address: str) -> None:
        self._transport = httpx.ASGITransport(app, client=(address, 50000))

    def request(self, method: str, path: str, **settings: Any) -> httpx.Response:
        """An answer; an exception of the application is raised here."""

        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=self._transport, base_url="http://server") as client:
                return await client.request(method, path, **settings)

        return asyncio.run(send())

    def get(self, path: str, **settings: Any) -> httpx.Response:
        """GET."""
        return self.request("GET", path, **settings)

    def post(self, path: str, **settings: Any) -> httpx.Response:
        """POST."""
        return self.request("POST", path, **settings)


def rows_of(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON has them, with the keys that no feature reads too."""
    return frame.to_dicts()


def tensors_of(frame: pl.DataFrame) -> dict[str, Any]:
    """The same rows as an inference request; native lists go as values and offsets."""
    inputs: list[Mapping[str, Any]] = []
    for column in frame.drop("row"):
        if column.dtype == pl.List:
            lists = [[None] if one is None else one for one in column.to_list()]  # a null list is one missing value
            values = [value for one in lists for value in one]
            offsets = [0]
            for one in lists:
                offsets.append(offsets[-1] + len(one))
            inputs.append(tensor(f"{column.name}__values", "BYTES", values))
            inputs.append(tensor(f"{column.name}__offsets", "INT64", offsets))
        else:
            datatype = "BYTES" if column.dtype == pl.String else "FP64" if column.dtype.is_float() else "INT64"
            inputs.append(tensor(column.name, datatype, column.to_list()))
    return {"inputs": inputs}


def tensor(name: str, datatype: str, data: list[Any], shape: list[int] | None = None) -> dict[str, Any]:
    """One input of an inference request."""
    return {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data}
