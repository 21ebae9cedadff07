"""A connection of which no request arrives in time, and which uvicorn alone would leave open for good, is closed."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def protocol_of(seconds: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol with a bound on the time from a connection, or a request's first byte, to its whole head.

    uvicorn's own clock for idle connections starts with an answer and stops at the next byte. What follows the head has
    the application's bound.
    """

    class BoundedProtocol(H11Protocol):
        """Closes a connection that sends nothing, half a head, or a body that nobody reads any more."""

        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            """Start the clock."""
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            """Stop the clock where the data complete a head."""
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            """Forget the clock."""
            self._stop()
            super().connection_lost(exc)

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
