"""Attention on a GPU where PyTorch would take its slowest way: heads that share keys, in float32 or at a single position.

PyTorch's fused kernels in float32 know nothing of shared key heads, so asked for them it computes all scores in memory,
five passes over [heads, length, length]. Keys repeated for every head go through the fused kernel. At a single
position the heads of a group are as many queries of one key head: keys and values are read once.
"""

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME: Final = "tailcut"
# not cuDNN's, which plans anew for other shapes, and a cache grows by one position a step (its cost is not measured)
_KERNELS: Final = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_THEIRS: Final = ("position_bias", "cache", "softcap")  # arguments that are left to transformers


def quicken(model: Any) -> None:  # noqa: ANN401  (untyped library object)
    """Let a model that attends by PyTorch's kernels do so by `attend`. Others stay as they are."""
    if getattr(model.config, "_attn_implementation", None) == "sdpa" and model._can_set_attn_implementation():
        AttentionInterface.register(_NAME, attend)
        AttentionMaskInterface.register(_NAME, sdpa_mask)
        model.set_attn_implementation(_NAME)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,  # noqa: ANN401
) -> tuple[Tensor, None]:
    """query [batch, heads, new, width], key and value [batch, key heads, length, width] -> [batch, new, heads, width].

    `attention_mask` broadcasts to [batch, heads, new, length]; without one, several new positions are causal.
    """
    batch, heads, new, _ = query.shape
    groups = heads // key.shape[1]
    shared = attention_mask is None or attention_mask.shape[1] == 1
    wanted = groups > 1 and shared and all(others.get(name) is None for name in _THEIRS)
    if not wanted or (new > 1 and (query.dtype != torch.float32 or key.shape[2] != new)):
        found, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **others
        )
        return found, None
    causal = (
        new > 1 and attention_mask is None and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
    )
    if new == 1:
        query = query.reshape(batch, heads // groups, groups, -1)
    else:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    with sdpa_kernel(_KERNELS):
        out = scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling, is_causal=bool(causal)
        )
    return out.reshape(batch, heads, new, -1).transpose(1, 2).contiguous(), None
