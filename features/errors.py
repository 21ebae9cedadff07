"""InputError, the one error that a user can cause: what was expected, what was found, and the remedy."""

from collections.abc import Mapping
from typing import Any


class InputError(ValueError):
    """A file, a registry, a setting or a request that cannot be used.

    The command line prints the message as one line and exits 2; libraries see an ordinary ``ValueError``.

    >>> str(InputError("label must be 0 or 1", found="2", remedy="map the label first"))
    'label must be 0 or 1; found 2; map the label first'
    """

    def __init__(
        self, expected: str, *, found: str | None = None, remedy: str | None = None, row: int | None = None
    ) -> None:
        self.expected, self.found, self.remedy = expected, found, remedy
        self.row = row
        """Position, from 0, in the checked column, which may be a chunk of a file: the message names no row until
        `located` turns it into a row of the file."""
        parts = [expected] + ([f"found {found}"] if found is not None else []) + ([remedy] if remedy else [])
        super().__init__("; ".join(parts))

    def located(self, place: str, first_row: int = 0) -> "InputError":
        """The same error with the name of its file and the row in it, counted from 1 without the header.

        >>> str(InputError("expected a number", found="'x'", row=1).located("a.csv", 100))
        "a.csv: expected a number; found 'x' in row 102"
        """
        found = self.found if self.row is None else f"{self.found} in row {first_row + self.row + 1}"
        return InputError(f"{place}: {self.expected}", found=found, remedy=self.remedy)


def differences(found: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> str:
    """Settings that differ, by key, for the `found` of an error.

    >>> differences({"seed": 1, "trainer": {"epochs": 3}}, {"seed": 1, "trainer": {"epochs": 5}})
    'trainer.epochs: 3, not 5'
    """
    lines: list[str] = []
    for key in {**found, **asked}:
        mine, theirs = found.get(key), asked.get(key)
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            lines += filter(None, [differences(mine, theirs, f"{prefix}{key}.")])
        elif mine != theirs:
            lines.append(f"{prefix}{key}: {mine!r}, not {theirs!r}")
    return ", ".join(lines)


def missing_column(name: str, columns: list[str]) -> InputError:
    """The error for a column that is not in the data, with the columns that are."""
    shown = ", ".join(columns[:12]) + (f" and {len(columns) - 12} more" if len(columns) > 12 else "")
    remedy = "correct the registry or the file"
    if len(columns) == 1 and any(separator in columns[0] for separator in ";\t|"):
        remedy = "separate the fields by commas, or set the separator under `csv:` in the registry"
    return InputError(f"expected a column {name!r}", found=f"columns {shown}", remedy=remedy)
