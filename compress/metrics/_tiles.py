"""Square tiles of a matrix, so that every matrix is measured at one aspect ratio (FARMS, Hu et al. 2025).

A Gaussian matrix of 4096 x 11008 has alpha_mid 3.0 and a square one 2.1, from geometry alone. FARMS pools the
eigenvalues of square tiles instead: 10 x 10 to 15 x 15 overlapping ones of 2000 x 2000, which costs ten times the whole
matrix's eigenvalues. Ours are cheap: tiles of 128 x 128 that do not overlap, spread evenly, at most 16 along a side.
LLaMA-7B's largest matrix gives 256 of them. The pooled eigenvalues are thinned to 4096 evenly spaced order
statistics, which moves alpha by less than its own spread and keeps the search for the tail short.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from tailcut.bitmask import Array
from tailcut.compress.metrics import Spectrum
from tailcut.errors import InputError

SIDE: Final = 128
PER_SIDE: Final = 16
POOLED: Final = 4096


def tile_spectrum(weight: Array) -> Spectrum:
    """Matrix [out, in] -> significant eigenvalues of its tiles, pooled, ascending, at most 4096; InputError if none."""
    side = min(SIDE, *weight.shape)
    pooled = np.sort(
        np.concatenate([_eigenvalues(weight[row : row + side], side) for row in starts(weight.shape[0], side)])
    )
    if pooled.size == 0:
        raise InputError("all of its tiles are zero or of rank 0, so they have no eigenvalues")
    return thinned(pooled, POOLED)


def starts(size: int, side: int) -> npt.NDArray[np.int64]:
    """Where tiles begin along a side of `size`: as many as fit, at most 16, from one end to the other."""
    return np.linspace(0, size - side, min(PER_SIDE, size // side)).round().astype(np.int64)


def thinned(ascending: Spectrum, most: int) -> Spectrum:
    """At most `most` of the values, at evenly spaced ranks, the first and last among them."""
    if ascending.size <= most:
        return ascending
    return ascending[np.linspace(0, ascending.size - 1, most).round().astype(np.int64)]


def _eigenvalues(strip: Array, side: int) -> Spectrum:
    """Significant eigenvalues of the tiles of one strip [side, in], unsorted; float64 as for whole matrices."""
    tiles = np.stack([strip[:, start : start + side] for start in starts(strip.shape[1], side)]).astype(np.float64)
    values = np.linalg.eigvalsh(tiles @ tiles.transpose(0, 2, 1))
    floor = side * np.finfo(np.float64).eps * values.max(axis=1, keepdims=True)
    return np.asarray(values[values > np.maximum(floor, 0.0)], np.float64)
