"""Sequences that come and go over one session, with one copy of the weights: what a server's loop steps.

`Batched`, where the cache is in place (fused.onnx): continuous batching. Running sequences are the rows of one batch, each
at its own length, and a step reads the weights once for all of them. A prompt runs alone, in a cache of its own, and is
then copied behind the last row; whoever leaves is replaced by the last row. Rows are the first of buffers that are made
once, so nobody else is moved.

`Interleaved`, where the cache grows by concatenation (model.onnx): every sequence keeps a cache of its own, and a step
runs them one after the other, reading the weights once each.
"""

from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime

from tailcut.errors import InputError
from tailcut.kernels.concatenating import Concatenating
from tailcut.kernels.decoder import Decoder
from tailcut.kernels.in_place import InPlace

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class Sequences(Protocol):
    """Running sequences, numbered from 0. Choosing tokens, arrivals and ends are the caller's."""

    @property
    def sharing(self) -> str:
        """How sequences share the machine, for reports."""
        ...

    def __len__(self) -> int: ...

    def join(self, prompt: Ints) -> Floats:
        """Run a prompt [n]; its sequence gets the next number. Logits [vocab] of the first new token."""
        ...

    def step(self, tokens: Ints) -> Floats:
        """Add one token to every sequence: tokens [sequences] -> logits [sequences, vocab]."""
        ...

    def leave(self, number: int) -> None:
        """End a sequence; the last one takes its number."""
        ...

    def warm(self, prompt: Ints) -> None:
        """Run a prompt [n] and forget it: processor caches are then as in the middle of work."""
        ...


def sequences(decoder: Decoder, slots: int, positions: int) -> Sequences:
    """No sequence yet, room for `slots` at a time of up to `positions` tokens each, over the decoder's session."""
    if min(slots, positions) < 1:
        raise InputError(f"sequences need at least one slot and one position, got {slots} and {positions}")
    if decoder.cache == "in place":
        return Batched(decoder.session, slots, positions)
    return Interleaved(decoder.session, slots, positions)


class Batched:
    """Continuous batching over a cache in place."""

    sharing: Final = "continuous batching: one step moves all running sequences on, a prompt runs alone between steps"

    def __init__(self, session: onnxruntime.InferenceSession, slots: int, positions: int) -> None:
        self._prompts, self._batch = InPlace(session), InPlace(session)
        self._room = {name: self._batch.room(name, slots, positions) for name in self._batch.cached_tensors}
        self._slots, self._positions = slots, positions

    def __len__(self) -> int:
        return self._batch.lengths.size

    def join(self, prompt: Ints) -> Floats:
        _check_join(prompt, len(self), self._slots, self._positions)
        logits = self._run(prompt)
        row, lengths = len(self), self._batch.lengths
        for name, rows in self._room.items():
            rows[row, :, : prompt.size] = self._prompts.cache[name][0, :, : prompt.size]
        self._hold(np.append(lengths, prompt.size))
        return logits

    def step(self, tokens: Ints) -> Floats:
        _check_step(tokens, self._batch.lengths, self._positions)
        return self._batch.step(tokens[:, None])

    def leave(self, number: int) -> None:
        _check_leave(number, len(self))
        lengths, last = self._batch.lengths.copy(), len(self) - 1
        for rows in self._room.values() if number != last else ():
            rows[number, :, : lengths[last]] = rows[last, :, : lengths[last]]
        lengths[number] = lengths[last]
        self._hold(lengths[:last])

    def warm(self, prompt: Ints) -> None:
        self._run(prompt)

    def _run(self, prompt: Ints) -> Floats:
        ids = np.ascontiguousarray(prompt[None])
        return np.asarray(self._prompts.prefill(ids, np.ones_like(ids), last_only=True)[0, -1])

    def _hold(self, lengths: Ints) -> None:
        """Make the batch the first `lengths.size` rows."""
        self._batch.hold({name: rows[: lengths.size] for name, rows in self._room.items()}, lengths)


class Interleaved:
    """A cache a sequence, stepped in turn."""

    sharing: Final = "interleaved: each running sequence takes a step of its own in turn, a prompt runs between steps"

    def __init__(self, session: onnxruntime.InferenceSession, slots: int, positions: int) -> None:
        self._session, self._slots, self._positions = session, slots, positions
        self._running: list[Concatenating] = []
        self._lengths: list[int] = []

    def __len__(self) -> int:
        return len(self._running)

    def join(self, prompt: Ints) -> Floats:
        _check_join(prompt, len(self), self._slots, self._positions)
        model = Concatenating(self._session)
        logits = _prefill(model, prompt)
        self._running.append(model)
        self._lengths.append(prompt.size)
        return logits

    def step(self, tokens: Ints) -> Floats:
        _check_step(tokens, np.asarray(self._lengths, np.int64), self._positions)
        self._lengths = [length + 1 for length in self._lengths]
        pairs = zip(self._running, tokens, strict=True)
        return np.stack([model.step(token.reshape(1, 1))[0] for model, token in pairs])

    def leave(self, number: int) -> None:
        _check_leave(number, len(self))
        self._running[number], self._lengths[number] = self._running[-1], self._lengths[-1]
        self._running.pop()
        self._lengths.pop()

    def warm(self, prompt: Ints) -> None:
        _prefill(Concatenating(self._session), prompt)


def _prefill(model: Concatenating, prompt: Ints) -> Floats:
    ids = np.ascontiguousarray(prompt[None])
    return np.asarray(model.prefill(ids, np.ones_like(ids), last_only=True)[0, -1])


def _check_join(prompt: Ints, running: int, slots: int, positions: int) -> None:
    if prompt.ndim != 1 or not 0 < prompt.size <= positions:
        raise InputError(f"a prompt is tokens [n] of 1 to {positions} positions, got {list(prompt.shape)}")
    if running == slots:
        raise InputError(f"all {slots} slots are taken; let a sequence leave first")


def _check_step(tokens: Ints, lengths: Ints, positions: int) -> None:
    if tokens.shape != lengths.shape or not lengths.size:
        raise InputError(f"step takes one token for each of {lengths.size} running sequences, got {list(tokens.shape)}")
    if int(lengths.max()) >= positions:
        raise InputError(f"a sequence fills its {positions} positions; let it leave")


def _check_leave(number: int, running: int) -> None:
    if not 0 <= number < running:
        raise InputError(f"no sequence has the number {number}; {running} are running")
