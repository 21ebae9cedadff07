"""Results as text: for a terminal, as Markdown, and as csv."""

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

NAMES = {
    "max_abs_diff": "largest difference",
    "tolerance": "difference allowed",
    "rows_in": "rows read",
    "skipped_parts": "parts made earlier",
    "table": "table stored as",
    "unused": "columns not used",
}
"""Names in --json to names for people; other names only lose their underscores."""


def result_table(values: Mapping[str, Any]) -> Table:
    """Two columns, name and value; a nested mapping takes one line per key, and its keys stay as they are.

    >>> result_table({"rows": 3, "test": {"auc": 0.5}}).row_count
    2
    """
    table = Table.grid(padding=(0, 2))
    for key, value in values.items():
        name = NAMES.get(key, key.replace("_", " "))
        if isinstance(value, Mapping):
            for inner, one in value.items():
                table.add_row(f"{name} {inner}", text_of(one))
        else:
            table.add_row(name, text_of(value))
    return table


def rich_table(
    title: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    left: Collection[str] | None = None,
    folding: Collection[str] = (),
) -> Table:
    """A table for a terminal: texts on the left (by default the first column), figures on the right.

    Only the columns in `folding` may be wrapped.

    >>> rich_table("AUC", ["model", "auc"], [["mlp", "0.7"]]).row_count
    1
    """
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    left = headings[:1] if left is None else left
    for heading in headings:
        justify = "left" if heading in left else "right"
        table.add_column(heading, justify=justify, overflow="fold", no_wrap=heading not in folding)
    for row in rows:
        table.add_row(*row)
    return table


def text_of(value: Any) -> str:
    """A number with the digits that matter, anything else as it is.

    >>> text_of(0.123456789), text_of(1234567), text_of(52345.6)
    ('0.123457', '1,234,567', '52,346')
    """
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.6g}"
    return ", ".join(str(part) for part in value) if isinstance(value, list | tuple) else str(value)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; columns that are empty in all rows are left out.

    >>> print(markdown_table(["a", "b"], [["1", ""], ["2", ""]]))
    | a |
    |---|
    | 1 |
    | 2 |
    """
    rows = list(rows)
    kept = [column for column in range(len(header)) if any(row[column] for row in rows)]
    lines = [[header[column] for column in kept], *([row[column] for column in kept] for row in rows)]
    texts = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([texts[0], "|" + "---|" * len(kept), *texts[1:]])


def csv_text(lines: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """A csv with headings: `columns`, or all keys in order of first use; missing values are empty.

    >>> print(csv_text([{"a": 1}, {"b": "x, y"}]), end="")
    a,b
    1,
    ,"x, y"
    """
    text = io.StringIO()
    names = columns or list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.DictWriter(text, names, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
