"""Every file of compress/quantisers keeps the same contract."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tailcut import plugins
from tailcut.allocation import NM, Bits, Dense, Pattern, Unstructured
from tailcut.compress.masks import require_groups
from tailcut.compress.statistics import Accumulator, Statistics
from tailcut.quantised import GROUP, LARGEST, scales_shape

QUANTISERS = plugins.names("tailcut.compress.quantisers")
BITS: tuple[Bits, ...] = (8, 4, 3, 2)
COLUMNS = GROUP + 40  # a whole group and a part of one


@pytest.fixture(params=QUANTISERS)
def quantiser(request: pytest.FixtureRequest) -> Any:
    return plugins.load("tailcut.compress.quantisers", request.param)


def problem(quantiser: Any, columns: int = COLUMNS, dead: int | None = None) -> tuple[Tensor, Statistics]:
    """A weight [20, columns] with a few zeros, and statistics of correlated inputs."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(20, columns, generator=generator)
    weight[torch.rand(20, columns, generator=generator) < 0.1] = 0.0
    inputs = torch.randn(40, 12, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    if dead is not None:
        inputs[..., dead] = 0.0
    sums = Accumulator(columns, quantiser.NEEDS)
    sums.add(inputs, 40)
    return weight, sums.result()


def patterns(quantiser: Any) -> list[Pattern]:
    return [Dense(), Unstructured(0.5), NM(2, 4)] if quantiser.PRUNES else [Dense()]


def test_the_three_quantisers_are_there() -> None:
    assert set(QUANTISERS) == {"rtn", "gptq", "joint"}


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_integers_and_scales_have_the_form_of_their_bits(quantiser: Any, bits: Bits, clip: bool) -> None:
    weight, stats = problem(quantiser)
    for pattern in patterns(quantiser):
        made = quantiser.quantise(weight, pattern, bits, stats, clip)
        assert made.q.dtype == torch.int8
        assert made.q.shape == weight.shape
        assert int(made.q.abs().max()) <= LARGEST[bits]
        assert made.scales.dtype == torch.float32
        assert tuple(made.scales.shape) == scales_shape(bits, (20, COLUMNS))
        assert torch.isfinite(made.scales).all()
        assert (made.scales >= 0).all()


@pytest.mark.parametrize("bits", BITS)
def test_zeros_stay_zeros(quantiser: Any, bits: Bits) -> None:
    weight, stats = problem(quantiser)
    for pattern in patterns(quantiser):
        made = quantiser.quantise(weight, pattern, bits, stats, True)
        assert (made.q[weight == 0] == 0).all()


@pytest.mark.parametrize("bits", BITS)
def test_the_pattern_holds(quantiser: Any, bits: Bits) -> None:
    """Rounding may add zeros, at 2 bits many; no pattern loses one."""
    weight, stats = problem(quantiser)
    for pattern in patterns(quantiser):
        made = quantiser.quantise(weight, pattern, bits, stats, True)
        require_groups("matrix", made.q, pattern)
        assert int((made.q == 0).sum()) >= int(pattern.sparsity * weight.numel())


def test_every_bit_makes_it_better(quantiser: Any) -> None:
    weight, stats = problem(quantiser)
    losses = [float((quantiser.quantise(weight, Dense(), bits, stats, True).dense() - weight).norm()) for bits in BITS]
    assert losses == sorted(losses)
    # float32 rounding of 8 bits: half a step of 1/127 of about three times the norm's mean, times sqrt(1/3)
    assert losses[0] < 0.02 * float(weight.norm())


def test_a_matrix_of_zeros(quantiser: Any) -> None:
    weight, stats = problem(quantiser)
    for bits in BITS:
        made = quantiser.quantise(torch.zeros_like(weight), Dense(), bits, stats, True)
        assert not made.q.any()
        assert (made.dense() == 0).all()


def test_the_input_is_not_modified(quantiser: Any) -> None:
    weight, stats = problem(quantiser)
    before, hessian = weight.clone(), None if stats.hessian is None else stats.hessian.clone()
    quantiser.quantise(weight, Dense(), 4, stats, True)
    assert torch.equal(weight, before)
    if hessian is not None and stats.hessian is not None:
        assert torch.equal(stats.hessian, hessian)


def test_deterministic_and_blind_to_memory_order(quantiser: Any) -> None:
    weight, stats = problem(quantiser)
    a = quantiser.quantise(weight, Dense(), 3, stats, True)
    b = quantiser.quantise(weight.T.contiguous().T, Dense(), 3, stats, True)
    assert torch.equal(a.q, b.q)
    assert torch.equal(a.scales, b.scales)


def test_a_dead_input_is_rounded_like_any_other(quantiser: Any) -> None:
    """Silent on the calibration text, it may speak elsewhere: its weights are kept, to half a step."""
    weight, stats = problem(quantiser, dead=5)
    made = quantiser.quantise(weight, Dense(), 8, stats, True)
    assert ((made.dense() - weight)[:, 5].abs() <= 0.5001 * made.scales).all()  # half a step and a float32 rounding


def test_a_quantiser_that_does_not_prune_refuses_to(quantiser: Any) -> None:
    weight, stats = problem(quantiser)
    if not quantiser.PRUNES:
        with pytest.raises(ValueError, match="prune first"):
            quantiser.quantise(weight, Unstructured(0.5), 4, stats, True)
