"""Learning from a teacher's distributions: KL(teacher || student) over the whole vocabulary, a chunk of positions at a time.

The logits of 16,384 positions at a vocabulary of 262,144 would be 17 GB a copy. So the decoder runs once, the head a few
positions at a time: each chunk's loss goes back to the hidden states at once and its logits are freed, then the summed
gradient goes back through the decoder. That is the same gradient, in bounded memory. The head is the model's own forward
with a decoder that answers given hidden states, so that soft-capping and scaling are the family's.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from tailcut.compress.kl import kl_sum
from tailcut.windows import Tokens

_LOGITS: Final = {"cpu": 1 << 22, "cuda": 1 << 27}  # of one model held at once (512 MB float32 on a GPU)


@dataclass(frozen=True, slots=True)
class Ways:
    """What a training step calls: models that answer as their decoders do."""

    student: Callable[..., Any]
    teacher: Callable[..., Any]

    @classmethod
    def of(cls, student: Any, teacher: Any, *, compiled: bool) -> "Ways":  # noqa: ANN401  (untyped library objects)
        """The decoders themselves, or kernels that torch.compile fuses for the one shape of a training step."""
        ours, theirs = student.get_decoder(), teacher.get_decoder()
        if not compiled:
            return cls(ours, theirs)
        fused: Any = functools.partial(torch.compile, dynamic=False)
        return cls(fused(ours), fused(theirs))


@dataclass(frozen=True, slots=True)
class Pair:
    """Student and teacher, resident, and their decoder blocks where a feature loss is wanted."""

    student: Any
    teacher: Any
    blocks: Sequence[tuple[nn.Module, nn.Module]]  # (student's, teacher's)
    device: torch.device
    features: float
    ways: Ways

    def backward(self, tokens: Tokens, share: float) -> Tensor:
        """Loss of windows [n, length] times `share`, its gradients added to the student's parameters."""
        ids = torch.from_numpy(tokens).to(self.device)
        with _outputs(pair[0] for pair in self.blocks) as ours, self._precision():
            hidden = _decoded(self.ways.student, ids)
        with torch.no_grad(), _outputs(pair[1] for pair in self.blocks) as theirs:
            wanted = _decoded(self.ways.teacher, ids).flatten(0, 1)
        leaf = hidden.detach().flatten(0, 1).requires_grad_()
        total = torch.zeros((), device=self.device)
        for rows in self._chunks(leaf, wanted):
            loss = self._kl(leaf, wanted, rows) * (share / len(leaf))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        if leaf.grad is None:
            raise ValueError("no positions")
        roots, grads = [hidden], [leaf.grad.view_as(hidden)]
        if self.features and ours:
            extra = self.features * share * _feature_loss(ours, theirs)
            roots, grads = [hidden, extra], [*grads, torch.ones_like(extra)]
            total += extra.detach()
        torch.autograd.backward(roots, grads)
        return total

    def kl(self, tokens: Tokens) -> float:
        """Mean KL over all positions of windows [n, length], nats."""
        ids = torch.from_numpy(tokens).to(self.device)
        with torch.no_grad():
            with self._precision():
                hidden = _decoded(self.student.get_decoder(), ids).flatten(0, 1)
            wanted = _decoded(self.teacher.get_decoder(), ids).flatten(0, 1)
            sums = [float(self._kl(hidden, wanted, rows)) for rows in self._chunks(hidden, wanted)]
        return sum(sums) / len(hidden)

    def _kl(self, hidden: Tensor, wanted: Tensor, rows: slice) -> Tensor:
        """Sum of KL over some positions; hidden states [positions, width] of student and teacher."""
        with torch.no_grad():
            theirs = _headed(self.teacher, wanted[rows])
        with self._precision():  # one for each chunk: it keeps casts of the head, whose graph a backward frees
            return kl_sum(theirs, _headed(self.student, hidden[rows]))

    def _chunks(self, *hidden: Tensor) -> Iterator[slice]:
        vocabulary = int(self.student.get_input_embeddings().weight.shape[0])
        count, size = len(hidden[0]), max(1, _LOGITS[self.device.type] // vocabulary)
        yield from (slice(start, min(start + size, count)) for start in range(0, count, size))

    def _precision(self) -> AbstractContextManager[Any]:
        """bfloat16 products of float32 weights on a GPU; float32 on a CPU."""
        return precision(self.device)


def precision(device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 products of float32 weights on a GPU; float32 on a CPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """||found - wanted||^2 / ||wanted||^2 over everything, float32."""
    aim = wanted.float()
    return (found.float() - aim).square().sum() / aim.square().sum().clamp(min=1e-12)


def _feature_loss(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Mean over the blocks of the relative error of their outputs (SquareHead, Kurtic et al. 2023)."""
    return torch.stack([relative_error(a, b) for a, b in zip(ours, theirs, strict=True)]).mean()


def _decoded(decoder: Callable[..., Any], ids: Tensor) -> Tensor:
    """Hidden states [windows, length, width] that the head is applied to."""
    found: Tensor = decoder(input_ids=ids, use_cache=False).last_hidden_state
    return found


def _headed(model: Any, hidden: Tensor) -> Tensor:  # noqa: ANN401
    """Hidden states [positions, width] -> logits [positions, vocabulary]."""
    ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
    with _answering(model.get_decoder(), hidden[None]):
        logits: Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits


@contextmanager
def _answering(decoder: Any, hidden: Tensor) -> Iterator[None]:  # noqa: ANN401
    """A decoder that answers with these hidden states whatever it is asked, in the class with every field that is read."""
    decoder.forward = lambda *_, **__: BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden)
    try:
        yield
    finally:
        del decoder.forward


@contextmanager
def _outputs(blocks: Iterator[nn.Module]) -> Iterator[list[Tensor]]:
    """Outputs of these blocks, in the order in which they run."""
    found: list[Tensor] = []

    def note(_: nn.Module, __: object, out: Any) -> None:  # noqa: ANN401  (a tensor or a tuple)
        found.append(out[0] if isinstance(out, tuple) else out)

    handles = [block.register_forward_hook(note) for block in blocks]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
