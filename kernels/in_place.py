"""fused.onnx: the cache is one buffer a layer, bound as past and as present, and a run writes its rows into it.

A buffer is of the type that the graph says (float32, or float16: half the bytes to read for a token), has room for
`capacity` positions and is replaced by one twice as large when that is used up. Rows of different
length lie at the left end, as ONNX Runtime's attention wants them; callers hand them over padded on the left, so tokens
are moved on the way in and logits on the way out. What a step needs is bound once and then only written to.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime

from tailcut.errors import InputError
from tailcut.kernels.session import ORT_ERRORS, said

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Array = npt.NDArray[Any]
_PAST: Final = "past_key_values."
_PRESENT: Final = "present."
_LEAST_CAPACITY: Final = 128
_TYPES: Final[dict[str, np.dtype[Any]]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
}
_LINE: Final = 64  # bytes: vectors that begin there lie in one line of the processor's cache


class InPlace:
    """A session of fused.onnx with its cache; `lengths` [batch] are the positions each row has so far."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        past = [value for value in session.get_inputs() if value.name.startswith(_PAST)]
        self._past = {value.name: value.shape for value in past}
        self.dtype = _TYPES[past[0].type]  # of the cache
        self._vocab = next(int(value.shape[-1]) for value in session.get_outputs() if value.name == "logits")
        self._binding: Any = session.io_binding()
        self._bound: dict[str, Array] = {}  # the arrays that the binding points into
        self._cache: dict[str, Array] = {}  # [batch, kv_heads, capacity, head_dim]
        self._capacity = 0
        self._total: npt.NDArray[np.int32] = np.zeros((), np.int32)
        self._from: Ints = np.zeros(1, np.int64)
        self.lengths: Ints = np.zeros(0, np.int64)
        self._input("total_sequence_length", self._total)
        self._input("logits_from", self._from)

    def prefill(self, ids: Ints, mask: Ints, last_only: bool) -> Floats:
        """ids, mask [batch, n] -> logits [batch, n or 1, vocab], 0 where the mask is."""
        lengths = mask.sum(axis=1)
        order = np.argsort(1 - mask, axis=1, kind="stable")[:, : lengths.max()]  # real tokens first
        self._make_room(len(ids), int(lengths.max()), keep=0)
        first = int(lengths.min()) - 1 if last_only else 0
        logits = self._run(np.take_along_axis(ids, order, axis=1), lengths, first)
        if last_only:
            return np.ascontiguousarray(logits[np.arange(len(ids)), lengths - 1 - first][:, None])
        if not mask.all():
            return _put_back(logits, order, lengths, ids.shape[1])
        return logits.copy() if logits.shape[1] == 1 else logits  # one position: the buffer that steps write to

    def step(self, ids: Ints) -> Floats:
        """ids [batch, 1] -> logits [batch, vocab]."""
        lengths = self.lengths + 1
        self._make_room(len(ids), int(lengths.max()), keep=int(self.lengths.max()))
        return self._run(ids, lengths, 0)[:, 0].copy()  # the buffer is written again by the next step

    def pretend(self, batch: int, length: int, rng: np.random.Generator) -> None:
        """Hold `length` positions of noise in every row, as if a prompt had been run: for timing steps."""
        self._make_room(batch, length, keep=0)
        for rows in self._cache.values():
            rows[:, :, :length] = rng.standard_normal((batch, rows.shape[1], length, rows.shape[3]), np.float32)
        self.lengths = np.full(batch, length, np.int64)

    def room(self, name: str, rows: int, positions: int) -> Array:
        """An empty buffer [rows, kv_heads, positions, head_dim] for the cached tensor `name`."""
        shape = self._past[name]
        return _zeros((rows, shape[1], positions, shape[3]), self.dtype)

    def hold(self, cache: Mapping[str, Array], lengths: Ints) -> None:
        """Go on with these buffers, one a cached tensor, whose rows have `lengths` [rows] positions so far.

        They may be the first rows of larger ones: so sequences join and leave a batch without being moved.
        """
        for name, rows in cache.items():
            self._keep(name, rows)
            self._capacity = rows.shape[2]
        self.lengths = lengths

    @property
    def cache(self) -> Mapping[str, Array]:
        """The buffers by the name of the cached tensor; [row, :, :lengths[row]] is what a row has."""
        return self._cache

    @property
    def cached_tensors(self) -> tuple[str, ...]:
        """Names of the tensors that make up a cache."""
        return tuple(self._past)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the buffers."""
        return sum(rows.nbytes for rows in self._cache.values())

    def mark(self) -> Ints:
        return self.lengths

    def rewind(self, mark: Ints) -> None:
        """Rows beyond a length are never read, so going back is only counting back."""
        if mark.shape != self.lengths.shape or (mark > self.lengths).any():
            raise InputError("a decoder can only go back to a mark of the sequence it is in")
        self.lengths = mark

    def _run(self, ids: Ints, lengths: Ints, first: int) -> Floats:
        """Run tokens [batch, n] that bring the rows to `lengths`; logits [batch, n - first, vocab]."""
        batch, count = ids.shape
        self._write("input_ids", ids)
        self._write("seqlens_k", (lengths - 1).astype(np.int32))
        self._total[...] = lengths.max()
        self._from[...] = first
        logits = self._output((batch, count - first, self._vocab))
        with _clear(int(lengths.max())):
            self._session.run_with_iobinding(self._binding)
        self.lengths = lengths
        return logits

    def _write(self, name: str, values: Array) -> None:
        """Hand over an input: written into the bound array, or bound anew when the shape changed."""
        bound = self._bound.get(name)
        if bound is not None and bound.shape == values.shape:
            bound[...] = values
        else:
            self._input(name, values.copy())

    def _input(self, name: str, array: Array) -> None:
        self._bound[name] = array
        self._binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))

    def _output(self, shape: tuple[int, ...]) -> Floats:
        """The array that logits go to; a step's is used again by the next, a prompt's belongs to the caller."""
        bound = self._bound.get("logits")
        if bound is None or bound.shape != shape or shape[1] != 1:
            bound = np.empty(shape, np.float32)
            self._bound["logits"] = bound
            self._binding.bind_ortvalue_output("logits", onnxruntime.OrtValue.ortvalue_from_numpy(bound))
        return bound

    def _make_room(self, batch: int, positions: int, keep: int) -> None:
        """Room for `positions` in every row; the first `keep` positions survive."""
        rows = next(iter(self._cache.values())).shape[0] if self._cache else 0
        if rows == batch and positions <= self._capacity:
            return
        self._capacity = max(_LEAST_CAPACITY, 1 << positions.bit_length())
        for name in self._past:
            grown = self.room(name, batch, self._capacity)
            if keep:
                grown[:, :, :keep] = self._cache[name][:, :, :keep]
            self._keep(name, grown)

    def _keep(self, name: str, rows: Array) -> None:
        self._cache[name] = rows
        value = onnxruntime.OrtValue.ortvalue_from_numpy(rows)
        self._binding.bind_ortvalue_input(name, value)
        self._binding.bind_ortvalue_output(name.replace(_PAST, _PRESENT), value)


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """np.zeros that begins at a line."""
    size = int(np.prod(shape)) * dtype.itemsize
    room = np.zeros(size + _LINE, np.uint8)
    skip = -room.ctypes.data % _LINE
    return room[skip : skip + size].view(dtype).reshape(shape)


def _put_back(logits: Floats, order: Ints, lengths: Ints, width: int) -> Floats:
    """Logits of rows at the left end [batch, longest, vocab] -> where their tokens were given [batch, width, vocab]."""
    placed = np.zeros((logits.shape[0], width, logits.shape[2]), np.float32)
    for row, length in enumerate(lengths):
        placed[row, order[row, :length]] = logits[row, :length]
    return placed


@contextmanager
def _clear(positions: int) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, *ORT_ERRORS) as error:  # a run with bound tensors fails with the former
        raise InputError(
            f"ONNX Runtime cannot run {positions} positions of this model ({said(error)}); use a shorter prompt"
        ) from error
