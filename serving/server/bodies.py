"""Bodies of scoring requests to what the scorer takes, and probabilities to bodies: row JSON, MLflow's forms and csv.

B rows. The Open Inference Protocol stands in `protocol.py`. An absent key or column is a missing value; a request that
names none of the model's features is refused, for it is a mistake.
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic_core import from_json, to_json

from features.errors import InputError
from features.io.readers import columns_of, read_chunks
from features.registry import FeatureRegistry
from serving.server.limits import Limits, too_many_columns, too_many_rows

Probabilities = npt.NDArray[np.float64]
OUTPUT = "probability"


class Rows(NamedTuple):
    """What a body asks to score."""

    arguments: tuple[Any, ...]
    """Of `Scorer.encode`: rows, or a context and candidates."""
    num_rows: int
    """B."""
    id: str | None = None
    """The request's own name for itself, where its protocol has one."""
    is_binary: bool = False
    """Whether the answer is to be raw bytes, where its protocol has them."""


class Answer(NamedTuple):
    """What a reply is made of."""

    model: str
    version: str
    id: str
    """The request's own, or the server's."""
    probabilities: Probabilities
    """[B]."""
    is_binary: bool = False
    """As `Rows` has it."""


class Reply(NamedTuple):
    """Body of an answer, and what its head says of it."""

    content: bytes
    media_type: str = "application/json"
    headers: Mapping[str, str] = {}


class Form(NamedTuple):
    """One form of request: how its body is read, and how it is answered."""

    read: Callable[[bytes, FeatureRegistry, Limits], Rows]
    reply: Callable[[Answer], Reply]


def read_json_object(body: bytes) -> dict[str, Any]:
    """A body as a JSON object; raises `InputError` for anything else, nesting deeper than 200 included."""
    try:
        document = from_json(body)
    except ValueError as error:
        raise InputError("expected JSON", found=str(error)[:160], remedy="send a JSON object") from None
    if not isinstance(document, dict):
        raise InputError("expected a JSON object", found=kind_of(document), remedy="see /docs")
    return document


def read_score(body: bytes, registry: FeatureRegistry, limits: Limits) -> Rows:
    """`{"rows": [...]}`, or `{"context": {...}, "candidates": [...]}`, each row an object from feature to value.

    >>> registry = FeatureRegistry.of(features={"user": "categorical", "item": "categorical"})
    >>> body = b'{"context": {"user": 7}, "candidates": [{"item": "a"}, {"item": "b"}]}'
    >>> read_score(body, registry, Limits()).num_rows
    2
    """
    document = read_json_object(body)
    keys = set(document)
    if keys == {"rows"}:
        rows = _objects(document["rows"], "rows", limits)
        _check_names([rows], registry)
        return Rows((rows,), len(rows))
    if keys != {"context", "candidates"}:
        remedy = 'send {"rows": [...]}, or {"context": {...}, "candidates": [...]}'
        raise InputError("expected the key `rows`, or `context` and `candidates`", found=_keys(document), remedy=remedy)
    context, candidates = document["context"], _objects(document["candidates"], "candidates", limits)
    if not isinstance(context, dict):
        remedy = "send one object for all candidates"
        raise InputError("context: expected an object", found=kind_of(context), remedy=remedy)
    _check_names([[context], candidates], registry)
    return Rows((context, candidates), len(candidates))


def reply_score(answer: Answer) -> Reply:
    """`{"model": ..., "version": ..., "scores": [...]}`."""
    scores = answer.probabilities.tolist()
    return Reply(to_json({"model": answer.model, "version": answer.version, "scores": scores}))


def read_invocations(body: bytes, registry: FeatureRegistry, limits: Limits) -> Rows:
    """MLflow's JSON: one of `dataframe_split`, `dataframe_records`, `instances`, `inputs`; `params` is not read."""
    document = read_json_object(body)
    forms = [name for name in document if name != "params"]
    if len(forms) != 1 or forms[0] not in _MLFLOW_FORMS:
        raise InputError(f"expected one of {', '.join(_MLFLOW_FORMS)}", found=_keys(document), remedy="see /docs")
    name = forms[0]
    return _MLFLOW_FORMS[name](document[name], name, registry, limits)


def reply_invocations(answer: Answer) -> Reply:
    """`{"predictions": [{"probability": ...}, ...]}`, as MLflow answers for the model of a logged bundle."""
    return Reply(to_json({"predictions": [{OUTPUT: probability} for probability in answer.probabilities.tolist()]}))


def read_csv(body: bytes, registry: FeatureRegistry, limits: Limits) -> Rows:
    """A csv with a header, read by the reader of files: a field is text to the letter, and an empty one missing."""
    num_columns = _num_columns(body, registry.csv.separator if registry.csv else ",")
    if num_columns > limits.max_columns:  # before a reader makes something of each
        raise too_many_columns(num_columns, limits)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "request.csv"
        path.write_bytes(body)
        try:
            columns = dict.fromkeys(columns_of(path, registry.csv))
            if not columns:
                raise InputError("expected rows", found="an empty file", remedy="send a header and rows")
            _check_names([[columns]], registry)
            names = [feature.name for feature in registry.features if feature.name in columns]
            chunks = list(read_chunks(path, names, csv=registry.csv))
        except InputError as error:
            expected = error.expected.replace(f"{path}: ", "")
            raise InputError(expected, found=error.found, remedy=error.remedy, row=error.row) from None
    if not chunks:  # a header alone
        return Rows(([],), 0)
    frame = pl.concat(chunks)
    check_num_rows(len(frame), limits)
    return Rows((frame,), len(frame))


