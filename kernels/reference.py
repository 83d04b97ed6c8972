"""The plain reference that every sparse kernel is held to: float64, no tricks."""

import numpy as np
import numpy.typing as npt

from tailcut.bitmask import Packed, unpack


def sparse_matmul(x: npt.NDArray[np.floating], packed: Packed) -> npt.NDArray[np.float64]:
    """x [..., in] @ W^T for W [out, in] stored as a bitmask -> float64 [..., out]."""
    weight = unpack(packed).astype(np.float64)
    return np.asarray(x, np.float64) @ weight.T
