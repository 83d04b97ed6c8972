"""What a pruner was given: there and finite, or a sentence that says what is wrong."""

from typing import Final

import torch
from torch import Tensor

from tailcut.compress.statistics import Statistics
from tailcut.errors import InputError

_WEIGHTS: Final = "weights are not finite; repair the checkpoint before it is pruned"
_INPUTS: Final = "calibration activations are not finite; the model overflows on this text"


def finite_weight(weight: Tensor) -> Tensor:
    """The weight itself; InputError where it holds NaN or infinity, which no ranking puts anywhere."""
    return _finite(weight, _WEIGHTS)


def energy_of(stats: Statistics) -> Tensor:
    """Squared input norms [in]; ValueError where they were not collected, InputError where they are not finite."""
    if stats.energy is None:
        raise ValueError("this pruner needs the energy of its inputs (NEEDS = 'norms')")
    return _finite(stats.energy, _INPUTS)


def moments_of(stats: Statistics) -> tuple[Tensor, Tensor, Tensor]:
    """Energy, total and variance of the inputs, each [in]; errors as in `energy_of`."""
    if stats.total is None or stats.variance is None:
        raise ValueError("this pruner needs total and variance of its inputs (NEEDS = 'moments')")
    return energy_of(stats), _finite(stats.total, _INPUTS), _finite(stats.variance, _INPUTS)


def hessian_of(stats: Statistics) -> Tensor:
    """The Hessian [in, in] of the inputs; errors as in `energy_of`."""
    if stats.hessian is None:
        raise ValueError("this pruner needs the Hessian of its inputs (NEEDS = 'hessian')")
    return _finite(stats.hessian, _INPUTS)


def damped(hessian: Tensor, damping: float) -> Tensor:
    """A copy of H [in, in] with damping * m added to its diagonal, m the mean diagonal of the inputs that were seen.

    An input that was never active (H_jj = 0) gets m itself, so that H can be inverted whatever its scale is.
    """
    diagonal = hessian.diagonal()
    seen = diagonal > 0
    mean = diagonal.sum() / seen.sum().clamp(min=1)
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))
    return hessian.clone().diagonal_scatter(torch.where(seen, diagonal, mean) + damping * mean)


def _finite(tensor: Tensor, sentence: str) -> Tensor:
    if not bool(torch.isfinite(tensor).all()):
        raise InputError(sentence)
    return tensor
