"""Heuristics from the facts of a raw column to a registry line; the first rule that returns a guess decides."""

from collections.abc import Callable
from typing import NamedTuple

import polars as pl

from features.infer.column_facts import ColumnFacts
from features.infer.column_names import LABEL_NAMES, is_code, is_measure, words_of
from features.infer.number_texts import weighted_separator
from features.registry import RESERVED_NAMES, is_plain_name
from features.spec import MAX_FLOAT32, TEXT_TYPES

PROPENSITY_WORDS = frozenset({"propensity", "pscore"})

# Possible separators, and the most distinct values per distinct combination: fewer for separators that are common
# in names and prose.
SEPARATORS = {"|": 1.0, ";": 0.5, ", ": 0.5, ",": 0.5}
MIN_SEPARATED = 0.1
MIN_COMBINATIONS = 3
MAX_PIECE_LENGTH = 30

FEW_VALUES = 100
MIN_COUNT_VALUES = 5
MIN_ROWS_PER_CODE = 10
HEAVY_SKEW = 2.0
ROW_ID_UNIQUENESS = 0.95
MIN_ROWS_FOR_ROW_ID = 50


class Guess(NamedTuple):
    """Line of a column in the draft."""

    setting: str
    """Right-hand side of the registry line."""
    reason: str
    is_used: bool = True
    """False if the line is commented out."""


def guess_feature(facts: ColumnFacts) -> Guess:
    """Feature type of a column, or the reason why it should not be a feature.

    >>> guess_feature(ColumnFacts.of(pl.Series("price", [0.5, 2.5, 9.0]), is_delimited=False)).setting
    '{type: numeric, transform: standardize}'
    """
    return next(guess for rule in RULES if (guess := rule(facts)) is not None)


def _left_out(reason: str, facts: ColumnFacts) -> Guess:
    return Guess("numeric" if facts.kind == "number" else _categorical(facts), reason, is_used=False)


def _categorical(facts: ColumnFacts) -> str:
    """Setting that makes a value the same category on every path: csv may hold 128 as 128.0 and true as True."""
    is_typed = facts.kind in ("integer", "boolean")
    return f"{{type: categorical, value_type: {facts.kind}}}" if is_typed else "categorical"


def _numeric(transform: str, reason: str) -> Guess:
    return Guess(f"{{type: numeric, transform: {transform}}}", reason)


def _unusable_name(facts: ColumnFacts) -> Guess | None:
    name = facts.name
    if not is_plain_name(name):
        return _left_out("name that is not plain: rename the column", facts)
    if name == "weight":
        return _left_out("reserved name: as the example weight write `weight: weight`, else rename the column", facts)
    if name in RESERVED_NAMES:
        return _left_out("reserved name: rename the column", facts)
    if name.lower() in LABEL_NAMES:
        return _left_out("outcome too, by its name: not known when the label is to be predicted", facts)
    if PROPENSITY_WORDS & words_of(name):
        return _left_out("propensity, by its name: it tells of the policy that chose the item, not of the user", facts)
    return None


def _nothing_to_learn(facts: ColumnFacts) -> Guess | None:
    if facts.kind == "empty":
        return _left_out("column without a value: all are missing", facts)
    if facts.kind == "other":
        return _left_out(f"unsupported type {str(facts.column.dtype)[:40]}: make it text, numbers or lists", facts)
    if facts.kind == "number" and max(abs(facts.low), abs(facts.high)) > MAX_FLOAT32:
        return _left_out("column with infinite values, or beyond float32: make them missing, or clip them", facts)
    if facts.num_values == 1 and not facts.missing:
        return _left_out(f"constant: {str(facts.values[0])[:30]!r} in every row", facts)
    if facts.is_moment:
        return _left_out("moment in time, which never comes back: derive its hour, weekday or age before", facts)
    return None


def _native_list(facts: ColumnFacts) -> Guess | None:
    if facts.kind != "list":
        return None
    values = facts.values.explode().drop_nulls()
    if not len(values):
        return _left_out("constant: an empty list in every row", facts)
    of_values = None if values.dtype in TEXT_TYPES else ColumnFacts.of(values, is_delimited=False)
    if of_values is not None and of_values.kind == "number":
        return _left_out("list of fractions, such as an embedding: make each number a column", facts)
    setting = f"{{type: categorical_list, value_type: {of_values.kind}}}" if of_values else "categorical_list"
    return Guess(setting, f"lists ({facts.column.dtype})")


def _weighted_list(facts: ColumnFacts) -> Guess | None:
    if facts.kind != "text" or (separator := weighted_separator(facts.values)) is None:
        return None
    remedy = f"keep the values alone, joined by {separator!r}, or make each weight a numeric column"
    return _left_out(f"list of values with weights, which no feature type reads: {remedy}", facts)


def _written_number(facts: ColumnFacts) -> Guess | None:
    if facts.style is None:
        return None
    guess, style = _number(facts), facts.style
    setting = f'{guess.setting[:-1]}, decimal: "{style.decimal}"}}' if style.has_to_be_said else guess.setting
    return Guess(setting, f"{guess.reason}; {style.evidence}")


