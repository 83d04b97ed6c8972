"""Mean Kullback-Leibler divergence a token of one set of final hidden states from another.

    KL = mean over positions of sum over the vocabulary of p (log p - log q)      p dense, q cut; nats

Logits exist a chunk of positions at a time. The dense model's side is kept where `limit` bytes hold all of it; where
they do not (a vocabulary of 262144 at 65536 tokens takes 69 GB), they are computed again from the hidden states. `every`
is for vocabularies whose heads cost more than the blocks: the logits of every position are not worth their time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Final

import torch
from torch import Tensor

from tailcut.compress.blocks import Stream, finish
from tailcut.compress.heads import position_chunks
from tailcut.compress.kl import kl, prepared
from tailcut.compress.resident import Weights
from tailcut.windows import Tokens

_LOGITS: Final = {"cpu": 1 << 26, "cuda": 1 << 28}  # logits of either side held at once (256 MB, 1 GB)


@dataclass(slots=True)
class Reference:
    """The dense model's final hidden states, one tensor [windows, length, hidden] a batch, as `stream` had them.

    `weights` has embeddings and head loaded; tokens [windows, length] are all batches' in order.
    """

    weights: Weights
    stream: Stream  # its tape only; batches may be anything
    tokens: Tokens
    hidden: Sequence[Tensor]
    limit: int = 0  # bytes of the dense model's logits that may be kept
    every: int = 1  # of so many positions one is scored
    _kept: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    _bytes: int = 0

    def divergence(self, batch: int, hidden: Tensor) -> tuple[float, int]:
        """Sum of nats over the scored positions of one batch, and how many those are. Not-a-number counts as infinite."""
        start = sum(len(one) for one in self.hidden[:batch])
        tokens = self.tokens[start : start + len(hidden)]
        every = min(self.every, tokens.shape[1])
        total, scored = 0.0, tokens.shape[1] // every
        with torch.inference_mode():
            held = _LOGITS.get(self.weights.device.type, _LOGITS["cpu"])
            for chunk in position_chunks(self.weights, len(hidden), scored, held):
                positions = every * (chunk + 1) - 1
                logits = finish(self.weights, self.stream, tokens, hidden, positions)
                dense = self._dense(batch, tokens, positions)
                total += float(kl(dense, logits).sum(dtype=torch.float64))
        return (float("inf") if isnan(total) else total), len(hidden) * scored

    def _dense(self, batch: int, tokens: Tokens, positions: Tensor) -> Tensor:
        key = (batch, int(positions[0]))
        if key in self._kept:
            return self._kept[key]
        logits = finish(self.weights, self.stream, tokens, self.hidden[batch], positions)
        made = prepared(logits)
        if self._bytes + made.nbytes <= self.limit:
            self._kept[key] = made
            self._bytes += made.nbytes
        return made
