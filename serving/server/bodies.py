"""Bodies of scoring requests and answers: row JSON, MLflow's formats and csv; `protocol.py` has the tensors.

B rows. The pydantic models check a body, and describe it in `openapi.py`. They leave the values of rows alone: the
encoder decides what a value means, as in training. An absent key or column is a missing value.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    FailFast,
    Field,
    InstanceOf,
    StrictStr,
    Tag,
    ValidationError,
    ValidationInfo,
    create_model,
)
from pydantic_core import from_json, to_json
from starlette.responses import Response
from typing_extensions import TypeAliasType

from features.errors import InputError
from features.io.readers import columns_of, read_chunks
from features.registry import FeatureRegistry
from serving.server.limits import Limits
from serving.server.metrics import ModelVersion

Probabilities = npt.NDArray[np.float64]
OUTPUT = "probability"
M = TypeVar("M", bound=BaseModel)


class ParsedRequest(NamedTuple):
    """Rows to score, and what the answer needs of the request."""

    arguments: tuple[Any, ...]
    """Arguments of `Scorer.encode`: rows, or a context and candidates."""
    num_rows: int
    id: str | None = None
    """The client's name for the request, where the protocol has one."""
    is_binary: bool = False
    """True to answer with raw bytes, where its protocol allows it."""


class RequestFormat(NamedTuple):
    """A format of request bodies: how to read one, and how to answer it."""

    read: Callable[[bytes, FeatureRegistry, Limits], ParsedRequest]
    reply: Callable[[ModelVersion, ParsedRequest, Probabilities], Response]


def _check_num_rows(value: Any, info: ValidationInfo) -> Any:
    assert isinstance(info.context, Limits)
    if isinstance(value, list):
        info.context.check_num_rows(len(value))
    return value


def _equal_lengths(columns: dict[str, Any], info: ValidationInfo) -> dict[str, list[Any]]:
    for name, column in columns.items():
        if not isinstance(column, list):
            found = f"{kind_of(column)} for {name!r}"[:80]
            raise InputError("inputs: expected a list of values per column", found=found, remedy="put it in a list")
    lengths = sorted({len(column) for column in columns.values()})
    if len(lengths) > 1:
        found = f"{lengths[0]} and {lengths[-1]}"
        raise InputError("inputs: expected columns of equal length", found=found, remedy="send one value per row")
    _check_num_rows(next(iter(columns.values()), []), info)
    return columns


# Aliases, since `openapi.py` describes these four by the features and limits of the served model.
Row = TypeAliasType("Row", InstanceOf[dict[str, Any]])
Rows = TypeAliasType("Rows", Annotated[list[Row], FailFast(), BeforeValidator(_check_num_rows)])
Columns = TypeAliasType("Columns", Annotated[InstanceOf[dict[str, Any]], AfterValidator(_equal_lengths)])
FeatureName = TypeAliasType("FeatureName", StrictStr)


class RowsRequest(BaseModel):
    """`{"rows": [...]}`, each row an object from feature to value."""

    model_config = ConfigDict(extra="forbid")
    rows: Rows


class CandidatesRequest(BaseModel):
    """`{"context": {...}, "candidates": [...]}`: the features that all candidates share are sent once."""

    model_config = ConfigDict(extra="forbid")
    context: Row
    candidates: Rows


class SplitFrame(BaseModel):
    """`{"columns": [...], "data": [[...], ...]}`; an `index` is ignored."""

    columns: Annotated[list[FeatureName], FailFast(), Field(json_schema_extra={"uniqueItems": True, "minItems": 1})]
    data: Annotated[list[InstanceOf[list[Any]]], FailFast(), BeforeValidator(_check_num_rows)]


_RowsOrColumns = Annotated[
    Annotated[Columns, Tag("as columns")] | Annotated[Rows, Tag("as rows")],
    Discriminator(lambda value: "as columns" if isinstance(value, dict) else "as rows"),
]
_MLFLOW = {"dataframe_split": SplitFrame, "dataframe_records": Rows, "instances": Rows, "inputs": _RowsOrColumns}
_FIELDS: dict[str, dict[str, Any]] = {key: {key: (body, ...), "params": (Any, None)} for key, body in _MLFLOW.items()}
SCORE_REQUESTS = (RowsRequest, CandidatesRequest)
INVOCATIONS_REQUESTS = tuple(create_model(key, **fields) for key, fields in _FIELDS.items())


def read_json_object(body: bytes) -> dict[str, Any]:
    """A body as a JSON object; raises `InputError` for anything else, nesting deeper than 200 included."""
    try:
        document = from_json(body)
    except ValueError as error:
        raise InputError("expected JSON", found=str(error)[:160], remedy="send a JSON object") from None
    if not isinstance(document, dict):
        raise InputError("expected a JSON object", found=kind_of(document), remedy="see /docs")
    return document


