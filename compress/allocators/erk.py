"""Erdős-Rényi-Kernel: for linear layers the same plan as `er`.

ERK (RigL, ICML 2020) adds a convolution's kernel height and width to the sum and to the product of its dimensions:
(in + out + kh + kw) / (in out kh kw). A matrix has no kernel dimensions to add, which leaves (in + out) / (in out).
ER-Plus, which also leaves the classifier dense, is again the same here: the output head is not cut.
"""

from typing import Final

from tailcut.allocation import Allocation, Budget, LayerScores
from tailcut.compress.allocators import Settings
from tailcut.compress.allocators.er import allocate_as

METRICS: Final = ()
SETTINGS: Final = ()


def allocate(scores: LayerScores, budget: Budget, settings: Settings) -> Allocation:
    """Erdős-Rényi with kernel sizes, which linear layers do not have: the plan is that of er. Needs only shapes.
    RigL, ICML 2020. No settings. Here so that tables which name ERK can be read beside ours.
    """
    return allocate_as("erk", scores, budget)
