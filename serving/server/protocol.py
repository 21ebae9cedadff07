"""Open Inference Protocol v2 over REST: tensors to columns, probabilities to a tensor, and the model's metadata.

B rows, L values of a list, T values of all lists. A tensor is named after its feature. What JSON has and the protocol
has not: `null` in `data` is a missing value, and so is a tensor that is not sent.
"""

import difflib
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeGuard

from pydantic_core import to_json

from features.errors import InputError
from features.registry import FeatureRegistry
from features.spec import AnyFeature, CategoricalList, Numeric
from serving.server.bodies import OUTPUT, Answer, Form, Rows, check_num_rows, kind_of, read_json_object, rows_of_columns
from serving.server.limits import Limits

# Lists of unequal lengths as two tensors, all values and where each row's begin: a convention of Merlin's servers.
VALUES, OFFSETS = "__values", "__offsets"
MAX_DIMENSION = 2**31


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


def read_tensors(body: bytes, registry: FeatureRegistry, limits: Limits) -> Rows:
    """An inference request; a list feature is [B, L], or two tensors `NAME__values` [T] and `NAME__offsets` [B + 1].

    >>> registry = FeatureRegistry.of(features={"user": "categorical"})
    >>> body = b'{"id": "a", "inputs": [{"name": "user", "datatype": "BYTES", "shape": [2], "data": ["x", null]}]}'
    >>> read_tensors(body, registry, Limits()).arguments
    ([{'user': 'x'}, {'user': None}],)
    """
    document = read_json_object(body)
    request_id = document.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise InputError("id: expected a text", found=kind_of(request_id), remedy="send it in quotes")
    _check_outputs(document.get("outputs"))
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        found = "none" if inputs in (None, []) else kind_of(inputs)
        raise InputError("inputs: expected a list of tensors", found=found, remedy="see /docs")
    columns = _columns([_tensor(one) for one in inputs], registry, limits)
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{length} in {name!r}" for name, length in list(lengths.items())[:4])
        raise InputError("inputs: expected the same number of rows", found=found, remedy="send a value a row")
    num_rows = next(iter(lengths.values()))
    check_num_rows(num_rows, limits)
    return Rows((rows_of_columns(columns, registry),), num_rows, request_id)


def reply_tensors(answer: Answer) -> bytes:
    """An inference response with the one output `probability`, FP64 [B]."""
    data = answer.probabilities.tolist()
    output = {"name": OUTPUT, "datatype": "FP64", "shape": [len(data)], "data": data}
    return to_json({"model_name": answer.model, "model_version": answer.version, "id": answer.id, "outputs": [output]})


TENSORS = Form(read_tensors, reply_tensors)


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


def _check_outputs(outputs: Any) -> None:
    if outputs is None:
        return
    names = (
        [one.get("name") if isinstance(one, dict) else one for one in outputs]
        if isinstance(outputs, list)
        else [outputs]
    )
    if any(name != OUTPUT for name in names):
        raise InputError(f"outputs: expected {OUTPUT!r} alone", found=str(names)[:80], remedy="leave `outputs` out")


def _tensor(tensor: Any) -> _Tensor:
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
    if "data" not in tensor:
        remedy = "send `data` as JSON; the binary extension is not spoken here"
        raise InputError(f"{place}: expected data", found="none", remedy=remedy)
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
            columns[feature.name] = _column(by_name.pop(feature.name), feature, limits)
        elif feature.is_list and {feature.name + VALUES, feature.name + OFFSETS} <= set(by_name):
            values, offsets = by_name.pop(feature.name + VALUES), by_name.pop(feature.name + OFFSETS)
            columns[feature.name] = _ragged(values, offsets)
    if by_name:
        name = next(iter(by_name))
        names = [feature.name for feature in registry.features]
        close = difflib.get_close_matches(name[:80], names, n=1)
        remedy = f"did you mean {close[0]!r}?" if close else f"inputs are {', '.join(names[:12])}"
        raise InputError("inputs: expected tensors named after features", found=repr(name[:80]), remedy=remedy)
    return columns


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
