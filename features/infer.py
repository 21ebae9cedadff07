"""A registry drafted from a file: a guess a column, each with its reason, for a person to read and correct."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import yaml

from features.column_facts import ColumnFacts, Labels, label_auc
from features.encode import missing_column
from features.errors import InputError
from features.frames import frame_of, is_frame
from features.infer_rules import LABEL_NAMES, ROW_ID_UNIQUENESS, Guess, guess_feature
from features.readers import expand, read_chunks
from features.registry import is_plain_name

GROUP_NAMES = ("user_id", "userid", "user", "uid", "visitor_id", "customer_id", "member_id", "account_id", "msno")
LEAK_AUC, SUSPICIOUS_AUC = 0.99, 0.95
MOSTLY_MISSING = 0.5
MAX_ALIGNED_WIDTH = 56


class _Line(NamedTuple):
    text: str
    reason: str


def infer_registry(rows: Any, *, sample_rows: int = 200_000, label: str | None = None) -> str:
    """A registry file drafted from the first `sample_rows` rows, the reason of each guess beside it.

    `rows`: the path of a file, a polars or pandas frame, or anything with an Arrow C stream.

    Columns that should not be learned from are there as comments: row identifiers, constants, targets in disguise,
    moments in time, types without a feature type. Where no label is found a comment says so; `label:` then names a
    column that is yet to be made. Raises `InputError` for a file that cannot be read or has no rows, for a `label`
    that it has not, and where no column can be a feature.
    """
    if sample_rows < 1:
        raise InputError("sample_rows must be positive", found=str(sample_rows))
    file = None if is_frame(rows) else expand(rows)[0]
    where = "the frame" if file is None else str(file)
    if file is None:
        sample = frame_of(rows.head(sample_rows) if hasattr(rows, "head") else rows, (), None).head(sample_rows)
    else:
        sample = _sample(file, sample_rows)
    if sample.is_empty():
        raise InputError(f"{where}: expected rows", found="none", remedy="draft the registry from another file")
    if label is not None and label not in sample.columns:
        raise missing_column(label, sample.columns).located(where)
    is_delimited = file is not None and file.name.endswith((".csv", ".csv.gz"))
    facts = {name: ColumnFacts.of(sample[name], is_delimited=is_delimited) for name in sample.columns}
    label_name, label_line = _label_line(facts, label)
    labels = _labels(facts[label_name]) if label_name is not None else None
    guesses = {name: _guess(facts[name], labels) for name in facts if name != label_name}
    if not any(guess.is_used for guess in guesses.values()):
        found = ", ".join(f"{name!r}, a {guess.reason.split(':')[0]}" for name, guess in list(guesses.items())[:6])
        remedy = "add columns that are known before the label is"
        raise InputError(f"{where}: expected a column to learn from", found=found or "the label alone", remedy=remedy)
    lines = [label_line, _group_line(facts, label_name), _Line("features:", "")]
    lines += [_feature_line(name, guess) for name, guess in guesses.items()]
    title = f"Drafted from the first {len(sample):,} rows of {'a frame' if file is None else file.name}"
    return _rendered(f"{title}. Read every line before use.", lines)


def _sample(file: Path, num_rows: int) -> pl.DataFrame:
    frames: list[pl.DataFrame] = []
    for chunk in read_chunks(file, chunk_rows=min(num_rows, 65_536)):
        frames.append(chunk)
        if sum(map(len, frames)) >= num_rows:
            break
    return pl.concat(frames).head(num_rows) if frames else pl.DataFrame()


def _label_line(facts: Mapping[str, ColumnFacts], given: str | None) -> tuple[str | None, _Line]:
    """Name of the label's column (None where there is no telling) and its line."""
    by_name = {name.lower(): name for name in facts}
    named = [by_name[name] for name in LABEL_NAMES if name in by_name]
    binary = [name for name in facts if is_plain_name(name) and _outcomes(facts[name]) is not None]
    if given is not None:
        verdict = _rate(facts[given]) if given in binary else f"BUT it holds {_values(facts[given])}: map it to 0 and 1"
        return given, _Line(f"label: {_scalar(given)}", f"as asked for; {verdict}")
    if name := next((name for name in named if name in binary), None):
        return name, _Line(f"label: {_scalar(name)}", f"by its name; {_rate(facts[name])}")
    if len(binary) == 1:
        return binary[0], _Line(
            f"label: {_scalar(binary[0])}", f"the only column of 0 and 1; {_rate(facts[binary[0]])}"
        )
    if named:
        reason = f"NOT FOUND: {named[0]} holds {_values(facts[named[0]])}; map it to 0 and 1, or name another column"
    elif binary:
        reason = f"NOT FOUND: name the outcome here; of 0 and 1 are {', '.join(map(repr, binary[:5]))}"
    else:
        reason = "NOT FOUND: name the outcome here; no column holds 0 and 1 alone"
    return None, _Line("label: label", reason)


