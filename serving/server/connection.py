"""Bounds on connections that uvicorn lacks: the time until a request arrives, and the number of connections.

Where there are too many, the one that has waited longest for its client is closed. The new one may be a probe: refusing
it because others are idle would get a healthy server restarted.
"""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def protocol_of(seconds: float, max_connections: int) -> type[asyncio.Protocol]:
    """uvicorn's protocol with `seconds` for the head of a request, and at most `max_connections` open at a time.

    The time starts with the connection, or with the request's first byte. uvicorn's own timeout for idle connections
    starts with an answer and stops at the next byte; the application bounds the time after the head.
    """

    class BoundedProtocol(H11Protocol):
        """Closes a connection that sends nothing, half a head, or the rest of a body that was already answered."""

        _late: asyncio.TimerHandle | None = None
        waits_since = 0.0
        """Time since which the server waits for the client, or at which its last request began."""

        @property
        def waits_for_client(self) -> bool:
            """True if it is the client's turn: to send a request or the rest of a body, or to read an answer."""
            return self.cycle is None or self.cycle.more_body or self.cycle.response_started

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            """Start the timer, and close another connection if there are too many."""
            super().connection_made(transport)
            self.waits_since = self.loop.time()
            self._watch()
            self._make_room()

        def data_received(self, data: bytes) -> None:
            """Stop the timer if the data complete a head."""
            answered = self.cycle
            super().data_received(data)
            if self.cycle is not answered:
                self.waits_since = self.loop.time()
            self._watch()

        def on_response_complete(self) -> None:
            """Note that it is the client's turn again."""
            self.waits_since = self.loop.time()
            super().on_response_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            """Stop the timer."""
            self._stop()
            super().connection_lost(exc)

        def _make_room(self) -> None:
            if len(self.connections) <= max_connections:
                return
            connections = [one for one in self.connections if not one.transport.is_closing()]
            others = [one for one in connections if isinstance(one, BoundedProtocol) and one.waits_for_client]
            others.sort(key=lambda one: one.waits_since)
            for one in others[: max(0, len(connections) - max_connections)]:
                one.transport.abort()

        def _watch(self) -> None:
            if self.transport.is_closing() or (self.cycle is not None and not self.cycle.response_complete):
                self._stop()
            elif self.cycle is not None and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
                self._stop()  # the rest of a body came after its answer: idle, like any other after an answer
                if self.timeout_keep_alive_task is None:
                    wait = self.timeout_keep_alive
                    self.timeout_keep_alive_task = self.loop.call_later(wait, self.timeout_keep_alive_handler)
            elif self._late is None:
                self._late = self.loop.call_later(seconds, self.transport.abort)

        def _stop(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

    return BoundedProtocol
