"""What is to be expected of the loss when weights become zero, weight by weight (LLM-Pruner, Ma et al. 2023, eq. 3 to 5).

L(w = 0) - L(w) = - g w + 1/2 h w^2 + ..., with the diagonal of the Fisher information, the mean of the squared gradients
of single sequences, in the place of the Hessian's diagonal h.
"""

from torch import Tensor

from tailcut.compress.structured import Member


def first(member: Member) -> Tensor:
    """g w, signed, [units, channels, elements]."""
    return _require(member.gradient) * member.weight


def second(member: Member) -> Tensor:
    """F w^2; the published code leaves out the half, which changes no order."""
    return _require(member.fisher) * member.weight.square()


def mixed(member: Member) -> Tensor:
    """g w - 1/2 F w^2, signed: minus the expected change of the loss."""
    return first(member) - 0.5 * second(member)


def _require(value: Tensor | None) -> Tensor:
    if value is None:
        raise ValueError("members hold no gradients; the importance must state that it needs them")
    return value
