"""Python values, as in requests and object columns, to what a feature encodes: texts, lists of texts, numbers.

N values. In a column of several types (7, "a", None) each value keeps its own meaning; a column of one type means the
same as a polars column of that type.
"""

import decimal
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import polars as pl

from features.arrays import Float64s
from features.errors import InputError
from features.parsing import FIRST_INEXACT_FLOAT64, parse_numbers, parse_values
from features.spec import AnyFeature, CategoricalList, FeatureSpec, Numeric, canonical_text, check_text

T = TypeVar("T")
Text = str | None

_IS_CANONICAL: dict[str, Callable[[str], bool]] = {
    "integer": lambda text: text.isascii() and text.isdigit() and (text[0] != "0" or text == "0"),
    "boolean": lambda text: text in ("true", "false"),
}
"""By value type, a quick test for canonical texts, which need no parsing; most pass."""

_TEXTS = frozenset({str, type(None)})
_PLAIN = frozenset({str, int, type(None)})
_NUMBERS = frozenset({float, int, bool, type(None)})


def column_of(feature: AnyFeature, values: Sequence[Any]) -> pl.Series:
    """Raw column [N] of Python values; raises `InputError` for a value that the feature cannot take.

    >>> from features.spec import Categorical
    >>> column_of(Categorical(name="user"), [7, "a", True, None]).to_list()
    ['7', 'a', 'true', None]
    """
    if isinstance(feature, Numeric):
        return pl.Series(feature.name, numbers_of(feature, values), nan_to_null=True)
    if isinstance(feature, CategoricalList):
        lists = [None if one == [None] else one for one in lists_of(feature, values)]
        return _series(feature, lists, pl.List(pl.String()))
    return _series(feature, texts_of(feature, values))


def texts_of(feature: FeatureSpec, values: Sequence[Any]) -> Sequence[Text]:
    """Canonical text [N] of each value, None for a missing one."""
    value_type = getattr(feature, "value_type", None)
    if value_type is None:
        return _texts_as_given(feature, values)
    # The text of a decimal: 128.00 is an integer, though its type has fractions.
    values = [str(value) if isinstance(value, decimal.Decimal) else value for value in values]
    texts = _texts_as_given(feature, values)
    if all(text is None or _IS_CANONICAL[value_type](text) for text in texts):
        return texts
    return parse_values(_series(feature, texts), value_type).to_list()


def _series(feature: FeatureSpec, texts: Sequence[Any], dtype: pl.DataType | None = None) -> pl.Series:
    """Series of texts, or of another type, with an `InputError` for texts that are not valid Unicode."""
    try:
        return pl.Series(feature.name, texts, dtype=dtype or pl.String())
    except UnicodeEncodeError:
        check_unicode(feature, texts)
        raise


def _texts_as_given(feature: FeatureSpec, values: Sequence[Any]) -> Sequence[Text]:
    types = set(map(type, values))
    if types <= _TEXTS:
        return values
    if types <= _PLAIN:
        with suppress(ValueError):  # Python writes no integer of over 4300 digits; `_each` finds it
            return [value if value is None or type(value) is str else str(value) for value in values]
    return _each(_text, feature, values)


def lists_of(feature: CategoricalList, values: Sequence[Any]) -> list[list[Text]]:
    """Canonical texts of the elements of each list [N]; a missing list is one missing element."""
    separator = feature.separator
    if separator is not None and feature.value_type is None and set(map(type, values)) <= _TEXTS:
        return [[None] if value is None else value.split(separator) if value else [] for value in values]
    return _each(_list, feature, values)


def numbers_of(feature: Numeric, values: Sequence[Any]) -> Float64s:
    """Checked numbers [N] in float64, the input of every transform; NaN for a missing one."""
    if not set(map(type, values)) <= _NUMBERS:
        values = _each(_number, feature, _texts_as_numbers(feature, values))
    try:
        numbers = np.array(values, dtype=np.float64)
    except OverflowError:  # an integer: find it
        numbers = np.array(_each(_number, feature, values), dtype=np.float64)
    feature.check_numbers(numbers)
    return numbers


