"""A prompt through the model in plain torch (SDPA), filling the cache that the decode loop goes on with."""

import torch
import torch.nn.functional as F  # noqa: N812 torch's own custom
from torch import Tensor

from tailcut.kernels.gpu.model import Activated, Linear, Model
from tailcut.kernels.gpu.step_reference import rms_norm, rotate, swiglu


def run(model: Model, prompt: Tensor, cache: Tensor, rotary: Tensor) -> Tensor:
    """prompt [batch, n], cache [layers, 2, batch, kv_heads, capacity, head_dim] -> last normed hidden [batch, hidden]."""
    eps = model.architecture.norm_eps
    hidden = model.embedding[prompt.long()]
    for block, layer in zip(model.blocks, cache, strict=True):
        qkv = _rows(block.qkv, rms_norm(hidden, block.attention_norm, eps))
        hidden = hidden + _rows(block.o, _attend(qkv, layer, rotary))
        x = rms_norm(hidden, block.mlp_norm, eps)
        gate_up = block.gate_up
        inner = _rows(gate_up.apply, x) if isinstance(gate_up, Activated) else swiglu(_rows(gate_up, x))
        hidden = hidden + _rows(block.down, inner)
    return rms_norm(hidden[:, -1], model.final_norm, eps)


def _rows(linear: Linear, x: Tensor) -> Tensor:
    """A product that takes rows, on x [batch, n, in] -> [batch, n, out]."""
    return linear(x.flatten(0, 1)).view(*x.shape[:2], -1)


def _attend(qkv: Tensor, cache: Tensor, rotary: Tensor) -> Tensor:
    """qkv [batch, n, (heads + 2 kv) * head_dim] -> [batch, n, heads * head_dim]; fills cache [2, batch, kv, :n, head_dim]."""
    batch, count, _ = qkv.shape
    kv_heads, head_dim = cache.shape[2], cache.shape[4]
    parts = qkv.view(batch, count, -1, head_dim).transpose(1, 2)
    queries, keys, values = parts[:, : -2 * kv_heads], parts[:, -2 * kv_heads : -kv_heads], parts[:, -kv_heads:]
    cos, sin = rotary[:, :count]
    turned = rotate(keys, cos, sin).to(qkv.dtype)
    cache[0, :, :, :count], cache[1, :, :, :count] = turned, values
    group = queries.shape[1] // kv_heads
    queries = rotate(queries, cos, sin).to(qkv.dtype)
    turned, values = (torch.repeat_interleave(part, group, dim=1) for part in (turned, values))
    out = F.scaled_dot_product_attention(queries, turned, values, is_causal=True)
    return out.transpose(1, 2).flatten(2)