def _outcomes(facts: ColumnFacts) -> pl.Series | None:
    """The column [N] as 0.0, 1.0 and null; None unless both are there and nothing else is."""
    if facts.kind not in ("boolean", "integer", "number", "text") or facts.num_values != 2:
        return None
    numbers = facts.column.cast(pl.Float64, strict=False)
    is_binary = numbers.null_count() == facts.column.null_count() and (numbers.min(), numbers.max()) == (0, 1)
    return numbers if is_binary else None


def _labels(facts: ColumnFacts) -> tuple[pl.Series, Labels] | None:
    """(which rows have a label [N], the labels they have); None without a usable label."""
    outcomes = _outcomes(facts)
    return None if outcomes is None else (outcomes.is_not_null(), (outcomes.drop_nulls() == 1).to_numpy())


def _rate(facts: ColumnFacts) -> str:
    labels = _labels(facts)
    assert labels is not None
    missing = f"; {facts.missing:.1%} MISSING: drop those rows" if facts.missing else ""
    return f"{labels[1].mean():.2%} ones{missing}"


def _values(facts: ColumnFacts) -> str:
    if not facts.num_values:
        return str(facts.column.dtype)[:40]
    shown = ", ".join(repr(value)[:20] for value in facts.values.unique().sort().head(5))
    return f"{facts.num_values:,} values ({shown}{', ...' if facts.num_values > 5 else ''})"


def _group_line(facts: Mapping[str, ColumnFacts], label: str | None) -> _Line:
    by_name = {name.lower(): name for name in facts if name != label}
    for name in (by_name[name] for name in GROUP_NAMES if name in by_name):
        column = facts[name]
        if (column.kind == "text" or column.is_integral) and column.uniqueness < ROW_ID_UNIQUENESS:
            rows = len(column.values) / column.num_values
            return _Line(
                f"group: {_scalar(name)}", f"by its name; {rows:.1f} rows a value, ranked among themselves (gAUC)"
            )
    return _Line("# group: COLUMN", "optional, for gAUC; no column is named like a user")


def _guess(facts: ColumnFacts, labels: tuple[pl.Series, Labels] | None) -> Guess:
    guess = guess_feature(facts)
    reason = guess.reason
    if guess.is_used and labels is not None and facts.kind != "list":
        has_label, outcomes = labels
        auc = label_auc(facts.column.filter(has_label), outcomes)
        if auc >= LEAK_AUC:
            return guess._replace(reason=f"target in disguise: alone it tells the label, AUC {auc:.3f}", is_used=False)
        if auc >= SUSPICIOUS_AUC:
            reason += f"; SUSPICIOUS: alone it reaches AUC {auc:.3f}, is it known before the label?"
    if facts.missing >= MOSTLY_MISSING:
        reason += f"; MOSTLY MISSING: {facts.missing:.1%}"
    elif facts.missing:
        reason += f"; {facts.missing:.1%} missing"
    return guess._replace(reason=reason)


def _feature_line(name: str, guess: Guess) -> _Line:
    return _Line(f"{'  ' if guess.is_used else '  # '}{_scalar(name)}: {guess.setting}", guess.reason)


def _rendered(title: str, lines: list[_Line]) -> str:
    width = max(len(line.text) for line in lines if len(line.text) <= MAX_ALIGNED_WIDTH)
    rows = [f"# {title}"] + [f"{text:<{width}}  # {reason}" if reason else text for text, reason in lines]
    # Names and values of the file are in comments, where YAML allows no control character.
    return "".join("".join(c if c.isprintable() else "?" for c in row) + "\n" for row in rows)


def _scalar(text: str) -> str:
    """Text as a YAML scalar that any reader takes for that text."""
    if not text.isprintable():
        return repr(text)
    return yaml.safe_dump(text, allow_unicode=True, width=10**6).removesuffix("\n").removesuffix("\n...")