def validated(model: type[M], document: dict[str, Any], limits: Limits) -> M:
    """The document as a model; raises its first mistake as an `InputError`, and `RefusedError` for too many rows."""
    try:
        return model.model_validate(document, context=limits)
    except ValidationError as error:
        raise _mistake(error, document) from None


def read_score(body: bytes, registry: FeatureRegistry, limits: Limits) -> ParsedRequest:
    """`{"rows": [...]}`, or `{"context": {...}, "candidates": [...]}`, each row an object from feature to value.

    >>> registry = FeatureRegistry.of(features={"user": "categorical", "item": "categorical"})
    >>> body = b'{"context": {"user": 7}, "candidates": [{"item": "a"}, {"item": "b"}]}'
    >>> read_score(body, registry, Limits()).num_rows
    2
    """
    document = read_json_object(body)
    remedy = 'send {"rows": [...]}, or {"context": {...}, "candidates": [...]}'
    request = validated(_model_of(document, SCORE_REQUESTS, remedy), document, limits)
    arguments = tuple(getattr(request, name) for name in type(request).model_fields)
    return ParsedRequest(arguments, len(arguments[-1]))


def json_response(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response with a document as JSON."""
    return Response(to_json(document), status, headers, "application/json")


def reply_score(version: ModelVersion, request: ParsedRequest, probabilities: Probabilities) -> Response:
    """`{"model": ..., "version": ..., "scores": [...]}`."""
    return json_response(version._asdict() | {"scores": probabilities.tolist()})


def read_invocations(body: bytes, registry: FeatureRegistry, limits: Limits) -> ParsedRequest:
    """MLflow's JSON: one of `dataframe_split`, `dataframe_records`, `instances` and `inputs`; `params` is ignored."""
    document = read_json_object(body)
    model = _model_of(document, INVOCATIONS_REQUESTS, "see /docs")
    request = validated(model, document, limits)
    value = getattr(request, model.__name__)
    if isinstance(value, list):
        return ParsedRequest((value,), len(value))
    columns = _columns_of(value) if isinstance(value, SplitFrame) else value
    rows = rows_of_columns(columns, registry)
    return ParsedRequest((rows,), len(rows))


def reply_invocations(version: ModelVersion, request: ParsedRequest, probabilities: Probabilities) -> Response:
    """`{"predictions": [{"probability": ...}, ...]}`."""
    return json_response({"predictions": [{OUTPUT: probability} for probability in probabilities.tolist()]})


def rows_of_columns(columns: Mapping[str, Sequence[Any]], registry: FeatureRegistry) -> list[dict[str, Any]]:
    """Rows [B] of columns of equal length; only the features' columns are kept.

    >>> registry = FeatureRegistry.of(features={"user": "categorical", "age": "numeric"})
    >>> rows_of_columns({"user": [7, "x"], "place": [1, 2]}, registry)
    [{'user': 7}, {'user': 'x'}]
    """
    names = _features_among(columns, registry)
    return [dict(zip(names, row, strict=True)) for row in zip(*(columns[name] for name in names), strict=True)]


def kind_of(value: object) -> str:
    """JSON's name for the type of a value.

    >>> [kind_of(value) for value in (None, True, 1.5, "a", [], {})]
    ['null', 'a boolean', 'a number', 'a text', 'a list', 'an object']
    """
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list"}
    return names.get(type(value), "an object")


def _model_of(document: Mapping[str, Any], models: Sequence[type[BaseModel]], remedy: str) -> type[BaseModel]:
    """The model whose keys a document has; raises `InputError` if it has other keys."""
    keys = [[name for name, field in model.model_fields.items() if field.is_required()] for model in models]
    for model, required in zip(models, keys, strict=True):
        if set(required) <= document.keys() <= model.model_fields.keys():
            return model
    expected = ", or ".join(" and ".join(f"`{name}`" for name in names) for names in keys)
    raise InputError(f"expected the keys {expected}", found=_keys(document), remedy=remedy)


_SHAPE = "[rows] or [rows, values]", "send the shape as whole numbers"
_EXPECTED = {
    "is_instance_of dict": ("an object", "send an object from feature to value"),
    "is_instance_of list": ("a list", "put it in a list"),
    "list_type": ("a list", "put it in a list"),
    "string_type": ("a text", "send it in quotes"),
    "dict_type": ("an object", "see /docs"),
    "model_type": ("an object", "see /docs"),
    "literal_error": ("{expected}", "see /docs"),
    "too_short": ("{min_length} or more", "see /docs"),
    **dict.fromkeys(("too_long", "int_type", "greater_than_equal", "less_than"), _SHAPE),
}
"""By pydantic's type of error: what was expected, and the remedy."""
_NAMED_BY_VALUE = ("literal_error", "greater_than_equal", "less_than")


def _mistake(error: ValidationError, document: Mapping[str, Any]) -> InputError:
    """The first mistake that pydantic found, as an error with the place, what was expected there, and the remedy."""
    first = error.errors(include_url=False)[0]
    kind, place, value, context = first["type"], first["loc"], first["input"], first.get("ctx", {})
    if isinstance(context.get("error"), InputError):
        return context["error"]
    if kind == "missing":
        where = _where(place[:-1], document)
        return InputError(f"{where}expected `{place[-1]}`", found=_keys(value), remedy="see /docs")
    key = f"{kind} {context['class']}" if kind == "is_instance_of" else kind
    expected, remedy = _EXPECTED.get(key, (first["msg"].removeprefix("Input should be "), "see /docs"))
    found = f"{context['actual_length']} items" if "actual_length" in context else kind_of(value)
    if kind in _NAMED_BY_VALUE and isinstance(value, str | float | int):
        found = repr(value)[:40]
    row = place[-1] if kind == "is_instance_of" and isinstance(place[-1], int) else None
    expected = f"{_where(place, document)}expected {expected.format(**context)}"
    return InputError(expected, found=found, remedy=remedy, row=row)


def _where(place: tuple[int | str, ...], document: Mapping[str, Any]) -> str:
    """Names of the fields that lead to a value, with a tensor's own name, as the start of a message."""
    names = [one for one in place if isinstance(one, str)]
    if names[:1] == ["inputs"] and len(place) > 1 and isinstance(place[1], int):
        tensor = document["inputs"][place[1]]
        name = tensor.get("name") if isinstance(tensor, dict) else None
        names[0] = f"input {name[:80]!r}" if isinstance(name, str) else names[0]
    return ", ".join(names) + ": " if names else ""


def _columns_of(frame: SplitFrame) -> Mapping[str, Sequence[Any]]:
    names, num_columns = frame.columns, len(frame.columns)
    if len(set(names)) < num_columns:
        expected = "dataframe_split: expected columns of different names"
        raise InputError(expected, found=str(names)[:80], remedy="rename them")
    for row, values in enumerate(frame.data):
        if len(values) != num_columns:
            expected = f"dataframe_split: expected a list of {num_columns} values, one per column"
            raise InputError(expected, found=f"{len(values)}", remedy="correct that row", row=row)
    return dict(zip(names, zip(*frame.data, strict=True) if frame.data else [()] * num_columns, strict=True))


def _features_among(columns: Mapping[str, Any], registry: FeatureRegistry) -> list[str]:
    """Features that have a column; raises `InputError` if no column is a feature's."""
    names = [feature.name for feature in registry.features]
    found = [name for name in names if name in columns]
    if columns and not found:
        shown, remedy = repr(next(iter(columns))[:80]), f"send some of {', '.join(names[:12])}"
        raise InputError("expected a column of a feature of the model", found=shown, remedy=remedy)
    return found


def read_csv(body: bytes, registry: FeatureRegistry, limits: Limits) -> ParsedRequest:
    """A csv with a header, read as files are: a field's text is kept to the letter, and an empty field is missing."""
    separator = registry.csv.separator if registry.csv else ","
    limits.check_num_columns(_num_columns(body, separator))  # before a reader allocates something for each
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "request.csv"
        path.write_bytes(body)
        try:
            columns = dict.fromkeys(columns_of(path, registry.csv))
            if not columns:
                raise InputError("expected rows", found="an empty file", remedy="send a header and rows")
            chunks = list(read_chunks(path, _features_among(columns, registry), csv=registry.csv))
        except InputError as error:
            expected = error.expected.replace(f"{path}: ", "")
            raise InputError(expected, found=error.found, remedy=error.remedy, row=error.row) from None
    if not chunks:  # a header alone
        return ParsedRequest(([],), 0)
    frame = pl.concat(chunks)
    limits.check_num_rows(len(frame))
    return ParsedRequest((frame,), len(frame))


def _num_columns(body: bytes, separator: str) -> int:
    """Columns of a csv's header: the larger of the counts with and without regard to quotes."""
    text = body.lstrip(b"\xef\xbb\xbf\r\n")
    line = text.partition(b"\n")[0]
    num_separators = line.count(separator.encode())
    if b'"' in line:  # quoted names may hold line ends and separators
        data = np.frombuffer(text + b"\n", dtype=np.uint8)
        is_plain = np.bitwise_xor.accumulate((data == ord('"')).view(np.uint8)) == 0
        end = int((is_plain & (data == ord("\n"))).argmax()) or len(data)
        num_separators = max(num_separators, int((is_plain & (data == ord(separator)))[:end].sum()))
    return 1 + num_separators


def _keys(document: Mapping[str, Any]) -> str:
    return ", ".join(repr(key[:40]) for key in list(document)[:8]) or "none"


SCORE = RequestFormat(read_score, reply_score)
INVOCATIONS = RequestFormat(read_invocations, reply_invocations)
INVOCATIONS_CSV = RequestFormat(read_csv, reply_invocations)
