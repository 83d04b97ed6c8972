"""Round to nearest: every weight by itself, no calibration. At 8 bits this is what `tailcut export --weights int8` does."""

from typing import Final

from torch import Tensor

from tailcut.allocation import Bits, Dense, Pattern
from tailcut.compress.quantisers._grid import Quantised, scales_of, spread, to_integers
from tailcut.compress.statistics import Needs, Statistics

NEEDS: Final[Needs] = "nothing"
PRUNES: Final = False


def quantise(weight: Tensor, pattern: Pattern, bits: Bits, stats: Statistics, clip: bool = True) -> Quantised:
    """weight [out, in] float32 -> the nearest integers."""
    if pattern != Dense():
        raise ValueError("rtn prunes nothing; prune first")
    scales = scales_of(weight, bits, clip)
    return Quantised(to_integers(weight, spread(scales, int(weight.shape[1])), bits), scales)
