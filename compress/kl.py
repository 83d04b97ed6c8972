"""KL(p || q) of next-token distributions given as logits, nats: whole vocabularies, a few positions at a time.

In PyTorch each of a dozen steps reads and writes logits that do not fit a cache. On a GPU one Triton kernel reads both
sides once, in float32 whatever they are stored in, and a second writes the gradient.
"""

from typing import Any, Final, cast

import torch
from torch import Tensor

from tailcut.compress import fused

_BLOCK: Final = 2048  # of the vocabulary at a time
_WARPS: Final = 4


def prepared(logits: Tensor) -> Tensor:
    """Logits [..., vocabulary] -> what the functions here take as the reference p, to be kept and used many times.

    Log-probabilities, float32; on a GPU the logits as they are, since the kernel normalises while it reads.
    """
    return logits if _kernels(logits) is not None else logits.float().log_softmax(-1)


def kl(reference: Tensor, logits: Tensor) -> Tensor:
    """`prepared` logits and another's logits, [..., vocabulary] -> KL [...], float32."""
    if _kernels(logits) is not None:
        return _fused(reference, logits)[0]
    return _kl(reference, logits.float().log_softmax(-1))


def kl_and_nats(reference: Tensor, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The same, and -log q of the tokens `targets` int64 [...]; both [...], float32."""
    places = targets[..., None]
    if _kernels(logits) is not None:
        found, _, log_sums = _fused(reference, logits)
        return found, log_sums - logits.gather(-1, places)[..., 0].float()
    log_q = logits.float().log_softmax(-1)
    nats = -log_q.gather(-1, places)[..., 0]  # before `_kl` writes over it
    return _kl(reference, log_q), nats


def kl_sum(theirs: Tensor, ours: Tensor) -> Tensor:
    """Sum over all positions of KL(theirs || ours), logits [..., vocabulary] twice, with a gradient for `ours`; float32."""
    if _kernels(ours) is not None:
        return cast(Tensor, _Sum.apply(ours, theirs))  # type: ignore[no-untyped-call]
    log_p, log_q = theirs.float().log_softmax(-1), ours.float().log_softmax(-1)
    return torch.nn.functional.kl_div(log_q, log_p, reduction="sum", log_target=True)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """In the memory of `log_q`."""
    return log_q.neg_().add_(log_p).mul_(log_p.exp()).sum(-1)


class _Sum(torch.autograd.Function):
    """`kl_sum` by the kernels. Nothing is kept for the gradient but the logits and two numbers a position."""

    @staticmethod
    def forward(ctx: Any, ours: Tensor, theirs: Tensor) -> Tensor:  # noqa: ANN401  (autograd's own)
        found, sums, log_sums = _fused(theirs, ours)
        ctx.save_for_backward(theirs.contiguous(), ours.contiguous(), sums, log_sums)
        return found.sum()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # noqa: ANN401
        theirs, ours, sums, log_sums = ctx.saved_tensors
        gradient, width = torch.empty_like(ours), ours.shape[-1]
        if ours.numel():
            programs = (ours.numel() // width, -(-width // _BLOCK))
            _kernels(ours).rows_gradient[programs](
                theirs, ours, sums, log_sums, grads[0].float(), gradient, width, BLOCK=_BLOCK, num_warps=_WARPS
            )
        return gradient, None


def _fused(theirs: Tensor, ours: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """KL, and the logarithms of the sums of exponentials of both, each [...] float32."""
    theirs, ours = theirs.contiguous(), ours.contiguous()
    found, sums, log_sums = (torch.empty(ours.shape[:-1], dtype=torch.float32, device=ours.device) for _ in range(3))
    if found.numel():
        width = ours.shape[-1]
        _kernels(ours).rows_kl[(found.numel(),)](
            theirs, ours, found, sums, log_sums, width, BLOCK=_BLOCK, num_warps=_WARPS
        )
    return found, sums, log_sums


def _kernels(logits: Tensor) -> Any:  # noqa: ANN401  (Triton's kernels have no type)
    return fused.kernels(_load, logits.device.type)


def _load() -> Any:  # noqa: ANN401
    from tailcut.compress import _kl_kernel

    return _kl_kernel
