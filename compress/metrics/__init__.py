"""How heavy the tail of a weight matrix's spectrum is: one file a metric.

A metric fits a power law p(l) ~ l^-alpha to the upper end of a matrix's eigenvalues l (squared singular
values). Lower alpha = heavier tail = better trained = pruned less (AlphaPruning, section 3). The files differ
only in where they let the tail begin. Module constants a metric file must have:

    SIGN     +1 if a larger value means "prune more", -1 if it means "prune less"; never guessed by an allocator
    LARGEST  values beyond this are clamped before allocation: a spectrum without a tail must not decide the
             scale of all others (infinite: never clamped)
"""

from dataclasses import dataclass
from math import isfinite
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Spectrum = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TailFit:
    """A fitted tail: its exponent, where it begins (an eigenvalue and its index, ascending), its KS distance."""

    alpha: float
    xmin: float
    ks: float
    index: int

    @property
    def failed(self) -> bool:
        """No tail was found: alpha stayed 0, or tied eigenvalues made it infinite."""
        return not (isfinite(self.alpha) and self.alpha > 1.0)


class Metric(Protocol):
    """What a file of this folder offers."""

    @property
    def SIGN(self) -> Literal[1, -1]: ...  # noqa: N802 - a module constant

    @property
    def LARGEST(self) -> float: ...  # noqa: N802

    def fit(self, eigenvalues: Spectrum) -> TailFit:
        """Positive eigenvalues, float64, ascending, at least 3 -> the fitted tail; `failed` if there is none."""
