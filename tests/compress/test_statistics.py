"""Streaming sums equal the direct formulas."""

import torch

from tailcut.compress.statistics import Accumulator


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(n, 10, 6, generator=generator) for n in (3, 1, 4)]


def test_energy_and_hessian_equal_the_direct_formulas() -> None:
    sums = Accumulator(6, "hessian")
    for batch in batches():
        sums.add(batch, len(batch))
    tokens = torch.cat([batch.flatten(0, 1) for batch in batches()]).double()
    got = sums.result()
    assert got.energy is not None
    assert got.hessian is not None
    # 80 tokens summed in float32: relative error below 80 * 2^-24 = 5e-6 of the sum of magnitudes
    assert torch.allclose(got.energy.double(), tokens.square().sum(0) / 8, rtol=5e-6)
    assert torch.allclose(got.hessian.double(), 2 / 8 * tokens.T @ tokens, atol=5e-6 * float(tokens.square().sum()))


def test_moments_equal_the_direct_formulas_however_the_text_is_batched() -> None:
    split, whole = Accumulator(6, "moments"), Accumulator(6, "moments")
    for batch in batches():
        split.add(batch + 3.0, len(batch))
    tokens = torch.cat([batch + 3.0 for batch in batches()])
    whole.add(tokens, 8)
    got, same = split.result(), whole.result()
    assert got.total is not None
    assert got.variance is not None
    assert same.variance is not None
    direct = tokens.flatten(0, 1).double()
    # float64 sums of float32 squares: 2^-24 of the mean square, ten times the variance here
    assert torch.allclose(got.variance.double(), direct.var(0, unbiased=False), rtol=2e-6)
    assert torch.allclose(got.total.double(), direct.sum(0) / 8, rtol=1e-7)
    assert torch.allclose(got.variance, same.variance, rtol=1e-6)  # the same squares, added in another order
    assert got.hessian is None


def test_a_constant_input_has_no_variance() -> None:
    sums = Accumulator(1, "moments")
    sums.add(torch.full((2, 50, 1), 1 / 3), 2)
    variance = sums.result().variance
    assert variance is not None
    assert 0.0 <= float(variance) < 1e-7


def test_duplicated_calibration_data_changes_nothing() -> None:
    once, twice = Accumulator(6, "norms"), Accumulator(6, "norms")
    for batch in batches():
        once.add(batch, len(batch))
        twice.add(torch.cat([batch, batch]), 2 * len(batch))
    a, b = once.result().energy, twice.result().energy
    assert a is not None
    assert b is not None
    assert torch.allclose(a, b, rtol=1e-6)  # the same float32 squares, added in another order in float64


def test_nothing_is_kept_when_nothing_is_needed() -> None:
    sums = Accumulator(6, "nothing")
    sums.add(torch.ones(1, 2, 6), 1)
    assert sums.result().energy is None
    assert sums.result().hessian is None


def test_float64_hessian_option() -> None:
    sums = Accumulator(6, "hessian", hessian_dtype=torch.float64)
    sums.add(torch.ones(1, 2, 6), 1)
    hessian = sums.result().hessian
    assert hessian is not None
    assert hessian.dtype == torch.float64
    assert (hessian == 4.0).all()


def test_a_linear_that_saw_nothing_has_zeros() -> None:
    energy = Accumulator(6, "norms").result().energy
    assert energy is not None
    assert (energy == 0).all()
