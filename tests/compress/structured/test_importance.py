"""What every importance keeps, found by listing the folder, and what single ones promise."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from tailcut import plugins
from tailcut.checkpoint import Checkpoint
from tailcut.compress.resident import Weights
from tailcut.compress.skeleton import build_skeleton
from tailcut.compress.structured import PACKAGE, Aggregate, Member, Settings, load
from tailcut.compress.structured._gradients import backward
from tailcut.compress.structured._reduce import of_members
from tailcut.compress.structured._scores import score_units
from tailcut.compress.structured.hywia import attention
from tailcut.errors import InputError
from tailcut.progress import silent

NAMES = plugins.names(PACKAGE)


def members(seed: int, units: int, count: int = 3) -> list[Member]:
    """Seeded members of a group of `units`; channels and elements differ by member, as a head's do."""
    rng = torch.Generator().manual_seed(seed)

    def one(channels: int) -> Member:
        shape = (units, channels, 5)
        draw = [torch.randn(shape, generator=rng) for _ in range(3)]
        return Member(draw[0], draw[1], draw[2].square(), torch.rand((1, 1, 5), generator=rng))

    return [one(1 + place) for place in range(count)]


def changed(given_: Sequence[Member], change: Callable[[Tensor], Tensor]) -> list[Member]:
    """The same with every tensor that has units replaced."""

    def field(value: Tensor | None) -> Any:
        return value if value is None or value.shape[0] == 1 else change(value)

    return [Member(change(m.weight), field(m.gradient), field(m.fisher), m.energy) for m in given_]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), units=st.integers(1, 12))
def test_scores_are_finite_not_negative_and_go_with_their_units(name: str, seed: int, units: int) -> None:
    importance, group = load(name, Settings()), members(seed, units)
    scores = importance.score(group, Settings())
    assert scores.shape == (units,)
    assert scores.isfinite().all()
    assert (scores >= 0).all()
    order = torch.randperm(units, generator=torch.Generator().manual_seed(seed))
    shuffled = importance.score(changed(group, lambda value: value[order]), Settings())
    torch.testing.assert_close(shuffled, scores[order], rtol=1e-5, atol=1e-6)  # float32 means in another order


@pytest.mark.parametrize("name", NAMES)
def test_a_unit_of_zeros_matters_least(name: str) -> None:
    group = members(3, 6)
    silenced = changed(group, lambda value: value.index_fill(0, torch.tensor([4]), 0.0))
    scores = load(name, Settings()).score(silenced, Settings())
    assert scores.argmin() == 4
    assert scores[4] == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_a_group_of_nothing_but_zeros_has_scores(name: str) -> None:
    nothing = changed(members(0, 4), torch.zeros_like)
    assert load(name, Settings()).score(nothing, Settings()).isfinite().all()


def test_aggregation() -> None:
    scores = [torch.tensor([1.0, 4.0, 0.0]), torch.tensor([2.0, 1.0, 9.0])]
    expected: dict[Aggregate, list[float]] = {
        "sum": [3, 5, 9], "mean": [1.5, 2.5, 4.5], "max": [2, 4, 9], "first": [1, 4, 0], "prod": [2**0.5, 2, 0],
    }  # fmt: skip
    for how, want in expected.items():
        torch.testing.assert_close(of_members(scores, how), torch.tensor(want, dtype=torch.float32))
    with pytest.raises(InputError, match="aggregate must be"):
        Settings(cast(Aggregate, "median"))


def test_taylor_scores_by_hand() -> None:
    """One member, two units of two weights: g w = [1, -2], [0.5, 0.5]; F w^2 = [2, 8], [0.25, 1]."""
    group = [
        Member(
            torch.tensor([[[1.0, 2.0]], [[0.5, 1.0]]]),
            torch.tensor([[[1.0, -1.0]], [[1.0, 0.5]]]),
            torch.tensor([[[2.0, 2.0]], [[1.0, 1.0]]]),
        )
    ]
    expected = {
        "taylor": [3.0, 1.0],
        "taylor-second": [10.0, 1.25],
        "taylor-mixed": [0.0 + 6.0, 0.375 + 0.0],
        "taylor-vector": [1.0, 1.0],
    }
    for name, want in expected.items():
        torch.testing.assert_close(load(name, Settings()).score(group, Settings()), torch.tensor(want))


class TestFusion:
    """HyWIA's attention, as reconstructed."""

    def test_equal_scores_share_evenly(self) -> None:
        token = torch.tensor([0.5, 1.0, 1.5])
        torch.testing.assert_close(attention(torch.stack([token, token])), torch.tensor([0.5, 0.5]))

    @settings(max_examples=50, deadline=None)
    @given(seed=st.integers(0, 2**31), units=st.integers(1, 40))
    def test_weights_are_a_blend(self, seed: int, units: int) -> None:
        tokens = torch.rand((2, units), generator=torch.Generator().manual_seed(seed)) + 1e-3
        weights = attention(tokens / tokens.mean(1, keepdim=True))
        assert (weights > 0).all()
        torch.testing.assert_close(weights.sum(), torch.tensor(1.0))

    def test_the_token_that_tells_units_apart_gets_more(self) -> None:
        flat, steep = torch.tensor([0.9, 1.0, 1.1]), torch.tensor([0.0, 0.5, 2.5])
        coarse, fine = attention(torch.stack([flat, steep])).tolist()
        assert fine > coarse
        assert attention(torch.stack([steep, flat])).tolist() == pytest.approx([fine, coarse])

    def test_the_blend_lies_between_its_ends(self) -> None:
        group, hywia = members(7, 9), load("hywia", Settings())
        coarse, fine, both = (hywia.score(group, Settings(blend=blend)) for blend in (0.0, 1.0, None))
        assert ((both - torch.minimum(coarse, fine)) > -1e-6).all()
        assert ((torch.maximum(coarse, fine) - both) > -1e-6).all()
        assert not torch.allclose(coarse, fine)
        torch.testing.assert_close(hywia.score(group, Settings(blend=0.25)), 0.75 * coarse + 0.25 * fine)

    def test_no_factor_on_the_loss_changes_a_fine_order(self) -> None:
        group = members(11, 9)
        scaled = [Member(m.weight, 8 * cast(Tensor, m.gradient), 8 * cast(Tensor, m.fisher)) for m in group]
        hywia = load("hywia", Settings())
        torch.testing.assert_close(hywia.score(scaled, Settings()), hywia.score(group, Settings()))


