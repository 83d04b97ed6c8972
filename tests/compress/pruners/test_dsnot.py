"""DSnoT against the same exchange written out for one row, and by hand."""

import math

import pytest
import torch

from tailcut.allocation import NM, Pattern, Unstructured
from tailcut.compress.pruners import wanda
from tailcut.compress.pruners.dsnot import CYCLES, THRESHOLD, prune
from tailcut.compress.statistics import Accumulator, Statistics


def problem(seed: int, rows: int = 12, columns: int = 64, mean: float = 1.0) -> tuple[torch.Tensor, Statistics]:
    """Inputs with means of their own, so that removing weights shifts the output."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(6, 32, columns, generator=generator) * torch.rand(columns, generator=generator)
    sums = Accumulator(columns, "moments")
    sums.add(inputs + mean * torch.randn(columns, generator=generator), 6)
    return torch.randn(rows, columns, generator=generator), sums.result()


def one_row(share: list[float], score: list[float], variance: list[float], removed: set[int]) -> set[int]:
    """Unstructured exchange of one row, step by step."""
    removed, e = set(removed), sum(share[j] for j in sorted(removed))
    first, moved = set(removed), set[int]()
    for _ in range(CYCLES):
        sign = math.copysign(1.0, e)
        grow = [j for j in first - moved if share[j] * sign > 0]
        drop = [j for j in range(len(share)) if j not in first and j not in moved and share[j] * sign < 0]
        if abs(e) <= THRESHOLD or not grow or not drop:
            break
        grown = max(grow, key=lambda j: abs(share[j]) / variance[j])
        dropped = min(drop, key=lambda j: score[j])
        removed = removed - {grown} | {dropped}
        moved |= {grown, dropped}
        e += share[dropped] - share[grown]
    return removed


def one_row_in_groups(
    share: list[float], score: list[float], variance: list[float], removed: set[int], block: int
) -> set[int]:
    """N:M exchange of one row: same sign of e throughout, the weight that goes is of the same group."""
    removed, e = set(removed), sum(share[j] for j in sorted(removed))
    sign, first, dropped_ones = math.copysign(1.0, e), set(removed), set[int]()
    grow = sorted((j for j in first if share[j] * sign > 0), key=lambda j: -abs(share[j]) / variance[j])
    for grown in grow[:CYCLES]:
        if abs(e) <= THRESHOLD:
            break
        start = grown // block * block
        left = [j for j in range(start, start + block) if j not in first and j not in dropped_ones]
        if not left:
            continue
        dropped = min(left, key=lambda j: score[j])
        after = e + share[dropped] - share[grown]
        if math.copysign(1.0, after) != sign:
            break
        removed, e = removed - {grown} | {dropped}, after
        dropped_ones.add(dropped)
    return removed


@pytest.mark.parametrize("pattern", [Unstructured(0.5), Unstructured(0.7), NM(2, 4), NM(1, 4), NM(4, 8)], ids=str)
def test_every_row_goes_through_the_same_exchange(pattern: Pattern) -> None:
    moved = 0
    for seed in range(4):
        weight, stats = problem(seed)
        assert stats.energy is not None
        assert stats.total is not None
        assert stats.variance is not None
        got = prune(weight, pattern, stats) == 0
        begun = wanda.prune(weight, pattern, stats) == 0
        score, share = wanda.importance(weight, stats.energy), weight * stats.total
        for row in range(len(weight)):
            given = (share[row].tolist(), score[row].tolist(), stats.variance.tolist())
            start = set(begun[row].nonzero().flatten().tolist())
            if isinstance(pattern, NM):
                expected = one_row_in_groups(*given, start, pattern.block)
            else:
                expected = one_row(*given, start)
            assert set(got[row].nonzero().flatten().tolist()) == expected
        moved += int((got != begun).sum())
    assert moved > 0


def test_an_exchange_by_hand() -> None:
    """e = -1 + -3 = -4. Removed 1 comes back (3 over 1 beats 1 over 1), kept 3 (positive) goes: e = -4 + 3 + 2 = 1.

    Then e is positive, and nothing that was removed is: the row is done.
    """
    weight = torch.tensor([[-1.0, -3.0, 4.0, 2.0]])
    energy = torch.tensor([1.0, 0.01, 9.0, 9.0])  # Wanda: 1, 0.3, 12, 6
    stats = Statistics(energy, None, torch.ones(4), torch.ones(4))
    assert prune(weight, Unstructured(0.5), stats).tolist() == [[0.0, -3.0, 4.0, 0.0]]


def test_the_variance_decides_what_comes_back() -> None:
    weight = torch.tensor([[-1.0, -3.0, 4.0, 2.0]])
    energy, variance = torch.tensor([1.0, 0.01, 9.0, 9.0]), torch.tensor([0.1, 10.0, 1.0, 1.0])
    stats = Statistics(energy, None, torch.ones(4), variance)  # worth 10 and 0.3; e = -4 + 1 + 2 = -1
    # a second exchange brings back 1 and drops 2: e = -1 + 3 + 4 = 6, and a third has nothing positive to bring back
    assert prune(weight, Unstructured(0.5), stats).tolist() == [[-1.0, -3.0, 0.0, 0.0]]


def test_inputs_without_a_mean_leave_wanda_s_mask() -> None:
    weight, stats = problem(0)
    centred = Statistics(stats.energy, None, torch.zeros(64), stats.variance)
    assert torch.equal(prune(weight, Unstructured(0.5), centred), wanda.prune(weight, Unstructured(0.5), centred))


@pytest.mark.parametrize("pattern", [Unstructured(0.5), NM(2, 4)], ids=str)
def test_rows_lose_as_many_weights_and_shift_less(pattern: Pattern) -> None:
    weight, stats = problem(7, 40, 512, mean=0.1)
    assert stats.total is not None
    ours, before = prune(weight, pattern, stats), wanda.prune(weight, pattern, stats)
    assert torch.equal((ours == 0).sum(1), (before == 0).sum(1))
    shifts = [((weight - pruned) @ stats.total).abs().sum() for pruned in (ours, before)]
    assert shifts[0] < 0.3 * shifts[1]  # measured on such inputs: 0.02 unstructured, 0.10 for 2:4


def test_a_constant_input_comes_back_first() -> None:
    """Variance 0: restoring its weight costs no noise at all."""
    weight = torch.tensor([[-1.0, -3.0, 4.0, 2.0]])
    energy, variance = torch.tensor([1.0, 0.01, 9.0, 9.0]), torch.tensor([0.0, 1.0, 1.0, 1.0])
    pruned = prune(weight, Unstructured(0.5), Statistics(energy, None, torch.ones(4), variance))
    assert pruned[0, 0] == -1.0
