"""Types of numpy arrays, each named by its element type."""

from typing import Any

import numpy as np
import numpy.typing as npt

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
AnyFloats = npt.NDArray[np.floating[Any]]
Int64s = npt.NDArray[np.int64]
UInt8s = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]
