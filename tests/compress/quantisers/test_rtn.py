"""Round to nearest: the export's own rounding, and scales that are searched."""

import pytest
import torch

from tailcut.allocation import Bits, Dense
from tailcut.compress.quantisers.rtn import quantise
from tailcut.compress.statistics import Statistics
from tailcut.export.quantise import quantise as export_quantise


def normal(rows: int = 16, columns: int = 300, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("bits", "precision"), [(8, "int8"), (4, "int4")])
def test_without_a_search_it_is_what_export_does(bits: Bits, precision: str) -> None:
    weight = normal()
    made = quantise(weight, Dense(), bits, Statistics(), clip=False)
    q, scales = export_quantise(weight.numpy(), precision)  # type: ignore[arg-type]
    assert (made.q.numpy() == q).all()
    assert (made.scales.numpy() == scales).all()


@pytest.mark.parametrize("bits", [4, 2])
def test_a_searched_scale_never_has_more_squared_error(bits: Bits) -> None:
    weight = normal(columns=256)
    lost = [
        (quantise(weight, Dense(), bits, Statistics(), clip).dense() - weight).view(16, 2, 128).square().sum(2)
        for clip in (True, False)
    ]
    assert (lost[0] <= lost[1] * (1 + 1e-6)).all()  # the same sums, in another order at most
    assert lost[0].sum() < lost[1].sum()


def test_three_bits_keep_the_largest_weight() -> None:
    weight = normal(columns=256)
    searched, plain = (quantise(weight, Dense(), 3, Statistics(), clip) for clip in (True, False))
    assert searched.scales.equal(plain.scales)


def test_two_bits_are_plus_minus_zero() -> None:
    """By hand: of 1, 0.9, -0.8, 0.1 the best single step is near 0.9."""
    made = quantise(torch.tensor([[1.0, 0.9, -0.8, 0.1]]), Dense(), 2, Statistics())
    assert made.q.tolist() == [[1, 1, -1, 0]]
    assert float(made.scales) == pytest.approx(0.9, abs=0.0125 + 1e-6)  # half a step of the search


def test_subnormal_rows_count_as_zero() -> None:
    weight = torch.full((2, 8), 1e-42)
    assert not quantise(weight, Dense(), 4, Statistics()).q.any()
