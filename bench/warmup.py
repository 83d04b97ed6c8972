"""How long an engine warms up: after loading, and after the other side has had the caches.

Both rules are set before the first timed block and then fixed for the session, the same for both sides; they see the
times of one side at a time, never a ratio.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

MOST_VISITS: Final = 8  # after loading
MOST_STEPS: Final = 8  # after a switch
_GAIN: Final = 0.03  # a visit that is no faster than the best before by this share shows no more warming
_SLOW: Final = 1.05  # times its visit's settled time: a step that is still warming
_LAST: Final = 3  # visits whose first steps are looked at


def settled(medians: Sequence[float]) -> bool:
    """Whether the last visit got no faster than the best before it; medians of visits in order, at least `_LAST`."""
    return len(medians) >= _LAST and medians[-1] > (1 - _GAIN) * min(medians[:-1])


def warming_steps(visits: Sequence[Sequence[float]]) -> int:
    """Steps at the start of a visit that are slow more often than not; visits [visits, steps], in ms.

    Each visit is measured by the median of its second half. A step counts if the median over the last visits says so
    and all steps before it do: a spike in the middle of a visit is no warming.
    """
    recent = np.asarray(visits[-_LAST:], np.float64)
    tail = np.median(recent[:, recent.shape[1] // 2 :], axis=1, keepdims=True)
    slow = np.median(recent / tail, axis=0)[: recent.shape[1] // 2] > _SLOW
    return int(np.argmin(np.append(slow, False)))
