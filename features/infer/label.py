"""Detection of the label: its column, the values that count as 1, and the certainty of both."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import polars as pl
import yaml

from features.infer import column_names
from features.infer.column_facts import ColumnFacts
from features.infer.column_names import LABEL_NAMES, LABEL_WORDS, NO_LABEL_WORDS, words_of
from features.registry import is_plain_name

# Pairs that a plain `label:` accepts, in any case; the second is 1.
PLAIN_PAIRS = (("0", "1"), ("-1", "1"), ("false", "true"), ("no", "yes"), ("n", "y"), ("f", "t"))
POSITIVE_WORDS = LABEL_WORDS - {"label", "target", "outcome", "income", "salary", "response", "satisfaction"}
POSITIVE_WORDS -= {"tomorrow"}
POSITIVE_WORDS |= {"yes", "true", "positive", "pos", "success", "successful", "won", "win", "malignant", "high", "pass"}
POSITIVE_WORDS |= {"buy", "like", "dead", "completed", "hired", "satisfied"}
NEGATIVE_WORDS = frozenset({"no", "not", "non", "never", "none", "false", "negative", "neg", "without", "ham", "nein"})
NEGATIVE_PREFIXES = ("un", "in", "im", "dis", "non", "not")

SURE_NAME, LIKELY_NAME, WEAK_NAME = 8, 4, 2
SPEAKING_VALUES, EDGE_COLUMN = 2, 1
MIN_EVIDENCE = 5
RATING_VALUES, MAX_RATING = (3, 11), 10
USUAL_THRESHOLD = 0.8
MAX_SPELLINGS = 8  # of two values, such as YES, Yes, yes


class Outcome(NamedTuple):
    """A column as a label."""

    setting: str
    """Right-hand side of `label:`."""
    is_one: pl.Series
    """Booleans [N], null where the label is missing."""
    why: str = ""
    """Reason why these values are 1; empty if it is obvious."""
    is_sure: bool = True
    """False if the values do not show which of them is 1."""

    @property
    def verdict(self) -> str:
        """Reason in the draft: the values that are 1, and the shares of rows that are 1 or missing."""
        share = self.is_one.null_count() / len(self.is_one)
        missing = f"; {share:.1%} MISSING: drop those rows" if share else ""
        return f"{self.why}{self.is_one.mean() or 0:.2%} ones{missing}"


class LabelGuess(NamedTuple):
    """The label's column and its line in the draft."""

    name: str | None
    """None if it is not clear."""
    setting: str
    reason: str
    outcome: Outcome | None = None


def find_label(facts: Mapping[str, ColumnFacts], given: str | None) -> LabelGuess:
    """The label among the columns, or the given one; the reason begins with NOT FOUND if there is none."""
    outcomes = {name: outcome_of(column) for name, column in facts.items() if is_plain_name(name)}
    if given is not None:
        outcome = outcomes.get(given) or _rated(facts[given]) or _among_many(facts[given])
        if outcome is not None:
            return _guess_of(given, outcome, "as asked for")
        return LabelGuess(given, scalar(given), f"as asked for; BUT it holds {_values(facts[given])}: {_remedy(given)}")
    found = {name: outcome for name, outcome in outcomes.items() if outcome is not None}
    edges = {[*facts][k] for k in (0, -1)}  # the usual places of a label
    evidence = {name: _evidence(name, outcome, is_at_edge=name in edges) for name, outcome in found.items()}
    named = sorted((name for name in found if evidence[name][0] >= MIN_EVIDENCE), key=evidence.__getitem__)
    if named and (len(named) == 1 or evidence[named[-2]] < evidence[named[-1]]):
        reason = "by its name" if evidence[named[-1]][0] >= SURE_NAME else "by its name and its values"
        return _guess_of(named[-1], found[named[-1]], reason)
    plain = [name for name in found if found[name].setting == scalar(name)]
    rated = {name: rating for name in facts if is_plain_name(name) and (rating := _rated(facts[name], by_name=True))}
    if not named and not plain and len(rated) == 1:
        ((name, outcome),) = rated.items()
        return _guess_of(name, outcome, "a rating, by its name and its values")
    if not named and not rated and len(plain) == 1:
        column = facts[plain[0]]
        # Yes and no are common in features; only at an edge of the table may they be a label.
        if column.kind != "text" or column.values[0].strip("-01") == "" or column.name in edges:
            texts = column.values.cast(pl.String).str.strip_chars().str.to_lowercase().unique()
            pair = " and ".join(sorted(texts, key=lambda text: text in _ONES))
            return _guess_of(column.name, found[column.name], f"the only column of {pair}")
    candidates = dict.fromkeys([*named, *plain, *rated, *(name for name in found if evidence[name][0])])
    return LabelGuess(None, "label", _not_found(facts, [*candidates]))


