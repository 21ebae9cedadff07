"""Progress bar on standard error; standard output is for results."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress_bar(description: str, total: int | None, *, enabled: bool = True) -> Iterator[Callable[..., None]]:
    """Show a bar of `total` units (None: unknown) and yield `advance(units)`, or `advance(units, note=text)`.

    >>> with progress_bar("rows", 2, enabled=False) as advance:
    ...     advance(2, note="done")
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not enabled, refresh_per_second=4) as bar:
        task = bar.add_task(description, total=total, note="")
        yield lambda units, **note: bar.update(task, advance=units, **note)
