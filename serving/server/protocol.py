"""Open Inference Protocol v2 over REST: tensors to columns, probabilities to a tensor, and the model's metadata.

B rows, L values of a list, T values of all lists. A tensor is named after its feature; its data are JSON or, after the
JSON, raw bytes (`binary.py`). An extension of the protocol: `null` in `data` is a missing value, and so is a tensor
that is not sent.
"""

import math
import reprlib
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    FailFast,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import to_json
from starlette.responses import Response

from features.errors import InputError
from features.feature_types import AnyFeature
from features.registry import FeatureRegistry
from features.spec import CategoricalList, Numeric
from serving.server.binary import HEADER, RawTensors, check_integers, split_body, values_of
from serving.server.bodies import (
    OUTPUT,
    ParsedRequest,
    Probabilities,
    RequestFormat,
    json_response,
    mistake,
    read_request,
    rows_of_columns,
)
from serving.server.limits import Limits
from serving.server.metrics import ModelVersion

# Lists of unequal lengths as two tensors, all values and the offset of each row's first: a convention of Merlin.
VALUES, OFFSETS = "__values", "__offsets"
Datatype = Literal[
    "BYTES", "BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64",
    "FP16", "BF16", "FP32", "FP64",
]  # fmt: skip
DATATYPES: tuple[Datatype, ...] = get_args(Datatype)

_JSON_VALUES: dict[str, Any] = {"BYTES": StrictStr, "BOOL": StrictBool}
_JSON_VALUES |= dict.fromkeys(("FP16", "BF16", "FP32", "FP64"), StrictInt | StrictFloat)
for _bits in (8, 16, 32, 64):
    _JSON_VALUES[f"INT{_bits}"] = Annotated[StrictInt, Field(ge=-(2 ** (_bits - 1)), lt=2 ** (_bits - 1))]
    _JSON_VALUES[f"UINT{_bits}"] = Annotated[StrictInt, Field(ge=0, lt=2**_bits)]
_DATA = {name: TypeAdapter[Any](Annotated[list[one | None], FailFast()]) for name, one in _JSON_VALUES.items()}  # pyright: ignore
_Size = Annotated[StrictInt, Field(ge=0)]


class Parameters(BaseModel):
    """The parameters that matter here; others, such as a priority, change no value and are ignored."""

    content_type: Literal["np", "pd", "str"] | None = None
    """MLServer's content types that mean what they mean there: values as they are."""
    classification: None = None
    """Triton's request for something else than the values is refused."""
    shared_memory_region: None = None
    """The same."""
    binary_data_size: _Size | None = None
    """Of an input: the bytes that it has after the JSON."""
    binary_data: StrictBool | None = None
    """Of an output: True for raw bytes."""
    binary_data_output: StrictBool = False
    """Of a request: `binary_data` of outputs that do not say."""


class Tensor(BaseModel):
    """An input; `data` may be nested as its shape says."""

    name: StrictStr
    shape: Annotated[list[Annotated[_Size, Field(lt=2**31)]], Field(min_length=1, max_length=2)]
    datatype: Datatype
    data: Any = Field(None, json_schema_extra={"type": "array"})
    parameters: Parameters | None = None

    @property
    def place(self) -> str:
        """Name in messages."""
        return f"input {self.name[:80]!r}"

    @property
    def num_bytes(self) -> int | None:
        """Size of the values as raw bytes after the JSON; None where they are in `data`."""
        return self.parameters.binary_data_size if self.parameters else None


class Output(BaseModel):
    """An output that a client asks for."""

    name: Literal["probability"]
    parameters: Parameters | None = None


def _listed(outputs: Any) -> list[Any]:
    """Outputs as the protocol has them: a name alone, and one that is not in a list, are taken too."""
    outputs = outputs if isinstance(outputs, list) else [] if outputs is None else [outputs]
    return [{"name": one} if isinstance(one, str) else one for one in outputs]


class InferRequest(BaseModel):
    """Tensors to score."""

    id: StrictStr | None = None
    inputs: Annotated[list[Tensor], FailFast(), Field(min_length=1)]
    outputs: Annotated[list[Output], FailFast(), BeforeValidator(_listed)] = []
    parameters: Parameters | None = None

    @property
    def is_binary(self) -> bool:
        """True if the answer's values are wanted as raw bytes; the last output decides."""
        wanted = [one.parameters.binary_data for one in self.outputs if one.parameters]
        by_default = bool(self.parameters and self.parameters.binary_data_output)
        return next((one for one in reversed(wanted) if one is not None), by_default)


