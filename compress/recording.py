"""What a model hands to its decoder blocks, noted by recorders that stand in their place for one forward.

A recorder passes the hidden states on, so that the model reaches its last block and each block's own arguments
are seen (masks and position embeddings differ by layer in Gemma 2 and 3). Reading an attribute of a stand-in
(`attention_type`) reads the real block's. Nothing is raised to get out of the model, so nothing can be swallowed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tailcut.errors import InputError


@dataclass(frozen=True, slots=True)
class Call:
    """How the model calls one block, but for the hidden states."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    by_keyword: bool  # the hidden states are passed as `hidden_states=`

    def __call__(self, block: nn.Module, hidden: Tensor) -> Any:  # noqa: ANN401  (a tensor or a tuple)
        if self.by_keyword:
            return block(*self.args, **self.kwargs, hidden_states=hidden)
        return block(hidden, *self.args, **self.kwargs)


@dataclass(slots=True)
class Tape:
    """The notes of all recorders over all batches."""

    calls: dict[int, tuple[Call, ...]] = field(default_factory=dict)  # batch size -> call of each block
    tail: tuple[Any, ...] | None = None  # what a block returns after the hidden states; None: it returns no tuple
    probed: bool = False
    _hidden: Tensor | None = None
    _noted: list[Call] = field(default_factory=list)

    def begin(self) -> None:
        """A forward of the model starts."""
        self._hidden, self._noted = None, []

    def note(self, hidden: Tensor, call: Call) -> None:
        """One block was called."""
        if self._hidden is None:
            self._hidden = hidden
        self._noted.append(call)

    def end(self, blocks: int) -> Tensor:
        """The forward is over: what went into block 0 [sequences, tokens, hidden].

        Without padding a block's arguments depend on the batch's size alone; a family where they do not is refused.
        """
        if self._hidden is None or len(self._noted) != blocks:
            raise InputError(f"the model ran {len(self._noted)} of its {blocks} blocks; this family is not handled")
        calls = self.calls.setdefault(len(self._hidden), tuple(self._noted))
        pairs = zip(calls, self._noted, strict=True)
        if not all(_same((a.args, dict(a.kwargs)), (b.args, dict(b.kwargs))) for a, b in pairs):
            raise InputError("this family passes its blocks arguments that depend on the text; it is not handled")
        return self._hidden

    def returned(self, hidden: Tensor) -> Any:  # noqa: ANN401
        """Hidden states in the shape that the blocks of this family return."""
        return hidden if self.tail is None else (hidden, *self.tail)


class _StandIn(nn.Module):
    """A module in a block's place. The block is not registered as a child, so that it is not seen twice."""

    def __init__(self, real: nn.Module, tape: Tape) -> None:
        super().__init__()
        self.__dict__.update(real=real, tape=tape)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  (nn.Module's own signature)
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["real"], name)


class Recorder(_StandIn):
    """Notes its call and hands the hidden states on. The first one ever called also runs its real block once."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        tape: Tape = self.__dict__["tape"]
        if not tape.probed:
            out = self.__dict__["real"](*args, **kwargs)
            tape.tail, tape.probed = (out[1:] if isinstance(out, tuple) else None), True
        by_keyword = not args
        hidden: Tensor = kwargs.pop("hidden_states") if by_keyword else args[0]
        tape.note(hidden, Call(args[1:], kwargs, by_keyword))
        return tape.returned(hidden)


class Answer(_StandIn):
    """Answers with hidden states that were computed before, whatever it is asked."""

    def __init__(self, real: nn.Module, tape: Tape, hidden: Tensor) -> None:
        super().__init__(real, tape)
        self.__dict__.update(hidden=hidden)

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        tape: Tape = self.__dict__["tape"]
        return tape.returned(self.__dict__["hidden"])


@contextmanager
def in_place_of(blocks: nn.ModuleList, stand_in: Callable[[nn.Module], nn.Module]) -> Iterator[None]:
    """Every block replaced by `stand_in(block)` while the context lasts."""
    real = list(blocks)
    try:
        for index, block in enumerate(real):
            blocks[index] = stand_in(block)
        yield
    finally:
        for index, block in enumerate(real):
            blocks[index] = block


def _same(a: object, b: object) -> bool:
    """Equality that looks into tensors and containers; other objects by identity or ==."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.shape == b.shape and bool(torch.equal(a, b)))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, str | bytes) or not isinstance(a, Sequence) or not isinstance(b, Sequence):
        return a is b or a == b
    return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