def _row_identifier(facts: ColumnFacts) -> Guess | None:
    if len(facts.values) < MIN_ROWS_FOR_ROW_ID or facts.uniqueness < ROW_ID_UNIQUENESS:
        return None
    counts = f"{facts.num_values:,} values in {len(facts.values):,} rows"
    if facts.kind == "text":
        is_prose = _mean(facts.values.str.contains(r"\S\s+\S+\s+\S")) > 0.5  # three words or more
        kind = "free text: derive words or topics;" if is_prose else "row identifier:"
        return _left_out(f"{kind} {counts}", facts)
    if facts.kind == "integer" and (is_code(facts.name) or _is_gapless(facts) or facts.high > 2**31):
        return _left_out(f"row identifier: {counts}", facts)
    return None


def _text_list(facts: ColumnFacts) -> Guess | None:
    if facts.kind != "text" or facts.num_values < MIN_COMBINATIONS:
        return None
    texts = facts.values.unique()
    for separator, most in SEPARATORS.items():
        share = _mean(facts.values.str.contains(separator, literal=True))
        if share < MIN_SEPARATED:
            continue
        pieces = texts.str.split(separator).explode()
        if pieces.n_unique() <= most * len(texts) and _mean(pieces.str.len_chars()) <= MAX_PIECE_LENGTH:
            counts = f"{pieces.n_unique():,} values in {len(texts):,} combinations"
            is_padded = _mean(pieces.str.contains(r"^-?\d+\.0*$")) > 0 and pieces.str.contains(r"^-?\d+(\.0*)?$").all()
            value_type = ", value_type: integer" if is_padded else ""
            setting = f'{{type: categorical_list, separator: "{separator}"{value_type}}}'
            return Guess(setting, f"{share:.0%} of the rows hold {separator!r}; {counts}")
    return None


def _text(facts: ColumnFacts) -> Guess | None:
    if facts.kind == "boolean":
        return Guess(_categorical(facts), "true or false")
    if facts.kind != "text":
        return None
    if facts.values.str.contains(r"^\s*[\[{].*[\]}]\s*$").all():
        return _left_out("list or object written as text: store a list, or join its values by a separator", facts)
    reason = f"text, {facts.num_values:,} values"
    if facts.almost_numbers is not None:
        remedy = "draft again with `--null-value`" if facts.is_delimited else "make those null"
        reason += f"; numbers but for {facts.almost_numbers!r}: {remedy} to make it numeric"
    return Guess("categorical", reason)


def _inexact_codes(facts: ColumnFacts) -> Guess | None:
    if facts.kind != "number" or not is_code(facts.name) or (facts.values != facts.values.round()).any():
        return None
    return _left_out("column of identifiers that a float cannot tell apart: store them as integers or text", facts)


def _whole_numbers(facts: ColumnFacts) -> Guess | None:
    if facts.kind != "integer":
        return None
    count = facts.num_values
    if count < MIN_COUNT_VALUES:
        return Guess(_categorical(facts), f"whole numbers, {count} values")
    if is_code(facts.name):
        return Guess(_categorical(facts), f"codes, by its name; {count:,} values")
    if -10 < facts.low <= 1 and facts.mode <= 1 and facts.skew >= 1:
        return _numeric("log1p", f"counts: mostly small, up to {facts.high:,.0f} (if these are codes: categorical)")
    is_amount = is_measure(facts.name)
    if count <= FEW_VALUES and not (count > 20 and is_amount):
        return Guess(_categorical(facts), f"whole numbers, {count} values")
    if facts.high > 2**31 or (count > 1000 and _is_gapless(facts)):
        return Guess(_categorical(facts), f"codes, by their range; {count:,} values")
    if not is_amount and facts.uniqueness < 1 / MIN_ROWS_PER_CODE:
        reason = f"whole numbers, {count:,} values that recur (if they measure something: numeric)"
        return Guess(_categorical(facts), reason)
    guess = _number(facts)
    return guess._replace(reason=f"{guess.reason} (if these are codes: categorical)")


def _number(facts: ColumnFacts) -> Guess:
    spread = f"from {facts.low:,.6g} to {facts.high:,.6g}"
    if facts.low >= 0 and facts.skew >= HEAVY_SKEW:
        return _numeric("log1p", f"numbers with a heavy tail, {spread}")
    return _numeric("standardize", f"numbers {spread}")


RULES: tuple[Callable[[ColumnFacts], Guess | None], ...] = (
    _unusable_name,
    _nothing_to_learn,
    _native_list,
    _weighted_list,
    _written_number,
    _row_identifier,
    _text_list,
    _text,
    _inexact_codes,
    _whole_numbers,
    _number,
)


def _is_gapless(facts: ColumnFacts) -> bool:
    """True for numbers that count up with few gaps."""
    return facts.num_values >= 0.5 * (facts.high - facts.low + 1)


def _mean(values: pl.Series) -> float:
    mean = values.mean()
    return float(mean) if isinstance(mean, int | float) else 0.0
