"""Bodies of scoring requests and answers: row JSON, MLflow's formats and csv; `protocol.py` has the tensors.

B rows. The pydantic models check a body, and describe it in `openapi.py`. They leave the values of rows alone: the
encoder decides what a value means, as in training. An absent key or column is a missing value.
"""

import re
import reprlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    FailFast,
    Field,
    InstanceOf,
    StrictStr,
    Tag,
    ValidationError,
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
    id: str | None = None
    """The client's name for the request, where the protocol has one."""
    is_binary: bool = False
    """True to answer with raw bytes, where its protocol allows it."""

    @property
    def num_rows(self) -> int:
        """Number of rows or candidates."""
        return len(self.arguments[-1])


class RequestFormat(NamedTuple):
    """A format of request bodies: how to read one, and how to answer it."""

    read: Callable[[bytes, FeatureRegistry, Limits], ParsedRequest]
    reply: Callable[[ModelVersion, ParsedRequest, Probabilities], Response]


# Aliases, since `openapi.py` describes these four by the features and limits of the served model. Values are instances
# of what `from_json` makes, as copies, or pydantic's own parser, take half as long again.
Row = TypeAliasType("Row", InstanceOf[dict[str, Any]])
Rows = TypeAliasType("Rows", Annotated[list[Row], FailFast()])
Columns = TypeAliasType("Columns", InstanceOf[dict[str, Any]])
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
    data: Annotated[list[InstanceOf[list[Any]]], FailFast()]


_RowsOrColumns = Annotated[
    Annotated[Columns, Tag("as columns")] | Annotated[Rows, Tag("as rows")],
    Discriminator(lambda value: "as columns" if isinstance(value, dict) else "as rows"),
]
_MLFLOW = {"dataframe_split": SplitFrame, "dataframe_records": Rows, "instances": Rows, "inputs": _RowsOrColumns}
_FIELDS: dict[str, dict[str, Any]] = {key: {key: (body, ...), "params": (Any, None)} for key, body in _MLFLOW.items()}
SCORE_REQUESTS = (RowsRequest, CandidatesRequest)
INVOCATIONS_REQUESTS = tuple(create_model(key, **fields) for key, fields in _FIELDS.items())


def read_request(body: bytes, *models: type[M]) -> M:
    """A body as the model whose keys it has; raises its first mistake as an `InputError`.

    Nesting deeper than 200 is a mistake, too.
    """
    try:
        document = from_json(body)
    except ValueError as error:
        raise InputError("expected JSON", found=str(error)[:160], remedy="send a JSON object") from None
    if not isinstance(document, dict):
        raise InputError("expected a JSON object", found=reprlib.repr(document), remedy="see /docs")
    keys = [[name for name, field in model.model_fields.items() if field.is_required()] for model in models]
    for model, required in zip(models, keys, strict=True):
        if len(models) == 1 or set(required) <= document.keys() <= model.model_fields.keys():
            try:
                return model.model_validate(document)
            except ValidationError as error:
                raise mistake(error) from None
    expected = "expected the keys " + ", or ".join(" and ".join(names) for names in keys)
    raise InputError(expected, found=reprlib.repr(list(document)), remedy="see /docs")


_WORDS = {
    "Input should be": "expected",
    "List should have": "expected a list of",
    "Field required": "expected a value",
    "instance of dict": "object",
    "expected None": "expected null",
}
"""Words of pydantic's messages, and those for clients of JSON."""


def mistake(error: ValidationError, place: str = "") -> InputError:
    """The first mistake that pydantic found in the value at `place`: where, what was expected, and what was found."""
    first = error.errors(include_url=False)[0]
    place += "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in first["loc"])
    expected = first["msg"]
    for word, ours in _WORDS.items():
        expected = expected.replace(word, ours)
    return InputError(f"{place.lstrip('.')}: {expected}", found=reprlib.repr(first["input"]), remedy="see /docs")


def read_score(body: bytes, registry: FeatureRegistry, limits: Limits) -> ParsedRequest:
    """`{"rows": [...]}`, or `{"context": {...}, "candidates": [...]}`, each row an object from feature to value.

    >>> registry = FeatureRegistry.of(features={"user": "categorical", "item": "categorical"})
    >>> body = b'{"context": {"user": 7}, "candidates": [{"item": "a"}, {"item": "b"}]}'
    >>> read_score(body, registry, Limits()).num_rows
    2
    """
    return ParsedRequest(tuple(value for _, value in read_request(body, *SCORE_REQUESTS)))


