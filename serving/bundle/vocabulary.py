"""vocabulary.safetensors: tokens that have rows in a collisionless table, one increasing uint64 tensor per feature."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from features.addressing import Vocabulary
from features.hashing import MISSING_TOKEN, Tokens
from serving.bundle.tensors import fault, map_tensors, write_tensors


def write_vocabulary(path: Path, vocabulary: Vocabulary) -> None:
    """Write a vocabulary; the same bytes for the same tokens in the same order of features."""
    write_tensors(path, {name: tokens.astype("<u8", copy=False) for name, tokens in vocabulary.items()})


def read_vocabulary(path: Path, num_values: Mapping[str, int] | None = None) -> dict[str, Tokens]:
    """The tokens in a file, which stay on the disk; raises `InputError` if they are damaged or not `num_values`."""
    tensors = map_tensors(path)
    found = {name: len(tokens) for name, tokens in tensors.items()}
    if num_values is not None and found != dict(num_values):
        raise fault(path, f"tokens of {dict(num_values)}"[:160], str(found)[:160])
    for name, tokens in tensors.items():
        if tokens.dtype != np.dtype("<u8") or tokens.ndim != 1:
            raise fault(path, f"U64 tokens of {name!r}", f"{tokens.dtype} {list(tokens.shape)}")
        if (tokens[1:] <= tokens[:-1]).any() or (tokens == np.uint64(MISSING_TOKEN)).any():
            raise fault(path, f"increasing tokens of {name!r}, and not the missing one", "others")
    return tensors
