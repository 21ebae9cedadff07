"""Open Inference Protocol v2 over REST: tensors to columns, probabilities to a tensor, and the model's metadata.

B rows, L values of a list, T values of all lists. A tensor is named after its feature; its data are JSON or, after the
JSON, raw bytes (`binary.py`). An extension of the protocol: `null` in `data` is a missing value, and so is a tensor
that is not sent.
"""

import difflib
import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, FailFast, Field, StrictStr
from pydantic_core import to_json
from starlette.responses import Response

from features.errors import InputError
from features.registry import FeatureRegistry
from features.spec import AnyFeature, CategoricalList, Numeric
from serving.server.binary import HEADER, RawTensors, check_integers, split_body, values_of
from serving.server.bodies import (
    OUTPUT,
    ParsedRequest,
    Probabilities,
    RequestFormat,
    json_response,
    kind_of,
    read_json_object,
    rows_of_columns,
    validated,
)
from serving.server.limits import Limits
from serving.server.metrics import ModelVersion

# Lists of unequal lengths as two tensors, all values and the offset of each row's first: a convention of Merlin.
VALUES, OFFSETS = "__values", "__offsets"
MAX_DIMENSION = 2**31
CONTENT_TYPES = ("np", "pd", "str")
"""MLServer's content types that mean here what they mean there: values as they are."""
_OTHER_MEANINGS = ("classification", "shared_memory_region")
"""Parameters of Triton that ask for something else than the values."""

_Integers = Literal["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"]
Datatype = Literal["BYTES", "BOOL", _Integers, "FP16", "BF16", "FP32", "FP64"]
DATATYPES: tuple[Datatype, ...] = get_args(Datatype)


