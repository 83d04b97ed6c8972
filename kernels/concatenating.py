"""model.onnx: every run takes the whole cache and returns it one token longer.

The cache stays inside ONNX Runtime between runs (OrtValues), so a step moves only tokens in and logits out.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Mark = tuple[dict[str, Any], Ints, Ints]
_PAST: Final = "past_key_values."


class Concatenating:
    """A session of model.onnx with its cache, attention mask [batch, n] and next position of every row."""

    dtype: Final = np.dtype(np.float32)  # of the cache

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._past = {value.name: value.shape for value in session.get_inputs() if value.name.startswith(_PAST)}
        self._outputs = [value.name for value in session.get_outputs()]
        self._cache: dict[str, Any] = {}
        self._mask: Ints = np.zeros((0, 0), np.int64)
        self._next: Ints = np.zeros(0, np.int64)

    def prefill(self, ids: Ints, mask: Ints, last_only: bool) -> Floats:
        """ids, mask [batch, n] -> logits [batch, n or 1, vocab]."""
        batch, count = ids.shape
        self._cache = {
            name: _value(np.zeros((batch, shape[1], 0, shape[3]), np.float32)) for name, shape in self._past.items()
        }
        self._mask = mask
        self._next = mask.sum(axis=1)
        logits = self._run(ids, np.maximum(np.cumsum(mask, axis=1) - 1, 0))
        if not last_only:
            return logits
        last = count - 1 - mask[:, ::-1].argmax(axis=1)
        return np.ascontiguousarray(logits[np.arange(batch), last][:, None])

    def step(self, ids: Ints) -> Floats:
        """ids [batch, 1] -> logits [batch, vocab]."""
        self._mask = np.concatenate([self._mask, np.ones_like(ids)], axis=1)
        positions = self._next[:, None]
        self._next = self._next + 1
        return np.asarray(self._run(ids, positions)[:, -1])

    def mark(self) -> Mark:
        return self._cache, self._mask, self._next

    def rewind(self, mark: Mark) -> None:
        self._cache, self._mask, self._next = mark  # steps replace these and never change them

    def _run(self, ids: Ints, positions: Ints) -> Floats:
        feeds = {
            "input_ids": _value(ids),
            "attention_mask": _value(self._mask),
            "position_ids": _value(np.ascontiguousarray(positions)),
        }
        found = self._session.run_with_ort_values(self._outputs, feeds | self._cache)
        named = dict(zip(self._outputs, found, strict=True))
        self._cache = {name: named[name.replace(_PAST, "present.")] for name in self._past}
        return np.asarray(named["logits"].numpy(), np.float32)


def _value(array: npt.NDArray[Any]) -> Any:  # noqa: ANN401 onnxruntime has no types
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
