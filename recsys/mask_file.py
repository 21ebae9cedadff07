"""mask.safetensors: a mask beside the run that was trained under it; M table rows, S slots."""

from pathlib import Path

import torch

from recsys import checkpoint
from recsys.mask import Mask


def save_mask(path: Path, mask: Mask) -> None:
    """Write row widths [M] and slot widths [S], whole or not at all."""
    small = {name: widths.to(torch.int16) for name, widths in mask._asdict().items()}
    checkpoint.save_state(path, small, {"version": 1})


def load_mask(path: Path) -> Mask:
    """Read what `save_mask` wrote; raises `InputError` for a damaged file."""
    tensors, _ = checkpoint.load_state(path)
    try:
        return Mask(tensors["row_widths"].long(), tensors["slot_widths"].long())
    except KeyError as error:
        raise checkpoint.damaged(path, error) from None
