"""What is read off behind the last block: logits a few positions at a time, and what a next token costs by them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tailcut.compress.resident import Weights
from tailcut.windows import Tokens


def vocabulary(weights: Weights) -> int:
    """Rows of the token embedding, and so logits of a position."""
    model: Any = weights.skeleton.model
    return int(model.get_input_embeddings().weight.shape[0])


def head_parameters(weights: Weights) -> int:
    """Weights that logits take: as many as the token embedding has, whether the head shares them or not."""
    model: Any = weights.skeleton.model
    return int(model.get_input_embeddings().weight.numel())


def position_chunks(weights: Weights, windows: int, stop: int, logits: int) -> Iterator[Tensor]:
    """Positions 0 … stop - 1, as many at a time as `windows` windows have `logits` logits at, but at least one."""
    size = max(1, logits // (vocabulary(weights) * windows))
    for start in range(0, stop, size):
        yield torch.arange(start, min(start + size, stop))


def next_tokens(tokens: Tokens, positions: Tensor) -> Tensor:
    """Tokens [windows, length] -> those after the positions, int64 [windows, positions]."""
    return torch.from_numpy(tokens[:, positions.numpy() + 1].copy())


def next_nats(logits: Tensor, tokens: Tokens, positions: Tensor) -> Tensor:
    """Logits [windows, positions, vocabulary] of `tokens` [windows, length] -> nats of each next token [windows, positions]."""
    targets = next_tokens(tokens, positions).to(logits.device)
    nats = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return nats.view_as(targets)