def json_response(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response with a document as JSON."""
    return Response(to_json(document), status, headers, "application/json")


def reply_score(version: ModelVersion, request: ParsedRequest, probabilities: Probabilities) -> Response:
    """`{"model": ..., "version": ..., "scores": [...]}`."""
    return json_response(version._asdict() | {"scores": probabilities.tolist()})


def read_invocations(body: bytes, registry: FeatureRegistry, limits: Limits) -> ParsedRequest:
    """MLflow's JSON: one of `dataframe_split`, `dataframe_records`, `instances` and `inputs`; `params` is ignored."""
    request = read_request(body, *INVOCATIONS_REQUESTS)
    value = getattr(request, type(request).__name__)
    if isinstance(value, SplitFrame):
        value = _rows_of_split(value, limits)
    elif isinstance(value, dict):
        value = rows_of_columns(value, limits)
    return ParsedRequest((value,))


def reply_invocations(version: ModelVersion, request: ParsedRequest, probabilities: Probabilities) -> Response:
    """`{"predictions": [{"probability": ...}, ...]}`."""
    return json_response({"predictions": [{OUTPUT: probability} for probability in probabilities.tolist()]})


def rows_of_columns(columns: Mapping[str, Sequence[Any]], limits: Limits) -> list[dict[str, Any]]:
    """Rows [B] of columns; raises `InputError` unless these are lists of equal length.

    >>> rows_of_columns({"user": [7, "x"], "age": [1, 2]}, Limits())
    [{'user': 7, 'age': 1}, {'user': 'x', 'age': 2}]
    """
    lengths = {name: len(one) if isinstance(one, list) else type(one).__name__ for name, one in columns.items()}
    found = set(lengths.values())
    if len(found) > 1 or not all(isinstance(length, int) for length in found):
        expected, remedy = "inputs: expected a list of the same number of values per column", "send one value per row"
        raise InputError(expected, found=reprlib.repr(lengths), remedy=remedy)
    limits.check_num_rows(max(map(len, columns.values()), default=0))  # before a row is made
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _rows_of_split(frame: SplitFrame, limits: Limits) -> list[dict[str, Any]]:
    names, num_columns = frame.columns, len(frame.columns)
    if len(set(names)) < num_columns:
        expected = "dataframe_split: expected columns of different names"
        raise InputError(expected, found=reprlib.repr(names), remedy="rename them")
    limits.check_num_rows(len(frame.data))
    for row, values in enumerate(frame.data):
        if len(values) != num_columns:
            expected = f"dataframe_split: expected a list of {num_columns} values, one per column"
            raise InputError(expected, found=f"{len(values)}", remedy="correct that row", row=row)
    return [dict(zip(names, values, strict=True)) for values in frame.data]


def read_csv(body: bytes, registry: FeatureRegistry, limits: Limits) -> ParsedRequest:
    """A csv with a header, read as files are: a field's text is kept to the letter, and an empty field is missing."""
    separator = registry.csv.separator if registry.csv else ","
    limits.check_num_columns(_num_columns(body, separator.encode()))  # before a reader allocates something for each
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "request.csv"
        path.write_bytes(body)
        try:
            columns = columns_of(path, registry.csv)
            if not columns:
                raise InputError("expected rows", found="an empty file", remedy="send a header and rows")
            names = [feature.name for feature in registry.features if feature.name in columns]
            chunks = list(read_chunks(path, names or None, csv=registry.csv))
        except InputError as error:
            expected = error.expected.replace(f"{path}: ", "")
            raise InputError(expected, found=error.found, remedy=error.remedy, row=error.row) from None
    return ParsedRequest((pl.concat(chunks) if chunks else [],))  # no chunks: a header alone


def _num_columns(body: bytes, separator: bytes) -> int:
    """Columns of a csv's header: the larger of the counts with and without regard to quotes."""
    text = body.lstrip(b"\xef\xbb\xbf\r\n")
    unquoted = re.sub(rb'"[^"]*"?', b"", text)  # quoted names may hold line ends and separators
    return 1 + max(one.partition(b"\n")[0].count(separator) for one in (text, unquoted))


SCORE = RequestFormat(read_score, reply_score)
INVOCATIONS = RequestFormat(read_invocations, reply_invocations)
INVOCATIONS_CSV = RequestFormat(read_csv, reply_invocations)