def _guess_of(name: str, outcome: Outcome, reason: str) -> LabelGuess:
    return LabelGuess(name, outcome.setting, f"{reason}; {outcome.verdict}", outcome)


def outcome_of(facts: ColumnFacts) -> Outcome | None:
    """A column of two values as a label; None for other columns."""
    is_scalar = facts.kind in ("boolean", "integer", "number", "text") and facts.style is None
    if not is_scalar or facts.num_values > MAX_SPELLINGS:
        return None
    texts = facts.column.cast(pl.String)
    plain = texts.str.strip_chars().str.to_lowercase().str.strip_prefix("+")
    pair = tuple(sorted(plain.drop_nulls().unique().to_list(), key=lambda text: (text not in _ONES, text)))
    if facts.kind != "number" and pair[::-1] in PLAIN_PAIRS:
        return Outcome(scalar(facts.name), plain == pair[0])
    if facts.num_values != 2:
        return None
    if facts.kind != "text":
        return _at_least(facts, facts.values.max()) if math.isfinite(facts.high) else None
    values = texts.drop_nulls().unique().sort().to_list()
    by_words = [value for value in values if _is_positive(value, values)]
    rarer = min(values, key=lambda value: ((texts == value).sum(), value))
    one = by_words[0] if len(by_words) == 1 else rarer
    return _positive(facts, [one], "by its meaning" if by_words else "A GUESS: the rarer", is_sure=bool(by_words))


_ONES = frozenset(one for _, one in PLAIN_PAIRS)


def _positive(facts: ColumnFacts, ones: list[str], why: str, *, is_sure: bool) -> Outcome:
    setting = inline({"column": facts.name, "positive": ones})
    others = facts.values.filter(~facts.values.is_in(ones)).unique().sort().head(3).to_list()
    turned = inline(others) if len(ones) == 1 and facts.num_values == 2 else "[...]"
    shown = ", ".join(repr(one)[:30] for one in ones)
    why = f"{shown} is 1, {why} (to turn it round, `positive: {turned}`); "
    return Outcome(setting, facts.column.is_in(ones), why, is_sure)


def _at_least(facts: ColumnFacts, threshold: Any) -> Outcome:
    is_one = facts.column >= pl.Series([threshold], dtype=facts.column.dtype)
    why = f"{threshold} or more is 1, the rest 0 (choose the threshold); "
    return Outcome(inline({"column": facts.name, "at_least": threshold}), is_one, why, is_sure=False)


def _rated(facts: ColumnFacts, *, by_name: bool = False) -> Outcome | None:
    """A column of a few small whole or half numbers as a label with a threshold."""
    words = words_of(facts.name)
    if facts.kind not in ("integer", "number") or (
        by_name and (not column_names.RATING_WORDS & words or NO_LABEL_WORDS & words)
    ):
        return None
    least, most = RATING_VALUES
    doubled = facts.values.cast(pl.Float64) * 2
    is_scale = least <= facts.num_values <= most and facts.low >= -MAX_RATING and 1 < facts.high <= MAX_RATING
    if facts.style is not None or not is_scale or (doubled != doubled.round()).any():
        return None
    threshold = math.ceil(USUAL_THRESHOLD * facts.high)
    return _at_least(facts, threshold if facts.low < threshold else facts.values.max())


