"""The parts of a decode step that are not matrices, in plain torch: what `step` must give, and the loop on a CPU.

Roundings are those of transformers' Llama: sums and norms leave in the model's dtype, inside is float32.
`cache` of one layer is [2, batch, kv_heads, capacity, head_dim], keys first; `position` int32 [batch] is the index of
the token that runs; `tokens` int32 [batch, capacity + 1] holds the token of every index.
"""

import torch
import torch.nn.functional as F  # noqa: N812 torch's own custom
from torch import Tensor

from tailcut.kernels.gpu.scratch import Scratch


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., hidden] / root mean square * weight [hidden], in x's dtype."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


def embed_norm(table: Tensor, tokens: Tensor, position: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The embedding [batch, hidden] of each row's token at its position, and the same normed."""
    current = tokens.gather(1, position.long()[:, None])[:, 0]
    residual = table[current.long()]
    return residual, rms_norm(residual, weight, eps)


def add_norm(delta: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """residual += delta, both [batch, hidden], in place; the new residual normed."""
    residual += delta
    return rms_norm(residual, weight, eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [..., head_dim] turned by its angles, cos and sin [..., head_dim / 2] -> float32; halves are pairs."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attend(qkv: Tensor, cache: Tensor, rotary: Tensor, position: Tensor, scratch: Scratch) -> Tensor:
    """Attention of one token a row: qkv [batch, (heads + 2 kv) * head_dim] -> [batch, heads * head_dim].

    Queries and keys are turned here (rotary float32 [2, positions, head_dim / 2]), and the new key and value are
    written to the cache at `position`. Query heads that follow each other share a key head.
    """
    del scratch  # room for partial sums, which only the kernel needs
    _, batch, kv_heads, capacity, head_dim = cache.shape
    parts = qkv.view(batch, -1, head_dim)
    queries, keys, values = parts[:, : -2 * kv_heads], parts[:, -2 * kv_heads : -kv_heads], parts[:, -kv_heads:]
    cos, sin = (table[position.long()][:, None] for table in rotary)
    rows = torch.arange(batch, device=qkv.device)
    cache[0, rows, :, position.long()] = rotate(keys, cos, sin).to(cache.dtype)
    cache[1, rows, :, position.long()] = values
    turned = rotate(queries, cos, sin).view(batch, kv_heads, -1, head_dim)
    scores = turned @ cache[0].float().transpose(-1, -2) * head_dim**-0.5
    ahead = torch.arange(capacity, device=qkv.device) > position[:, None]
    shares = scores.masked_fill(ahead[:, None, None], float("-inf")).softmax(-1)
    out: Tensor = shares @ cache[1].float()
    return out.reshape(batch, -1).to(qkv.dtype)


def swiglu(gate_up: Tensor) -> Tensor:
    """gate_up [..., 2 n], gate first -> silu(gate) * up [..., n]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return (F.silu(gate.float()) * up.float()).to(gate_up.dtype)


def choose(logits: Tensor, tokens: Tensor, position: Tensor, scratch: Scratch) -> None:
    """Greedy: the token of the largest logit (the first of equals) becomes the next one, and `position` moves on."""
    del scratch
    best = logits.float().argmax(-1).to(tokens.dtype)
    position += 1
    tokens.scatter_(1, position.long()[:, None], best[:, None])