def rows_of_columns(columns: Mapping[str, Sequence[Any]], registry: FeatureRegistry) -> list[dict[str, Any]]:
    """Rows [B] of columns of equal length; columns that are no feature's are left out.

    >>> registry = FeatureRegistry.of(features={"user": "categorical", "age": "numeric"})
    >>> rows_of_columns({"user": [7, "x"], "place": [1, 2]}, registry)
    [{'user': 7}, {'user': 'x'}]
    """
    _check_names([[columns]], registry)
    names = [feature.name for feature in registry.features if feature.name in columns]
    return [dict(zip(names, row, strict=True)) for row in zip(*(columns[name] for name in names), strict=True)]


def check_num_rows(found: int, limits: Limits) -> None:
    """Raise `RefusedError` for too many rows."""
    if found > limits.max_rows:
        raise too_many_rows(found, limits)


def kind_of(value: object) -> str:
    """What JSON calls a value.

    >>> [kind_of(value) for value in (None, True, 1.5, "a", [], {})]
    ['null', 'a boolean', 'a number', 'a text', 'a list', 'an object']
    """
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list"}
    return names.get(type(value), "an object")


def _split(value: Any, name: str, registry: FeatureRegistry, limits: Limits) -> Rows:
    """`{"columns": [...], "data": [[...], ...]}`; an `index` is not read."""
    if not isinstance(value, dict) or not isinstance(value.get("columns"), list) or "data" not in value:
        found = _keys(value) if isinstance(value, dict) else kind_of(value)
        raise InputError(f"{name}: expected `columns` and `data`", found=found, remedy="see /docs")
    names, data = value["columns"], value["data"]
    if not all(isinstance(column, str) for column in names) or len(set(names)) < len(names):
        raise InputError(f"{name}: expected columns of different names", found=str(names)[:80], remedy="rename them")
    if not isinstance(data, list):
        raise InputError(f"{name}: expected a list of rows", found=kind_of(data), remedy="see /docs")
    check_num_rows(len(data), limits)
    for row, values in enumerate(data):
        if not isinstance(values, list) or len(values) != len(names):
            found = f"{len(values)}" if isinstance(values, list) else kind_of(values)
            expected = f"{name}: expected a list of {len(names)} values, one a column"
            raise InputError(expected, found=found, remedy="mend that row", row=row)
    columns = dict(zip(names, zip(*data, strict=True), strict=True)) if data else {column: () for column in names}
    return Rows((rows_of_columns(columns, registry),), len(data))


def _records(value: Any, name: str, registry: FeatureRegistry, limits: Limits) -> Rows:
    rows = _objects(value, name, limits)
    _check_names([rows], registry)
    return Rows((rows,), len(rows))


def _inputs(value: Any, name: str, registry: FeatureRegistry, limits: Limits) -> Rows:
    """Columns by name, or rows as in the other forms."""
    if not isinstance(value, dict):
        return _records(value, name, registry, limits)
    wrong = [column for column in value if not isinstance(value[column], list)]
    if wrong:
        found = f"{kind_of(value[wrong[0]])} for {wrong[0]!r}"
        raise InputError(f"{name}: expected a list of values a column", found=found[:80], remedy="put it in a list")
    lengths = sorted({len(column) for column in value.values()})
    if len(lengths) > 1:
        found = f"{lengths[0]} and {lengths[-1]}"
        raise InputError(f"{name}: expected columns of equal length", found=found, remedy="send a value a row")
    num_rows = lengths[0] if lengths else 0
    check_num_rows(num_rows, limits)
    return Rows((rows_of_columns(value, registry),), num_rows)


_MLFLOW_FORMS: dict[str, Callable[[Any, str, FeatureRegistry, Limits], Rows]] = {
    "dataframe_split": _split,
    "dataframe_records": _records,
    "instances": _records,
    "inputs": _inputs,
}


def _objects(value: Any, name: str, limits: Limits) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise InputError(f"{name}: expected a list of objects", found=kind_of(value), remedy="put it in a list")
    check_num_rows(len(value), limits)
    for row, one in enumerate(value):
        if type(one) is not dict:
            remedy = "send an object from feature to value"
            raise InputError(f"{name}: expected an object", found=kind_of(one), remedy=remedy, row=row)
    return value


def _check_names(groups: Iterable[Sequence[Mapping[str, Any]]], registry: FeatureRegistry) -> None:
    """Raise `InputError` where rows name something, and never a feature. It ends at the first row that does."""
    names = {feature.name for feature in registry.features}
    first: str | None = None
    for row in (row for group in groups for row in group):
        if not names.isdisjoint(row):
            return
        first = first or next(iter(row), None)
    if first is not None:
        shown = ", ".join(sorted(names)[:12])
        raise InputError(
            "expected values of the model's features", found=repr(first[:80]), remedy=f"send some of {shown}"
        )


def _num_columns(body: bytes, separator: str) -> int:
    """Columns of a csv's header, at least as many as a reader may find: in its first line, and with quotes heeded."""
    text = body.lstrip(b"\xef\xbb\xbf\r\n")
    line = text.partition(b"\n")[0]
    num_separators = line.count(separator.encode())
    if b'"' in line:  # names may hold line ends and separators
        data = np.frombuffer(text + b"\n", dtype=np.uint8)
        is_plain = np.bitwise_xor.accumulate((data == ord('"')).view(np.uint8)) == 0
        end = int((is_plain & (data == ord("\n"))).argmax()) or len(data)
        num_separators = max(num_separators, int((is_plain & (data == ord(separator)))[:end].sum()))
    return 1 + num_separators


def _keys(document: Mapping[str, Any]) -> str:
    return ", ".join(repr(key[:40]) for key in list(document)[:8]) or "none"


SCORE = Form(read_score, reply_score)
INVOCATIONS = Form(read_invocations, reply_invocations)
INVOCATIONS_CSV = Form(read_csv, reply_invocations)
