"""Drafts of parts: files under hidden names, flushed to the disk and renamed in a fixed order.

Names of drafts begin with a dot. Only `publish` makes files visible, the scored part last.
"""

import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import polars as pl

from features.files import flush, write_parquet

REJECTED = "_rejected"
_SPILL_ROWS = 65_536  # rejected rows that are kept in memory


def rejected_path(out: Path, name: str) -> Path:
    """Path of the rejected rows of a part's input, which the pattern `part-*` does not match.

    >>> rejected_path(Path("out"), "day=1/part-a-0f.parquet").as_posix()
    'out/_rejected/day=1/rejected-a-0f.parquet'
    """
    folder, _, file = name.rpartition("/")
    return out / REJECTED / folder / file.replace("part-", "rejected-", 1)


class Draft:
    """The hidden files of one part: the scored rows and, if there are any, the rejected ones.

    As a context it deletes at its end what was not published.
    """

    def __init__(self, out: Path, name: str) -> None:
        self._target, self._rejected_target = out / name, rejected_path(out, name)
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self._prefix = f".{self._target.name}.{uuid.uuid4().hex[:8]}"
        self._spilled: list[Path] = []
        self._waiting: list[pl.DataFrame] = []
        self.scored = self._beside("scored")
        """Path to write the scored rows to."""

    def _beside(self, kind: str) -> Path:
        return self._target.parent / f"{self._prefix}.{kind}.tmp"

    def reject(self, rows: pl.DataFrame) -> None:
        """Keep rejected rows, any number of them in bounded memory."""
        if len(rows):
            self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= _SPILL_ROWS:
            self._spill()

    def publish(self, metadata: Mapping[str, str]) -> None:
        """Make the part visible; rejected rows first, so that a part is never seen without them."""
        self._spill()
        if self._spilled:
            self._rejected_target.parent.mkdir(parents=True, exist_ok=True)
            rejected = self._beside("rejected")
            pl.scan_parquet(self._spilled, glob=False).sink_parquet(rejected, metadata=dict(metadata))
            flush(rejected)
            rejected.replace(self._rejected_target)
            flush(self._rejected_target.parent)
        else:
            self._rejected_target.unlink(missing_ok=True)  # of the same input before it was repaired
        flush(self.scored)
        self.scored.replace(self._target)
        flush(self._target.parent)

    def _spill(self) -> None:
        if self._waiting:
            self._spilled.append(self._beside(f"rejected-{len(self._spilled)}"))
            write_parquet(pl.concat(self._waiting), self._spilled[-1])
            self._waiting = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for path in (self.scored, self._beside("rejected"), *self._spilled):
            path.unlink(missing_ok=True)