def _among_many(facts: ColumnFacts) -> Outcome | None:
    """A text column of several values, some of which name an outcome, as a label."""
    if facts.kind != "text" or not 2 < facts.num_values <= RATING_VALUES[1]:
        return None
    values = facts.values.unique().sort().to_list()
    ones = [value for value in values if _is_positive(value, values)]
    return _positive(facts, ones, "by its meaning", is_sure=False) if 0 < len(ones) < len(values) else None


def _is_positive(value: str, values: list[str]) -> bool:
    """True for a value that names an outcome (canceled, >50K) or is the only one that does not deny it."""
    is_denied = _is_denial(value, values)
    if len(values) == 2:
        other = values[0] if value == values[1] else values[1]
        if is_denied != _is_denial(other, values):
            return not is_denied
    return not is_denied and (value.strip().startswith(">") or bool(POSITIVE_WORDS & words_of(value)))


def _is_denial(value: str, values: list[str]) -> bool:
    """True for not_canceled, and for unpaid if paid is another value."""
    folded = value.strip().lower()
    rests = [folded.removesuffix(other.strip().lower()) for other in values if other != value and other.strip()]
    return bool(NEGATIVE_WORDS & words_of(value)) or any(
        rest.endswith(NEGATIVE_PREFIXES) for rest in rests if rest != folded
    )


def _evidence(name: str, outcome: Outcome, *, is_at_edge: bool) -> tuple[int, int]:
    """Evidence for a column as the label; then its rank among the most certain names, the first highest."""
    words, speaks = words_of(name), SPEAKING_VALUES * outcome.is_sure
    if name.lower() in LABEL_NAMES:
        return SURE_NAME + speaks, -LABEL_NAMES.index(name.lower())
    weak = words & column_names.WEAK_LABEL_WORDS
    if words & NO_LABEL_WORDS or not (weak or words & LABEL_WORDS):
        return 0, 0
    by_name = LIKELY_NAME if words & LABEL_WORDS or weak == words else WEAK_NAME
    return by_name + speaks + EDGE_COLUMN * is_at_edge, 0


def _not_found(facts: Mapping[str, ColumnFacts], candidates: list[str]) -> str:
    by_name = {name.lower(): name for name in facts}
    named = [by_name[name] for name in LABEL_NAMES if name in by_name and by_name[name] not in candidates]
    if candidates:
        return f"NOT FOUND: draft again with `--label COLUMN`; it may be {', '.join(map(repr, candidates[:5]))}"
    if named:
        return f"NOT FOUND: {named[0]} holds {_values(facts[named[0]])}; {_remedy(named[0])}, or name another column"
    two = [name for name in facts if facts[name].num_values == 2]
    also = f"; of two values are {', '.join(map(repr, two[:5]))}" if two else ""
    return f"NOT FOUND: draft again with `--label COLUMN`; no column holds 0 and 1 alone{also}"


def _remedy(name: str) -> str:
    column = inline(name)
    return f"write `{{column: {column}, at_least: NUMBER}}` or `{{column: {column}, positive: [VALUE]}}`"


def _values(facts: ColumnFacts) -> str:
    if not facts.num_values:
        return str(facts.column.dtype)[:40]
    shown = ", ".join(repr(value)[:20] for value in facts.values.unique().sort().head(5))
    return f"{facts.num_values:,} values ({shown}{', ...' if facts.num_values > 5 else ''})"


def inline(value: Any) -> str:
    """YAML of a value on one line, as inside a mapping."""
    for allow_unicode in (True, False):
        options = {"default_flow_style": True, "sort_keys": False, "allow_unicode": allow_unicode, "width": 10**6}
        text = yaml.safe_dump([value], **options).strip()[1:-1]
        if text.isprintable():
            break
    return text


def scalar(text: str) -> str:
    """Text as a YAML scalar that every reader reads as that text."""
    if not text.isprintable():
        return repr(text)
    return yaml.safe_dump(text, allow_unicode=True, width=10**6).removesuffix("\n").removesuffix("\n...")
