"""Prefill and cached decode of one package, batched, without torch.

The cache stays inside ONNX Runtime between steps (OrtValues), so a step moves only tokens in and logits out.
"""

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime

from tailcut.errors import InputError
from tailcut.kernels.session import load_session

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
_PAST: Final = "past_key_values."


class Decoder:
    """A model with its cache. `prefill` starts a new sequence, `step` adds one token to every row."""

    def __init__(
        self,
        package: Path | None,
        threads: int | None = None,
        *,
        spinning: bool = True,
        session: onnxruntime.InferenceSession | None = None,
    ) -> None:
        if session is None:
            if package is None:
                raise InputError("a decoder needs a package or an open session")
            session = load_session(package, threads=threads, spinning=spinning)
        self.session = session
        self._past = {value.name: value.shape for value in session.get_inputs() if value.name.startswith(_PAST)}
        self._outputs = [value.name for value in session.get_outputs()]
        self._cache: dict[str, Any] = {}
        self._mask: Ints = np.zeros((0, 0), np.int64)
        self._next: Ints = np.zeros(0, np.int64)

    def prefill(self, tokens: Ints, attention_mask: Ints | None = None) -> Floats:
        """Run a prompt from an empty cache: tokens [batch, n] -> logits [batch, n, vocab].

        attention_mask [batch, n] is 0 at (left) padding; positions count from each row's first 1.
        """
        ids = np.ascontiguousarray(tokens, np.int64)
        mask = np.ones_like(ids) if attention_mask is None else np.ascontiguousarray(attention_mask, np.int64)
        if ids.ndim != 2 or 0 in ids.shape or mask.shape != ids.shape:
            raise InputError(f"prefill takes tokens [batch, n] and a mask of that shape, got {ids.shape}, {mask.shape}")
        batch = ids.shape[0]
        self._cache = {
            name: _value(np.zeros((batch, shape[1], 0, shape[3]), np.float32)) for name, shape in self._past.items()
        }
        self._mask = mask
        self._next = mask.sum(axis=1)
        return self._run(ids, np.maximum(np.cumsum(mask, axis=1) - 1, 0))

    def step(self, tokens: Ints) -> Floats:
        """Add one token to each row: tokens [batch] -> logits [batch, vocab]."""
        ids = np.ascontiguousarray(tokens, np.int64).reshape(-1, 1)
        if ids.shape[0] != self._mask.shape[0] or not self._cache:
            raise InputError(f"step got {ids.shape[0]} tokens for {self._mask.shape[0]} rows; run prefill first")
        self._mask = np.concatenate([self._mask, np.ones_like(ids)], axis=1)
        positions = self._next[:, None]
        self._next = self._next + 1
        return np.asarray(self._run(ids, positions)[:, -1])

    def _run(self, ids: Ints, positions: Ints) -> Floats:
        feeds = {
            "input_ids": _value(ids),
            "attention_mask": _value(self._mask),
            "position_ids": _value(np.ascontiguousarray(positions)),
        }
        found = self.session.run_with_ort_values(self._outputs, feeds | self._cache)
        named = dict(zip(self._outputs, found, strict=True))
        self._cache = {name: named[name.replace(_PAST, "present.")] for name in self._past}
        return np.asarray(named["logits"].numpy(), np.float32)


def _value(array: npt.NDArray[Any]) -> Any:  # noqa: ANN401 onnxruntime has no types
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
