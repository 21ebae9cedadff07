"""CsvFormat: separator and missing values of delimited text."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from features.errors import InputError


def _checked(separator: str) -> str:
    separator = {"\\t": "\t", "tab": "\t"}.get(separator, separator)
    if len(separator.encode()) != 1 or separator in '"\r\n':
        remedy = "write, for example, `;`, `|` or `tab`"
        raise InputError("a separator is one ASCII character", found=repr(separator), remedy=remedy)
    return separator


class CsvFormat(BaseModel):
    """Separator between the fields of delimited text, and the texts that are missing values.

    >>> CsvFormat(separator=";", null_values=("NA",)).separator
    ';'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    separator: Annotated[str, AfterValidator(_checked)] = ","
    """One character between two fields; `.tsv` files always have a tab."""
    null_values: tuple[str, ...] = ()
    """Texts that are missing values, besides the empty one."""


def changed_format(
    csv: CsvFormat | None, separator: str | None = None, null_values: Sequence[str] | None = None
) -> CsvFormat | None:
    """A registry's format with the changes of the command line; None if neither sets anything.

    Raises `InputError` for an impossible separator.

    >>> changed_format(CsvFormat(separator=";"), null_values=["NA"])
    CsvFormat(separator=';', null_values=('NA',))
    """
    if separator is None and not null_values:
        return csv
    csv = csv or CsvFormat()
    nulls = tuple(null_values) if null_values else csv.null_values
    return CsvFormat(separator=csv.separator if separator is None else _checked(separator), null_values=nulls)
