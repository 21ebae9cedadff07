"""Checkpoints: a safetensors file each, replaced as a whole, from which an interrupted run resumes bit for bit.

Weights, optimiser moments and the state of the random generator are tensors; numbers are JSON in the file's metadata.
Nothing is pickled.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from features.errors import InputError
from features.files import cannot_write, check_readable


def save_state(path: Path, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """Write tensors, no two of which share memory, and JSON-able numbers to `path`, whole or not at all.

    Tensors are written from where they are, so that a large table needs no second copy in memory. Raises `InputError`
    if `path` cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left_behind in path.parent.glob(".tmp*"):  # temporary files of safetensors in a killed process
            left_behind.unlink()
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary, _text(numbers))
        temporary.chmod(mode)  # safetensors makes files that only their owner can read
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        reason = error if isinstance(error, OSError) else OSError(str(error))
        raise cannot_write(path, reason) from None


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_state` wrote; raises `InputError` for a damaged file."""
    try:
        with safe_open(str(path), framework="pt") as file:  # pyright: ignore[reportUnknownVariableType]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            numbers = json.loads((file.metadata() or {})["state"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise damaged(path, error) from None
    return tensors, numbers


def damaged(path: Path, error: Exception) -> InputError:
    """The error for a file that holds no state, or the state of something else."""
    check_readable(path)
    found = " ".join(str(error).split())[:160]
    return InputError(f"{path}: expected a checkpoint", found=found, remedy="remove it to start the run again")


class KeptWeights:
    """The weights that a run keeps in separate files: the best ones and, until training ends, the initial ones."""

    def __init__(self, ranker: nn.Module, directory: Path) -> None:
        self.ranker = ranker
        self._best, self._initial = directory / "best.safetensors", directory / "start.safetensors"

    def save_best(self, epoch: int) -> None:
        """Keep the ranker's weights as those of the best epoch."""
        save_state(self._best, self.ranker.state_dict(), {"epoch": epoch})

    def load_best(self) -> None:
        """Load the best weights into the ranker."""
        self.ranker.load_state_dict(load_state(self._best)[0])

    def save_initial(self, score: float) -> None:
        """Keep the ranker's weights and their validation score."""
        save_state(self._initial, self.ranker.state_dict(), {"epoch": 0, "score": score})

    def restore_initial_if_better(self, best_score: float) -> float | None:
        """Make the initial weights the best ones if they have the higher score; returns their score then."""
        if not self._initial.exists():
            return None
        tensors, numbers = load_state(self._initial)
        is_better = numbers["score"] > best_score
        if is_better:
            save_state(self._best, tensors, {"epoch": 0})
        return numbers["score"] if is_better else None

    def remove_initial(self) -> None:
        """Forget the initial weights."""
        self._initial.unlink(missing_ok=True)


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
    """Restore what `optimizer_tensors` gave; the settings of the groups do not change."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _text(numbers: dict[str, Any]) -> dict[str, str]:
    return {"state": json.dumps(numbers)}