def read_tensors(body: bytes, registry: FeatureRegistry, limits: Limits, length: str | None = None) -> ParsedRequest:
    """An inference request; a list feature is [B, L], or two tensors `NAME__values` [T] and `NAME__offsets` [B + 1].

    `length`: the number of bytes of JSON, from the client's header; the rest of the body is raw tensors.

    >>> registry = FeatureRegistry.of(features={"user": "categorical"})
    >>> body = b'{"id": "a", "inputs": [{"name": "user", "datatype": "BYTES", "shape": [2], "data": ["x", null]}]}'
    >>> read_tensors(body, registry, Limits()).arguments
    ([{'user': 'x'}, {'user': None}],)
    """
    text, raw = split_body(body, length)
    request = read_request(text, InferRequest)
    for tensor in request.inputs:
        tensor.data = _values(tensor, raw)
    raw.check_end()
    rows = rows_of_columns(_columns(request.inputs, registry, limits), limits)
    return ParsedRequest((rows,), request.id, request.is_binary)


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


def _values(tensor: Tensor, raw: RawTensors) -> list[Any]:
    """A tensor's values in row-major order; raises `InputError` unless shape, data type and data agree."""
    place, datatype, count = tensor.place, tensor.datatype, math.prod(tensor.shape)
    if (tensor.num_bytes is not None) == ("data" in tensor.model_fields_set):
        found = "none" if tensor.num_bytes is None else "both"
        remedy = "send `data` as JSON, or binary_data_size and raw bytes"
        raise InputError(f"{place}: expected data", found=found, remedy=remedy)
    if datatype != "BYTES" and tensor.parameters and tensor.parameters.content_type == "str":
        raise InputError(f"{place}: expected content_type np or pd", found="'str'", remedy="leave it out")
    if tensor.num_bytes is not None:
        return values_of(place, datatype, count, raw.take(place, tensor.num_bytes))
    data = tensor.data if isinstance(tensor.data, list) else [tensor.data]
    if len(tensor.shape) == 2 and data and all(isinstance(part, list) for part in data):
        data = [value for part in data for value in part]
    if len(data) != count:
        found = f"{len(data)} for shape {tensor.shape}"
        raise InputError(f"{place}: expected {count} values", found=found, remedy="correct the shape or the data")
    try:
        return _DATA[datatype].validate_python(data)
    except ValidationError as error:
        raise mistake(error, f"{place} of {datatype}, data") from None


def _columns(tensors: Sequence[Tensor], registry: FeatureRegistry, limits: Limits) -> dict[str, list[Any]]:
    """Values [B] by feature."""
    by_name = {tensor.name: tensor for tensor in tensors}
    if len(by_name) < len(tensors):
        raise InputError(
            "inputs: expected each tensor once",
            found=reprlib.repr([tensor.name for tensor in tensors]),
            remedy="send it once",
        )
    columns: dict[str, list[Any]] = {}
    for feature in registry.features:
        if values := by_name.pop(feature.name, None):
            columns[feature.name] = _column(values, feature, limits)
        elif feature.is_list and {feature.name + VALUES, feature.name + OFFSETS} <= set(by_name):
            values = by_name.pop(feature.name + VALUES)
            columns[feature.name] = _ragged(values, by_name.pop(feature.name + OFFSETS))
        if values and values.num_bytes is not None and not isinstance(feature, Numeric):
            check_integers(values.place, values.datatype, values.data)  # rounding may have made one category of two
    if by_name:
        remedy = f"inputs are {', '.join(feature.name for feature in registry.features[:12])}"
        found = reprlib.repr(next(iter(by_name)))
        raise InputError("inputs: expected tensors named after features", found=found, remedy=remedy)
    return columns


def _column(tensor: Tensor, feature: AnyFeature, limits: Limits) -> list[Any]:
    data, shape = tensor.data, tensor.shape
    limits.check_num_rows(shape[0])  # before allocating anything: a shape [2^31, 0] needs no data
    has_separator = isinstance(feature, CategoricalList) and feature.separator is not None
    if len(shape) == 1 or (shape[1] == 1 and (not feature.is_list or has_separator)):
        return data  # of a list feature without a separator, texts: the encoder says what is wrong with them
    if feature.is_list:
        return [data[row * shape[1] : (row + 1) * shape[1]] for row in range(shape[0])]
    raise InputError(f"{tensor.place}: expected shape [rows]", found=str(shape), remedy="reshape it")


def _ragged(values: Tensor, offsets: Tensor) -> list[list[Any]]:
    """Lists [B] of the values between two offsets."""
    starts, data = offsets.data, values.data
    is_sound = bool(starts) and all(type(start) is int for start in starts) and starts == sorted(starts)
    if not is_sound or (starts[0], starts[-1]) != (0, len(data)):
        expected = f"{offsets.place}: expected the start of each row's values, from 0 to {len(data)}"
        raise InputError(expected, found=reprlib.repr(starts), remedy="send one more offset than rows, ascending")
    return [data[start:stop] for start, stop in pairwise(starts)]
