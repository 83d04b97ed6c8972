"""Prefill and cached decode of one package, batched, without torch.

With tailcut's kernels a package's fused.onnx runs on a cache that stays in place (`kernels.in_place`); otherwise model.onnx
runs, whose cache grows by concatenation (`kernels.concatenating`). Callers see no difference but speed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime

from tailcut.errors import InputError
from tailcut.kernels.concatenating import Concatenating
from tailcut.kernels.in_place import InPlace
from tailcut.kernels.session import Kernels, decoding_graph, load_session

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
_LENGTHS: Final = "seqlens_k"  # an input that only fused graphs have


class Decoder:
    """A model with its cache. `prefill` starts a new sequence, `step` adds one token to every row."""

    def __init__(
        self,
        package: Path | None,
        threads: int | None = None,
        *,
        spinning: bool = True,
        session: onnxruntime.InferenceSession | None = None,
        kernels: Kernels = "auto",
        cpus: Sequence[int] = (),
    ) -> None:
        if session is None:
            if package is None:
                raise InputError("a decoder needs a package or an open session")
            graph = decoding_graph(package, kernels)
            session = load_session(package, threads=threads, spinning=spinning, kernels=kernels, graph=graph, cpus=cpus)
        self.session = session
        fused = any(value.name == _LENGTHS for value in session.get_inputs())
        self._rows = 0
        self._model: InPlace | Concatenating = InPlace(session) if fused else Concatenating(session)

    @property
    def cache(self) -> str:
        """How the cache is kept, for reports."""
        return "in place" if isinstance(self._model, InPlace) else "concatenated"

    @property
    def cache_type(self) -> str:
        """What a cached number is: float32 or float16."""
        return str(self._model.dtype)

    def prefill(self, tokens: Ints, attention_mask: Ints | None = None, *, last_only: bool = False) -> Floats:
        """Run a prompt from an empty cache: tokens [batch, n] -> logits [batch, n, vocab].

        attention_mask [batch, n] is 0 at (left) padding, where logits mean nothing; positions count from each row's first
        1. last_only computes the logits of each row's last token alone: [batch, 1, vocab].
        """
        ids = np.ascontiguousarray(tokens, np.int64)
        mask = np.ones_like(ids) if attention_mask is None else np.ascontiguousarray(attention_mask, np.int64)
        if ids.ndim != 2 or 0 in ids.shape or mask.shape != ids.shape:
            raise InputError(f"prefill takes tokens [batch, n] and a mask of that shape, got {ids.shape}, {mask.shape}")
        if not mask.any(axis=1).all() or not np.isin(mask, (0, 1)).all():
            raise InputError("an attention mask holds 0 and 1, and a 1 in every row")
        self._rows = 0
        logits = self._model.prefill(ids, mask, last_only)
        self._rows = ids.shape[0]
        return logits

    def step(self, tokens: Ints) -> Floats:
        """Add one token to each row: tokens [batch] -> logits [batch, vocab]."""
        ids = np.ascontiguousarray(tokens, np.int64).reshape(-1, 1)
        if ids.shape[0] != self._rows or not self._rows:
            raise InputError(f"step got {ids.shape[0]} tokens for {self._rows} rows; run prefill first")
        return self._model.step(ids)

    def pretend(self, batch: int, length: int, seed: int = 0) -> bool:
        """Start from `length` cached positions of noise instead of a prompt, to time steps; False if it cannot.

        A step's time does not depend on what is cached, and running the prompt costs more than the steps that are timed.
        """
        if not isinstance(self._model, InPlace):
            return False
        self._model.pretend(batch, length, np.random.default_rng(seed))
        self._rows = batch
        return True

    def mark(self) -> Any:  # noqa: ANN401 opaque: only `rewind` takes it
        """Where the sequence is now, for `rewind`."""
        return self._model.mark()

    def rewind(self, mark: Any) -> None:  # noqa: ANN401
        """Go back to a mark of the same sequence: the steps since then are forgotten. A prefill ends a sequence."""
        self._model.rewind(mark)
