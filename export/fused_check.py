"""Runs fused.onnx on plain ONNX Runtime behind the face of a `Decoder`, so that the same parity check fits both graphs.

Rows come left-padded and are pushed to the left end, as the fused graph wants them; logits go back to where they belong.
"""

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime

from tailcut.kernels.decoder import Floats, Ints
from tailcut.kernels.session import session_options

_ROOM: Final = 32  # positions of the cache beyond the prompt


class FusedRunner:
    """One batch with its cache, copied at each run: for checking, not for speed."""

    def __init__(self, graph: Path) -> None:
        options = session_options(threads=None, spinning=False)
        self._session: Any = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        past = [value for value in self._session.get_inputs() if value.name.startswith("past_key_values.")]
        self._past = {value.name: value.shape for value in past}
        self._dtype = np.dtype(np.float16 if past[0].type == "tensor(float16)" else np.float32)
        self._outputs = [value.name for value in self._session.get_outputs()]
        self._cache: dict[str, npt.NDArray[Any]] = {}
        self._lengths: Ints = np.zeros(0, np.int64)

    def prefill(self, tokens: Ints, attention_mask: Ints | None = None) -> Floats:
        """tokens [batch, n], mask [batch, n] with 0 at left padding -> logits [batch, n, vocab], 0 at padding."""
        batch, count = tokens.shape
        mask = np.ones_like(tokens) if attention_mask is None else attention_mask
        self._lengths = mask.sum(axis=1)
        self._cache = {
            name: np.zeros((batch, shape[1], count + _ROOM, shape[3]), self._dtype)
            for name, shape in self._past.items()
        }
        pushed = np.zeros_like(tokens)
        for row, length in enumerate(self._lengths):
            pushed[row, :length] = tokens[row, count - length :]
        found = self._run(pushed)
        logits = np.zeros_like(found)
        for row, length in enumerate(self._lengths):
            logits[row, count - length :] = found[row, :length]
        return logits

    def step(self, tokens: Ints) -> Floats:
        """One token a row: tokens [batch] -> logits [batch, vocab]."""
        self._lengths = self._lengths + 1
        return np.asarray(self._run(tokens.reshape(-1, 1))[:, -1])

    def _run(self, ids: Ints) -> Floats:
        feeds = {
            "input_ids": np.ascontiguousarray(ids, np.int64),
            "seqlens_k": (self._lengths - 1).astype(np.int32),
            "total_sequence_length": np.asarray(max(self._lengths.max(), ids.shape[1]), np.int32),
            "logits_from": np.zeros(1, np.int64),
        }
        found = self._session.run(self._outputs, feeds | self._cache)
        named = dict(zip(self._outputs, found, strict=True))
        self._cache = {name: named[name.replace("past_key_values.", "present.")] for name in self._past}
        return np.asarray(named["logits"], np.float32)
