"""Logging as one JSON object per line; each request's line has its id."""

import json
import logging
import re
import sys
import traceback
import uuid
from datetime import UTC, datetime
from typing import Any

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


def request_id_of(header: str | None) -> str:
    """The client's id if it is short and plain, else a new one.

    >>> request_id_of("checkout-7")
    'checkout-7'
    >>> len(request_id_of("two\\nlines"))
    32
    """
    return header if header is not None and re.fullmatch(r"[\w.:/+=-]{1,128}", header, re.ASCII) else uuid.uuid4().hex


class JsonFormatter(logging.Formatter):
    """Writes `time`, `level` and `event`, then the record's `extra` fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line of JSON."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": time, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info and record.exc_info[1] is not None:
            line["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json.dumps(line, default=str)


def start_logging(level: str) -> None:
    """Log to standard error as JSON, uvicorn's lines included."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in ("uvicorn.error", "asyncio"):  # `run.py` logs start and end with more detail than uvicorn
        logging.getLogger(name).setLevel(logging.WARNING)