def _texts_as_numbers(feature: Numeric, values: Sequence[Any]) -> Sequence[Any]:
    """Values [N] with the texts among them parsed as in a column of texts."""
    texts = [value if isinstance(value, str) else None for value in values]
    numbers = parse_numbers(_series(feature, texts), feature.decimal).to_list()
    return [number if isinstance(value, str) else value for value, number in zip(values, numbers, strict=True)]


def bucket_texts(feature: Numeric, values: Sequence[Any]) -> list[Text]:
    """Texts [N] of the buckets of each number, None for a missing one."""
    numbers = numbers_of(feature, values)
    pairs = zip(feature.buckets(numbers).tolist(), np.isnan(numbers).tolist(), strict=True)
    return [None if is_missing else str(bucket) for bucket, is_missing in pairs]


def check_unicode(feature: FeatureSpec, texts: Sequence[Text | list[Text]]) -> None:
    """Raise `InputError` if one of the texts or lists of texts [N] holds half of a surrogate pair.

    JSON can represent that, UTF-8 cannot.
    """
    for row, value in enumerate(texts):
        for text in value if isinstance(value, list) else [value]:
            try:
                (text or "").encode()
            except UnicodeEncodeError:
                raise feature.reject("text", f"{text[:40]!r}" if text else "", "send valid Unicode", row) from None


def _each(convert: Callable[[Any, Any], T], feature: FeatureSpec, values: Sequence[Any]) -> list[T]:
    converted: list[T] = []
    for row, value in enumerate(values):
        try:
            converted.append(convert(feature, value))
        except InputError as error:
            raise InputError(error.expected, found=error.found, remedy=error.remedy, row=row) from None
    return converted


def _is_missing(value: Any) -> bool:
    """True for None and for the missing values of pandas, which is not imported for this."""
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def _number(feature: Numeric, value: Any) -> float | None:
    if _is_missing(value):
        return None
    if not isinstance(value, bool | int | float | decimal.Decimal | np.bool_ | np.number):
        raise feature.reject("a number", _shown(value), "declare it `categorical`, or send a number")
    try:
        return float(value)
    except OverflowError:
        raise feature.reject("finite numbers", "an integer above 1e308", "make it null, or clip it before") from None


def _text(feature: FeatureSpec, value: Any) -> Text:
    """Canonical text of one value of a column of mixed types."""
    if type(value) is str:
        return value
    if _is_missing(value):
        return None
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return _digits(feature, int(value))
    if type(value) is float and value.is_integer() and abs(value) < FIRST_INEXACT_FLOAT64:
        return str(int(value))
    # NaN, decimals and all other types: one value as a column, with the rules and messages of columns.
    try:
        column = pl.Series(feature.name, [value])
    except (TypeError, ValueError, OverflowError):
        column = pl.Series(feature.name, [value], dtype=pl.Object)
    if feature.is_list:
        check_text(feature, column)
    else:
        feature.check(column)
    return column.to_frame().select(canonical_text(pl.col(feature.name), column.dtype)).item()


def _list(feature: CategoricalList, value: Any) -> list[Text]:
    if _is_missing(value) or (isinstance(value, float) and np.isnan(value)):
        return [None]
    if isinstance(value, str) and feature.separator is not None:
        return [*texts_of(feature, value.split(feature.separator))] if value else []
    if isinstance(value, list | tuple | np.ndarray | pl.Series):
        return [*texts_of(feature, [*value])]
    remedy = "send a list, or set `separator:`" if isinstance(value, str) else "send a list"
    raise feature.reject("a list", _shown(value), remedy)


def _digits(feature: FeatureSpec, value: int) -> str:
    try:
        return str(value)
    except ValueError:
        remedy = "send it as text"
        raise feature.reject("integers of at most 4300 digits", "a longer one", remedy) from None


def _shown(value: Any) -> str:
    try:
        return f"{type(value).__name__}, such as {str(value)[:40]!r}"
    except ValueError:
        return f"{type(value).__name__} of more than 4300 digits"
