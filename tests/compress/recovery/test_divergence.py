"""The chunked loss has the gradient of the whole one, and supports keep gradients away from pruned weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div
from torch.nn.utils import parametrize
from transformers import AutoModelForCausalLM

from tailcut.compress.recovery import _divergence as module
from tailcut.compress.recovery._divergence import Pair, Ways
from tailcut.compress.recovery._student import Grid
from tailcut.compress.recovery._support import LowRank, Support

TinyModel = Callable[..., Path]
TOKENS = np.random.default_rng(2).integers(0, 256, (3, 16))


def pair_of(directory: Path, features: float = 0.0, *, compiled: bool = False) -> tuple[Any, Any, Pair]:
    student, teacher = (AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval() for _ in range(2))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    blocks = list(zip(student.model.layers, teacher.model.layers, strict=True)) if features else []
    ways = Ways.of(student, teacher, compiled=compiled)
    return student, teacher, Pair(student, teacher, blocks, torch.device("cpu"), features, ways)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])  # gemma2 caps its logits
def test_chunks_have_the_gradient_of_the_whole(
    kind: str, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher, pair = pair_of(tiny_model(kind))
    ids = torch.from_numpy(TOKENS)
    log_p = teacher(ids).logits.detach().log_softmax(-1)
    whole = kl_div(student(ids).logits.log_softmax(-1), log_p, reduction="sum", log_target=True) / TOKENS.size
    whole.backward()
    aim = float(whole.detach())
    wanted = {name: item.grad.clone() for name, item in student.named_parameters()}
    student.zero_grad()
    monkeypatch.setattr(module, "_LOGITS", {"cpu": 258 * 7})  # 48 positions in chunks of 7
    found = sum(float(pair.backward(part, 1 / 3)) for part in np.split(TOKENS, 3))
    assert found == pytest.approx(aim, rel=1e-4)
    assert pair.kl(TOKENS) == pytest.approx(aim, rel=1e-4)
    for name, item in student.named_parameters():
        # the same float32 sums in another order
        assert torch.allclose(item.grad, wanted[name], rtol=1e-3, atol=1e-4 * float(wanted[name].abs().max())), name


@pytest.mark.slow  # inductor's C++ takes a minute
def test_fused_kernels_have_the_same_gradient(tiny_model: TinyModel) -> None:
    directory, gradients, losses = tiny_model("llama"), [], []
    for compiled in (False, True):
        student, _, pair = pair_of(directory, compiled=compiled)
        generator = torch.Generator().manual_seed(4)
        for block in student.model.layers:  # masked as in a recovery
            for linear in [part for part in block.modules() if isinstance(part, torch.nn.Linear)]:
                keep = torch.rand(linear.weight.shape, generator=generator) < 0.5
                parametrize.register_parametrization(linear, "weight", Support(keep, None, False), unsafe=True)
        losses.append([float(pair.backward(part, 1 / 3)) for part in np.split(TOKENS, 3)])
        gradients.append({name: item.grad for name, item in student.named_parameters()})
        student.zero_grad()
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    eager, fused = gradients
    assert eager.keys() == fused.keys()
    for name, item in eager.items():
        # float32 sums in another order
        assert torch.allclose(fused[name], item, rtol=1e-3, atol=1e-4 * float(item.abs().max())), name


def test_the_feature_loss_is_the_mean_relative_error_of_the_blocks(tiny_model: TinyModel) -> None:
    student, teacher, pair = pair_of(tiny_model("llama"), features=0.5)
    ids = torch.from_numpy(TOKENS)
    with torch.no_grad():
        states = [model(ids, output_hidden_states=True).hidden_states[1:-1] for model in (student, teacher)]
    errors = [float((a - b).square().sum() / b.square().sum()) for a, b in zip(*states, strict=True)]
    extra = float(pair.backward(TOKENS, 1.0)) - pair.kl(TOKENS)
    # transformers shows the outputs of all blocks but the last; that one adds what is left, which is positive
    assert 0.5 * sum(errors) / 3 < extra
    assert student.model.layers[0].mlp.up_proj.weight.grad is not None
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bits", [None, 8, 4])
def test_a_support_uses_what_it_will_store(transposed: bool, bits: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 200, generator=generator)
    keep = torch.rand(6, 200, generator=generator) < 0.5
    scales = torch.rand((6,) if bits == 8 else (6, 2), generator=generator) * 0.02 + 0.02
    support = Support(keep, None if bits is None else Grid(bits, scales), transposed)
    learnt = (weight.T if transposed else weight).contiguous().requires_grad_()
    used = support(learnt)
    turned = used.T if transposed else used
    assert not turned[~keep].any()
    integers = support.integers(learnt)
    assert torch.equal(turned, weight * keep if integers is None else integers.dense())
    used.sum().backward()
    gradient = learnt.grad.T if transposed else learnt.grad
    assert not gradient[~keep].any()
    if integers is None:
        assert (gradient[keep] == 1).all()
    else:  # straight through, but not beyond the grid's ends
        steps = turned.detach().abs().max(1).values
        inside = keep & (weight.abs() < 0.9 * scales.reshape(6, -1)[:, :1].clamp(max=1) * 7)
        assert (gradient[inside] == 1).all()
        assert (steps <= 127 * scales.reshape(6, -1).max(1).values + 1e-6).all()
        assert not gradient[keep & (weight.abs() > 127.5 * 0.04)].any()


def test_a_low_rank_change_starts_at_nothing_and_never_leaves_the_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, keep = torch.randn(8, 12), torch.rand(8, 12) < 0.5
    support = LowRank(keep, None, False, 4, generator)
    assert torch.equal(support(weight), weight * keep)
    with torch.no_grad():
        support.up.normal_(generator=generator)
    changed = support(weight)
    assert not changed[~keep].any()
    change = (changed - weight)[keep]
    assert torch.allclose(change, (support.factor * support.up @ support.down)[keep], atol=1e-5)
    assert {name for name, _ in support.named_parameters()} == {"up", "down"}
