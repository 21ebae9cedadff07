"""Open Inference Protocol v2 over REST: tensors to columns, probabilities to a tensor, and the model's metadata.

B rows, L values of a list, T values of all lists. A tensor is named after its feature; its data are JSON or, behind the
JSON, raw bytes (`binary.py`). What JSON has and the protocol has not: `null` in `data` is a missing value, and so is a
tensor that is not sent.
"""

import difflib
import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, TypeGuard

from pydantic_core import to_json

from features.errors import InputError
from features.registry import FeatureRegistry
from features.spec import AnyFeature, CategoricalList, Numeric
from serving.server.binary import HEADER, RawTensors, check_integers, split_body, values_of
from serving.server.bodies import (
    OUTPUT,
    Answer,
    Form,
    Reply,
    Rows,
    check_num_rows,
    kind_of,
    read_json_object,
    rows_of_columns,
)
from serving.server.limits import Limits

# Lists of unequal lengths as two tensors, all values and where each row's begin: a convention of Merlin's servers.
VALUES, OFFSETS = "__values", "__offsets"
MAX_DIMENSION = 2**31
CONTENT_TYPES = ("np", "pd", "str")
"""MLServer's names for what data mean that mean here what they mean there: values as they are."""
_OTHER_MEANINGS = ("classification", "shared_memory_region")
"""Parameters of Triton that ask for something else than the values."""


def _integers(bits: int, *, signed: bool) -> tuple[int, int]:
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


_RANGES = {f"INT{bits}": _integers(bits, signed=True) for bits in (8, 16, 32, 64)}
_RANGES |= {f"UINT{bits}": _integers(bits, signed=False) for bits in (8, 16, 32, 64)}
_TYPES: dict[str, frozenset[type]] = {
    "BYTES": frozenset({str}),
    "BOOL": frozenset({bool}),
    **dict.fromkeys(_RANGES, frozenset({int})),
    **dict.fromkeys(("FP16", "BF16", "FP32", "FP64"), frozenset({int, float})),
}
DATATYPES = tuple(_TYPES)


class _Tensor(NamedTuple):
    """A checked tensor: its values in row-major order."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    data: Sequence[Any]
    is_raw: bool = False


def read_tensors(body: bytes, registry: FeatureRegistry, limits: Limits, length: str | None = None) -> Rows:
    """An inference request; a list feature is [B, L], or two tensors `NAME__values` [T] and `NAME__offsets` [B + 1].

    `length`: how many bytes of the body are JSON, as the client's header has it; the others are raw tensors.

    >>> registry = FeatureRegistry.of(features={"user": "categorical"})
    >>> body = b'{"id": "a", "inputs": [{"name": "user", "datatype": "BYTES", "shape": [2], "data": ["x", null]}]}'
    >>> read_tensors(body, registry, Limits()).arguments
    ([{'user': 'x'}, {'user': None}],)
    """
    text, raw = split_body(body, length)
    document = read_json_object(text)
    request_id = document.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise InputError("id: expected a text", found=kind_of(request_id), remedy="send it in quotes")
    is_binary = _is_binary_wanted(document)
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        found = "none" if inputs in (None, []) else kind_of(inputs)
        raise InputError("inputs: expected a list of tensors", found=found, remedy="see /docs")
    content_type = _parameters("request", document).get("content_type")
    tensors = [_tensor(one, raw, content_type) for one in inputs]
    raw.check_end()
    columns = _columns(tensors, registry, limits)
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{length} in {name!r}" for name, length in list(lengths.items())[:4])
        raise InputError("inputs: expected the same number of rows", found=found, remedy="send a value a row")
    num_rows = next(iter(lengths.values()))
    check_num_rows(num_rows, limits)
    return Rows((rows_of_columns(columns, registry),), num_rows, request_id, is_binary)


def reply_tensors(answer: Answer) -> Reply:
    """An inference response with the one output `probability`, FP64 [B]: as JSON, or raw behind it."""
    output: dict[str, Any] = {"name": OUTPUT, "datatype": "FP64", "shape": [len(answer.probabilities)]}
    raw = answer.probabilities.astype("<f8").tobytes()
    output |= (
        {"parameters": {"binary_data_size": len(raw)}} if answer.is_binary else {"data": answer.probabilities.tolist()}
    )
    head = to_json({"model_name": answer.model, "model_version": answer.version, "id": answer.id, "outputs": [output]})
    return Reply(head + raw, "application/octet-stream", {HEADER: str(len(head))}) if answer.is_binary else Reply(head)


def tensors_of(length: str | None) -> Form:
    """The form of a request whose `HEADER` has this value, None where it has none."""
    return Form(partial(read_tensors, length=length), reply_tensors)


def metadata_of(registry: FeatureRegistry) -> dict[str, list[dict[str, Any]]]:
    """`inputs` and `outputs` of the model's metadata; -1 stands for a dimension of any size."""
    inputs = [
        {
            "name": feature.name,
            "datatype": "FP64" if isinstance(feature, Numeric) else "BYTES",
            "shape": [-1, -1] if feature.is_list else [-1],
        }
        for feature in registry.features
    ]
    return {"inputs": inputs, "outputs": [{"name": OUTPUT, "datatype": "FP64", "shape": [-1]}]}


