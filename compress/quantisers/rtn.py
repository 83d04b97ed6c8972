"""Round to nearest: every weight by itself, no calibration. At 8 bits this is what `tailcut export --weights int8` does.

Scales are searched at 4 and 2 bits. At 3 the least squared error of the weights cuts off the large ones, which matter most:
SmolLM2-135M came to 3.8 times the perplexity that the largest weight's scale gives (benchmarks/results/alloc_clip.json).
"""

from typing import Final

from torch import Tensor

from tailcut.allocation import Bits, Dense, Pattern
from tailcut.compress.quantisers._grid import Quantised, scales_of, spread, to_integers
from tailcut.compress.statistics import Needs, Statistics

NEEDS: Final[Needs] = "nothing"
PRUNES: Final = False
SEARCHED: Final = (4, 2)  # bits


def quantise(weight: Tensor, pattern: Pattern, bits: Bits, stats: Statistics, clip: bool = True) -> Quantised:
    """weight [out, in] float32 -> the nearest integers."""
    if pattern != Dense():
        raise ValueError("rtn prunes nothing; prune first")
    scales = scales_of(weight, bits, clip and bits in SEARCHED)
    return Quantised(to_integers(weight, spread(scales, int(weight.shape[1])), bits), scales)
