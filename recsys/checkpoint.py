"""Training state in one safetensors file, replaced as a whole: a cut-off run continues bit for bit.

Tensors hold weights, optimiser moments and the random generator; the numbers beside them stand as JSON in the file's
metadata. Nothing is pickled.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from features.errors import InputError
from features.files import write_bytes


def save_state(path: Path, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """Write tensors and JSON-able numbers to `path` atomically; raises `InputError` for a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Copied one by one: safetensors refuses tensors that share memory, and moments may be views.
    content = save({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, _metadata(numbers))
    write_bytes(path, content)


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_state` wrote; raises `InputError` for a damaged file."""
    try:
        with safe_open(str(path), framework="pt") as file:  # pyright: ignore[reportUnknownVariableType]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            numbers = json.loads((file.metadata() or {})["state"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        remedy = "remove it to start the run again"
        raise InputError(f"{path}: expected a checkpoint", found=str(error), remedy=remedy) from None
    return tensors, numbers


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with `prefix.` before their names.

    >>> list(prefixed("a", {"b": torch.zeros(1)}))
    ['a.b']
    """
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def unprefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors below `prefix.`, without it."""
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of a torch optimiser as flat tensors: `<parameter number>.<name>`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, values in state.items()
        for name, value in values.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore what `optimizer_tensors` gave; the groups' settings stay as they are."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _metadata(numbers: dict[str, Any]) -> dict[str, str]:
    return {"state": json.dumps(numbers)}
