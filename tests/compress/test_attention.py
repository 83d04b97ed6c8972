"""Attention of shared key heads against the sum written out in float64, and models with it against models without."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tailcut.bench.gpu_device import gpu_problem
from tailcut.checkpoint import Checkpoint
from tailcut.compress import attention
from tailcut.compress.perplexity import directory_nll
from tailcut.compress.resident import Weights
from tailcut.compress.skeleton import build_skeleton

TinyModel = Callable[..., Path]
DEVICE = "cpu" if gpu_problem() else "cuda"
MODULE = nn.Module()
MODULE.num_key_value_groups = 3  # type: ignore[assignment]  (what transformers' own function reads)


def written_out(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    groups, new, length = query.shape[1] // key.shape[1], query.shape[2], key.shape[2]
    query, key, value = (part.double() for part in (query, key, value))
    scores = query @ key.repeat_interleave(groups, 1).transpose(2, 3) / query.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones(new, length, device=DEVICE).triu(1).bool(), -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ value.repeat_interleave(groups, 1)).transpose(1, 2)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("new", "length"), [(1, 1), (1, 7), (9, 9)])
@pytest.mark.parametrize("groups", [1, 3])
def test_shared_keys(groups: int, new: int, length: int, masked: bool) -> None:
    generator = torch.Generator().manual_seed(new + length)
    query = torch.randn(2, 2 * groups, new, 16, generator=generator).to(DEVICE)
    # views of something longer, as a cache gives them
    key, value = torch.randn(2, 2, 2, length + 3, 16, generator=generator).to(DEVICE)[:, :, :, :length]
    mask = torch.rand(2, 1, new, length, generator=generator).to(DEVICE) < 0.6 if masked else None
    if mask is not None:
        mask[..., 0] = True  # no position sees nothing
    module = SimpleNamespace(num_key_value_groups=groups, is_causal=True)
    found, _ = attention.attend(module, query, key, value, mask)  # type: ignore[arg-type]
    assert found.is_contiguous()
    exact = written_out(query, key, value, mask, causal=new > 1 and mask is None)
    assert torch.allclose(found.double(), exact, atol=1e-5)  # float32 sums of at most 16 products and 9 shares near 1


def test_what_it_does_not_know_is_left_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def theirs(_: nn.Module, query: Tensor, *__: object, **others: Any) -> tuple[Tensor, None]:
        seen.append(others)
        return query, None

    monkeypatch.setattr(attention, "sdpa_attention_forward", theirs)
    query, key = torch.randn(1, 6, 4, 8), torch.randn(1, 2, 4, 8)
    attention.attend(MODULE, query, key, key, None, position_bias=torch.zeros(1, 6, 4, 4))
    attention.attend(MODULE, query.bfloat16(), key.bfloat16(), key.bfloat16(), None)
    attention.attend(MODULE, query, torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8), None)  # a cache before it
    attention.attend(MODULE, query, key, key, torch.ones(1, 6, 4, 4, dtype=torch.bool))  # a mask of every head
    assert len(seen) == 4
    assert "position_bias" in seen[0]


def test_a_model_gives_the_same_logits(family: str, tiny_model: TinyModel) -> None:
    model_dir, logits = tiny_model(family), []
    for quick in (False, True):
        checkpoint = Checkpoint(model_dir)
        skeleton = build_skeleton(checkpoint)
        if quick:
            settable = (
                skeleton.model.config._attn_implementation == "sdpa" and skeleton.model._can_set_attn_implementation()
            )
            attention.quicken(skeleton.model)
            assert (skeleton.model.config._attn_implementation == "tailcut") == settable
        weights = Weights(checkpoint, skeleton, "cpu", torch.float32)
        weights.load_rest()
        for index in range(len(skeleton.blocks)):
            weights.load_block(index)
        ids = torch.arange(3, 43)[None]
        with torch.inference_mode():
            model: Any = skeleton.model
            logits.append(model(input_ids=ids, use_cache=False).logits)
    assert torch.allclose(*logits, rtol=1e-5, atol=1e-5)


def test_models_with_attention_of_their_own_stay_as_they_are() -> None:
    for chosen, settable in (("eager", True), ("sdpa", False)):
        model = SimpleNamespace(
            config=SimpleNamespace(_attn_implementation=chosen), _can_set_attn_implementation=lambda can=settable: can
        )
        attention.quicken(model)  # has no `set_attn_implementation` to be called
        assert model.config._attn_implementation == chosen


@pytest.mark.gpu
def test_float32_passes_on_a_gpu_agree_with_the_cpu(tiny_model: TinyModel) -> None:
    model_dir = tiny_model("llama")
    windows = np.random.default_rng(0).integers(0, 90, (3, 48))
    cpu, gpu = (directory_nll(model_dir, windows, device=device) for device in ("cpu", "cuda"))
    assert np.allclose(cpu, gpu, rtol=1e-5)  # float32 sums in another order, 47 positions each