def _is_binary_wanted(document: dict[str, Any]) -> bool:
    """Whether the output is asked for as raw bytes; raises `InputError` for other outputs than there are."""
    wanted = _flag("request", _parameters("request", document), "binary_data_output", default=False)
    outputs = document.get("outputs")
    outputs = [] if outputs is None else outputs if isinstance(outputs, list) else [outputs]
    names = [one.get("name") if isinstance(one, dict) else one for one in outputs]
    if any(name != OUTPUT for name in names):
        raise InputError(f"outputs: expected {OUTPUT!r} alone", found=str(names)[:80], remedy="leave `outputs` out")
    for output in (one for one in outputs if isinstance(one, dict)):
        parameters = _parameters("outputs", output)
        _check_meaning("outputs", "FP64", parameters, None)
        wanted = _flag("outputs", parameters, "binary_data", default=wanted)
    return wanted


def _parameters(place: str, holder: dict[str, Any]) -> dict[str, Any]:
    parameters = holder.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise InputError(f"{place}: expected parameters as an object", found=kind_of(parameters))
    return parameters or {}


def _flag(place: str, parameters: dict[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InputError(f"{place}: expected {name} true or false", found=kind_of(value))
    return value


def _check_meaning(place: str, datatype: str, parameters: dict[str, Any], default: Any) -> None:
    """Raise `InputError` where parameters say that data mean something else than they do here.

    Other parameters, such as a priority, change no value, and are not read.
    """
    asked = next((name for name in _OTHER_MEANINGS if name in parameters), None)
    if asked is not None:
        raise InputError(f"{place}: expected values as they are", found=asked, remedy="leave that parameter out")
    content_type = parameters.get("content_type", default)
    if content_type is None or (content_type in CONTENT_TYPES and (content_type != "str" or datatype == "BYTES")):
        return
    expected = f"{place}: expected content_type np or pd" + (" or str" if datatype == "BYTES" else "")
    found = repr(content_type[:40]) if isinstance(content_type, str) else kind_of(content_type)
    raise InputError(
        expected, found=found, remedy="send texts, numbers and booleans as they are, without a content_type"
    )


def _tensor(tensor: Any, raw: RawTensors, content_type: Any) -> _Tensor:
    """A tensor whose shape, data type and data agree; raises `InputError` where they do not."""
    if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
        found = kind_of(tensor) if not isinstance(tensor, dict) else "none"
        raise InputError("inputs: expected tensors with a name", found=found, remedy="see /docs")
    name, shape, datatype = tensor["name"], tensor.get("shape"), tensor.get("datatype")
    place = f"input {name[:80]!r}"
    if not _is_shape(shape):
        expected = f"{place}: expected shape [rows] or [rows, values]"
        raise InputError(expected, found=str(shape)[:80], remedy="send the shape as whole numbers")
    if not isinstance(datatype, str) or datatype not in _TYPES:
        raise InputError(f"{place}: expected a datatype of {', '.join(_TYPES)}", found=str(datatype)[:80])
    parameters = _parameters(place, tensor)
    _check_meaning(place, datatype, parameters, content_type)
    is_raw = "binary_data_size" in parameters
    if is_raw == ("data" in tensor):
        found, remedy = "both" if is_raw else "none", "send `data` as JSON, or binary_data_size and raw bytes"
        raise InputError(f"{place}: expected data", found=found, remedy=remedy)
    if is_raw:
        data = values_of(place, datatype, math.prod(shape), raw.take(place, parameters["binary_data_size"]))
        return _Tensor(name, tuple(shape), datatype, data, is_raw)
    data = _flat(tensor["data"], len(shape))
    if len(data) != math.prod(shape):
        found = f"{len(data)} for shape {shape}"[:80]
        raise InputError(f"{place}: expected {math.prod(shape)} values", found=found, remedy="mend shape or data")
    _check_data(place, datatype, data)
    return _Tensor(name, tuple(shape), datatype, data)


def _is_shape(shape: Any) -> TypeGuard[list[int]]:
    is_list = isinstance(shape, list) and len(shape) in (1, 2)
    return is_list and all(type(size) is int and 0 <= size < MAX_DIMENSION for size in shape)


def _flat(data: Any, depth: int) -> list[Any]:
    """Data in row-major order; it may be flat already, or nested as its shape says."""
    if not isinstance(data, list):
        return [data]
    if depth == 2 and data and all(type(part) is list for part in data):
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


def _columns(tensors: Sequence[_Tensor], registry: FeatureRegistry, limits: Limits) -> dict[str, list[Any]]:
    """Feature to its values, one a row."""
    by_name: dict[str, _Tensor] = {}
    for tensor in tensors:
        if tensor.name in by_name:
            raise InputError("inputs: expected each tensor once", found=f"{tensor.name[:80]!r} twice")
        by_name[tensor.name] = tensor
    columns: dict[str, list[Any]] = {}
    for feature in registry.features:
        if feature.name in by_name:
            columns[feature.name] = _column(_exact(by_name.pop(feature.name), feature), feature, limits)
        elif feature.is_list and {feature.name + VALUES, feature.name + OFFSETS} <= set(by_name):
            values, offsets = by_name.pop(feature.name + VALUES), by_name.pop(feature.name + OFFSETS)
            columns[feature.name] = _ragged(_exact(values, feature), offsets)
    if by_name:
        name = next(iter(by_name))
        names = [feature.name for feature in registry.features]
        close = difflib.get_close_matches(name[:80], names, n=1)
        remedy = f"did you mean {close[0]!r}?" if close else f"inputs are {', '.join(names[:12])}"
        raise InputError("inputs: expected tensors named after features", found=repr(name[:80]), remedy=remedy)
    return columns


def _exact(tensor: _Tensor, feature: AnyFeature) -> _Tensor:
    """The tensor; raises `InputError` where rounding may have made one category of two."""
    if tensor.is_raw and not isinstance(feature, Numeric):
        check_integers(f"input {tensor.name!r}", tensor.datatype, tensor.data)
    return tensor


def _column(tensor: _Tensor, feature: AnyFeature, limits: Limits) -> list[Any]:
    data, shape = list(tensor.data), tensor.shape
    check_num_rows(shape[0], limits)  # before anything is made of it: a shape [2^31, 0] needs no data
    has_separator = isinstance(feature, CategoricalList) and feature.separator is not None
    if len(shape) == 1 or (len(shape) == 2 and shape[1] == 1 and (not feature.is_list or has_separator)):
        return data  # of a list feature without a separator, texts: column_of says what is wrong with them
    if len(shape) == 2 and feature.is_list:
        return (
            [data[start : start + shape[1]] for start in range(0, len(data), shape[1])] if shape[1] else [[]] * shape[0]
        )
    expected = "[rows, values]" if feature.is_list else "[rows]"
    raise InputError(
        f"input {tensor.name!r}: expected shape {expected}", found=str(list(shape))[:80], remedy="reshape it"
    )


def _ragged(values: _Tensor, offsets: _Tensor) -> list[list[Any]]:
    starts = list(offsets.data)
    is_sound = len(offsets.shape) == 1 and offsets.datatype in _RANGES and None not in starts and len(starts) >= 1
    if not is_sound or starts[0] != 0 or starts[-1] != len(values.data) or starts != sorted(starts):
        expected = f"input {offsets.name!r}: expected where each row's values begin, from 0 to {len(values.data)}"
        raise InputError(expected, found=str(starts[:8])[:80], remedy="send one more offset than rows, ascending")
    data = list(values.data)
    return [data[start:stop] for start, stop in pairwise(starts)]