_RANGES = {f"INT{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)}
_RANGES |= {f"UINT{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64)}
_TYPES: dict[str, frozenset[type]] = {
    "BYTES": frozenset({str}),
    "BOOL": frozenset({bool}),
    **dict.fromkeys(_RANGES, frozenset({int})),
    **dict.fromkeys(("FP16", "BF16", "FP32", "FP64"), frozenset({int, float})),
}

Parameters = dict[str, Any] | None
_Size = Annotated[int, Field(strict=True, ge=0, lt=MAX_DIMENSION)]


class Tensor(BaseModel):
    """An input; `data` may be nested as its shape says."""

    name: StrictStr
    shape: Annotated[list[_Size], Field(min_length=1, max_length=2)]
    datatype: Datatype
    data: Any = Field(None, json_schema_extra={"type": "array"})
    parameters: Parameters = None

    @property
    def place(self) -> str:
        """Name in messages."""
        return f"input {self.name[:80]!r}"

    @property
    def is_raw(self) -> bool:
        """True if its values follow the JSON as raw bytes."""
        return "binary_data_size" in (self.parameters or {})


class Output(BaseModel):
    """An output that a client asks for."""

    name: Literal["probability"]
    parameters: Parameters = None


def _listed(outputs: Any) -> list[Any]:
    """Outputs as the protocol has them: a name alone, and one that is not in a list, are taken too."""
    outputs = outputs if isinstance(outputs, list) else [] if outputs is None else [outputs]
    return [{"name": one} if isinstance(one, str) else one for one in outputs]


class InferRequest(BaseModel):
    """Tensors to score."""

    id: StrictStr | None = None
    inputs: Annotated[list[Tensor], FailFast(), Field(min_length=1)]
    outputs: Annotated[list[Output], FailFast(), BeforeValidator(_listed)] = []
    parameters: Parameters = None


def read_tensors(body: bytes, registry: FeatureRegistry, limits: Limits, length: str | None = None) -> ParsedRequest:
    """An inference request; a list feature is [B, L], or two tensors `NAME__values` [T] and `NAME__offsets` [B + 1].

    `length`: the number of bytes of JSON, from the client's header; the rest of the body is raw tensors.

    >>> registry = FeatureRegistry.of(features={"user": "categorical"})
    >>> body = b'{"id": "a", "inputs": [{"name": "user", "datatype": "BYTES", "shape": [2], "data": ["x", null]}]}'
    >>> read_tensors(body, registry, Limits()).arguments
    ([{'user': 'x'}, {'user': None}],)
    """
    text, raw = split_body(body, length)
    request = validated(InferRequest, read_json_object(text), limits)
    is_binary = _is_binary_wanted(request)
    content_type = (request.parameters or {}).get("content_type")
    for tensor in request.inputs:
        tensor.data = _values(tensor, raw, content_type)
    raw.check_end()
    columns = _columns(request.inputs, registry, limits)
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{length} in {name!r}" for name, length in list(lengths.items())[:4])
        raise InputError("inputs: expected the same number of rows", found=found, remedy="send one value per row")
    num_rows = next(iter(lengths.values()))
    limits.check_num_rows(num_rows)
    return ParsedRequest((rows_of_columns(columns, registry),), num_rows, request.id, is_binary)


def reply_tensors(version: ModelVersion, request: ParsedRequest, probabilities: Probabilities) -> Response:
    """An inference response with the one output `probability`, FP64 [B]: as JSON, or raw bytes after the JSON."""
    output: dict[str, Any] = {"name": OUTPUT, "datatype": "FP64", "shape": [len(probabilities)]}
    head = {"model_name": version.model, "model_version": version.version, "id": request.id, "outputs": [output]}
    if not request.is_binary:
        output["data"] = probabilities.tolist()
        return json_response(head)
    raw = probabilities.astype("<f8").tobytes()
    output["parameters"] = {"binary_data_size": len(raw)}
    text = to_json(head)
    return Response(text + raw, media_type="application/octet-stream", headers={HEADER: str(len(text))})


def tensors_of(length: str | None) -> RequestFormat:
    """The format of a request whose `HEADER` has this value; None without the header."""
    return RequestFormat(partial(read_tensors, length=length), reply_tensors)


def metadata_of(registry: FeatureRegistry) -> dict[str, list[dict[str, Any]]]:
    """`inputs` and `outputs` of the model's metadata; -1 is a dimension of any size."""
    inputs: list[dict[str, Any]] = []
    for feature in registry.features:
        datatype, shape = "FP64" if isinstance(feature, Numeric) else "BYTES", [-1, -1] if feature.is_list else [-1]
        inputs.append({"name": feature.name, "datatype": datatype, "shape": shape})
    return {"inputs": inputs, "outputs": [{"name": OUTPUT, "datatype": "FP64", "shape": [-1]}]}


def _is_binary_wanted(request: InferRequest) -> bool:
    wanted = _flag("request", request.parameters, "binary_data_output", default=False)
    for output in request.outputs:
        _check_meaning("outputs", "FP64", output.parameters, None)
        wanted = _flag("outputs", output.parameters, "binary_data", default=wanted)
    return wanted


def _flag(place: str, parameters: Parameters, name: str, *, default: bool) -> bool:
    value = (parameters or {}).get(name, default)
    if not isinstance(value, bool):
        raise InputError(f"{place}: expected {name} true or false", found=kind_of(value))
    return value


def _check_meaning(place: str, datatype: str, parameters: Parameters, default: Any) -> None:
    """Raise `InputError` where parameters give the data another meaning than they have here.

    Other parameters, such as a priority, change no value and are ignored.
    """
    parameters = parameters or {}
    for name in _OTHER_MEANINGS:
        if name in parameters:
            raise InputError(f"{place}: expected plain values", found=name, remedy="leave that parameter out")
    content_type = parameters.get("content_type", default)
    if content_type is None or (content_type in CONTENT_TYPES and (content_type != "str" or datatype == "BYTES")):
        return
    expected = f"{place}: expected content_type np or pd" + (" or str" if datatype == "BYTES" else "")
    found = repr(content_type[:40]) if isinstance(content_type, str) else kind_of(content_type)
    remedy = "send texts, numbers and booleans as they are, without a content_type"
    raise InputError(expected, found=found, remedy=remedy)


def _values(tensor: Tensor, raw: RawTensors, content_type: Any) -> Sequence[Any]:
    """A tensor's values in row-major order; raises `InputError` unless shape, data type and data agree."""
    place, datatype, count = tensor.place, tensor.datatype, math.prod(tensor.shape)
    _check_meaning(place, datatype, tensor.parameters, content_type)
    if tensor.is_raw == ("data" in tensor.model_fields_set):
        found = "both" if tensor.is_raw else "none"
        remedy = "send `data` as JSON, or binary_data_size and raw bytes"
        raise InputError(f"{place}: expected data", found=found, remedy=remedy)
    if tensor.parameters is not None and tensor.is_raw:
        return values_of(place, datatype, count, raw.take(place, tensor.parameters["binary_data_size"]))
    data = _flat(tensor.data, len(tensor.shape))
    if len(data) != count:
        found = f"{len(data)} for shape {tensor.shape}"[:80]
        raise InputError(f"{place}: expected {count} values", found=found, remedy="correct the shape or the data")
    _check_data(place, datatype, data)
    return data


def _flat(data: Any, num_dimensions: int) -> list[Any]:
    """Data in row-major order; it may be flat already, or nested as its shape says."""
    if not isinstance(data, list):
        return [data]
    if num_dimensions == 2 and data and all(type(part) is list for part in data):
        return [value for part in data for value in part]
    return data


def _check_data(place: str, datatype: str, data: Sequence[Any]) -> None:
    allowed = _TYPES[datatype] | {type(None)}
    wrong = {type(value) for value in data} - allowed
    if wrong:
        found = kind_of(next(value for value in data if type(value) in wrong))
        raise InputError(f"{place}: expected values of {datatype}", found=found, remedy="correct datatype or data")
    if datatype in _RANGES:
        low, high = _RANGES[datatype]
        outside = next((value for value in data if value is not None and not low <= value <= high), None)
        if outside is not None:
            found = str(outside)[:40] if abs(outside) < 10**40 else "a longer number"
            raise InputError(f"{place}: expected {low} to {high}", found=found, remedy="choose a wider datatype")


def _columns(tensors: Sequence[Tensor], registry: FeatureRegistry, limits: Limits) -> dict[str, list[Any]]:
    by_name: dict[str, Tensor] = {}
    for tensor in tensors:
        if tensor.name in by_name:
            raise InputError("inputs: expected each tensor once", found=f"{tensor.name[:80]!r} twice")
        by_name[tensor.name] = tensor
    columns: dict[str, list[Any]] = {}
    for feature in registry.features:
        if feature.name in by_name:
            values = by_name.pop(feature.name)
            column = _column(values, feature, limits)
        elif feature.is_list and {feature.name + VALUES, feature.name + OFFSETS} <= set(by_name):
            values = by_name.pop(feature.name + VALUES)
            column = _ragged(values, by_name.pop(feature.name + OFFSETS))
        else:
            continue
        if values.is_raw and not isinstance(feature, Numeric):  # rounding may have made one category of two
            check_integers(values.place, values.datatype, values.data)
        columns[feature.name] = column
    if by_name:
        name = next(iter(by_name))
        names = [feature.name for feature in registry.features]
        close = difflib.get_close_matches(name[:80], names, n=1)
        remedy = f"did you mean {close[0]!r}?" if close else f"inputs are {', '.join(names[:12])}"
        raise InputError("inputs: expected tensors named after features", found=repr(name[:80]), remedy=remedy)
    return columns


def _column(tensor: Tensor, feature: AnyFeature, limits: Limits) -> list[Any]:
    data, shape = list(tensor.data), tensor.shape
    limits.check_num_rows(shape[0])  # before allocating anything: a shape [2^31, 0] needs no data
    has_separator = isinstance(feature, CategoricalList) and feature.separator is not None
    if len(shape) == 1 or (len(shape) == 2 and shape[1] == 1 and (not feature.is_list or has_separator)):
        return data  # of a list feature without a separator, texts: column_of says what is wrong with them
    if len(shape) == 2 and feature.is_list:
        return [data[row * shape[1] : (row + 1) * shape[1]] for row in range(shape[0])]
    expected = "[rows, values]" if feature.is_list else "[rows]"
    raise InputError(f"{tensor.place}: expected shape {expected}", found=str(list(shape))[:80], remedy="reshape it")


def _ragged(values: Tensor, offsets: Tensor) -> list[list[Any]]:
    starts = list(offsets.data)
    is_sound = len(offsets.shape) == 1 and offsets.datatype in _RANGES and None not in starts and len(starts) >= 1
    if not is_sound or starts[0] != 0 or starts[-1] != len(values.data) or starts != sorted(starts):
        expected = f"{offsets.place}: expected the start of each row's values, from 0 to {len(values.data)}"
        raise InputError(expected, found=str(starts[:8])[:80], remedy="send one more offset than rows, ascending")
    data = list(values.data)
    return [data[start:stop] for start, stop in pairwise(starts)]