def weights_of(directory: Path) -> Weights:
    checkpoint = Checkpoint(directory)
    return Weights(checkpoint, build_skeleton(checkpoint), "cpu", torch.float32)


WINDOWS = np.arange(4 * 24).reshape(4, 24) * 7 % 250


def losses(model: Any) -> Tensor:
    """Mean nats of each window's next tokens [windows], differentiable."""
    ids = torch.from_numpy(WINDOWS)
    logits = model(input_ids=ids, use_cache=False).logits
    return torch.stack([cross_entropy(row[:-1], one[1:]) for row, one in zip(logits, ids, strict=True)])


def test_gradients_block_by_block_are_those_of_the_whole_model(family: str, tiny_model: Callable[..., Path]) -> None:
    """Against autograd through transformers' own float64 model; Fisher from single windows."""
    directory = tiny_model(family)
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64, attn_implementation="eager")
    weights = weights_of(directory)
    prefix = weights.skeleton.blocks_name
    seen = 0
    each = losses(model)
    for index, _, slopes in backward(weights, WINDOWS, lambda way, index: None):
        for name, one in slopes.items():
            parameter = model.get_parameter(f"{prefix}.{index}.{name}.weight")
            single = torch.stack([torch.autograd.grad(loss, parameter, retain_graph=True)[0] for loss in each])
            for got, want in ((one.gradient, single.mean(0)), (one.fisher, single.square().mean(0))):
                # float32 forward and backward through three blocks; errors are of the largest entry's size
                assert float((got - want).abs().max()) <= 1e-3 * float(want.abs().max()), name
            seen += 1
    assert seen == len(list(find(weights)))


def find(weights: Weights) -> Any:
    from tailcut.compress.discovery import linears_of_skeleton

    return linears_of_skeleton(weights.checkpoint, weights.skeleton)


def test_taylor_foretells_what_leaving_a_channel_out_does(tiny_model: Callable[..., Path]) -> None:
    """First order: a channel scaled by 1 - t changes the loss by -t g.w + O(t^2), for t = 1e-3, summed over its members.

    The scores are of |g w|; with one weight's sign kept (taylor-vector of a one-element member) they are the derivative.
    """
    directory = tiny_model("llama")
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64, attn_implementation="eager")
    weights = weights_of(directory)
    slopes = {index: found for index, _, found in backward(weights, WINDOWS, lambda way, index: None)}
    down = model.get_parameter("model.layers.1.mlp.down_proj.weight")
    with torch.no_grad():
        before, dense = losses(model).mean(), down.clone()
        for channel in (0, 17, 63):
            down[:, channel] *= 1 - 1e-3
            measured = float(losses(model).mean() - before) / 1e-3
            down.copy_(dense)
            foretold = -float((slopes[1]["mlp.down_proj"].gradient[:, channel].double() * dense[:, channel]).sum())
            # the second-order term at t = 1e-3, and float32 gradients
            assert measured == pytest.approx(foretold, rel=0.05, abs=2e-4)


def test_taylor_ranks_channels_as_leaving_each_out_does(tiny_model: Callable[..., Path]) -> None:
    """Channels of one MLP left out one by one in float64: the change of the loss and the score agree in rank."""
    directory = tiny_model("llama")
    weights, linears = weights_of(directory), find(weights_of(directory))
    from tailcut.compress.structured._plan import groups_of

    groups, _ = groups_of(weights.skeleton, ("mlp",), "model")
    scores = score_units(weights, groups, load("taylor", Settings()), Settings(), WINDOWS, linears, silent)
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64, attn_implementation="eager")
    down = model.get_parameter("model.layers.2.mlp.down_proj.weight")
    change = []
    with torch.no_grad():
        before, dense = losses(model).mean(), down.clone()
        for channel in range(64):
            down[:, channel] = 0.0
            change.append(abs(float(losses(model).mean() - before)))
            down.copy_(dense)
    ranks = [torch.tensor(values).argsort().argsort().double() for values in (change, scores["2.mlp"].tolist())]
    correlation = float(torch.corrcoef(torch.stack(ranks))[0, 1])
    # |sum| against sum of |.| on a random model: far from 1, but a score of the wrong channels would be within 0.25 of 0
    assert correlation > 0.35


def test_wanda_reads_what_goes_in(tiny_model: Callable[..., Path]) -> None:
    """A channel that never fires is worth only its incoming rows."""
    directory = tiny_model("llama")
    weights, linears = weights_of(directory), find(weights_of(directory))
    from tailcut.compress.structured._plan import groups_of

    groups, _ = groups_of(weights.skeleton, ("heads", "mlp"), "model")
    scores = score_units(weights, groups, load("wanda", Settings()), Settings(), WINDOWS, linears, silent)
    assert {place: len(values) for place, values in scores.items()} == {
        f"{index}.{kind}": count for index in range(3) for kind, count in (("heads", 2), ("mlp", 64))
    }
    assert all(bool((values > 0).all()) for values in scores.values())
