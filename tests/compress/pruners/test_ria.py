"""RIA: the formula written out, and by hand."""

import pytest
import torch

from tailcut.allocation import NM, Unstructured
from tailcut.compress.pruners.ria import importance, prune
from tailcut.compress.statistics import Statistics


def test_the_formula_weight_by_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, energy = torch.randn(5, 7, generator=generator), torch.rand(7, generator=generator)
    got, size = importance(weight, energy), weight.abs().double()
    for i in range(5):
        for j in range(7):
            share = size[i, j] / sum(size[i]) + size[i, j] / sum(size[:, j])
            # a handful of float32 operations on one number
            assert float(got[i, j]) == pytest.approx(float(share * float(energy[j]) ** 0.25), rel=2e-6)


def test_a_weak_channel_keeps_its_best_weight() -> None:
    """Magnitude and Wanda would take column 0 whole: its weights are the smallest of every row."""
    weight = torch.tensor([[0.1, 1.0, 1.0, 1.0], [0.02, 1.0, 1.0, 1.0], [0.02, 1.0, 1.0, 1.0]])
    pruned = prune(weight, Unstructured(0.25), Statistics(torch.ones(4)))
    assert float(pruned[0, 0]) == pytest.approx(0.1)
    assert int((pruned == 0).sum()) == 3


def test_scaling_weights_or_inputs_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    weight, energy = torch.randn(8, 32, generator=generator), torch.rand(32, generator=generator)
    a = prune(weight, Unstructured(0.5), Statistics(energy)) != 0
    # powers of 2 and of 16: exact in float, fourth root included
    assert torch.equal(a, prune(4.0 * weight, Unstructured(0.5), Statistics(16.0 * energy)) != 0)


def test_columns_and_rows_of_zeros_do_no_harm() -> None:
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    weight[:, 3] = 0.0
    weight[2] = 0.0
    score = importance(weight, torch.ones(8))
    assert torch.isfinite(score).all()
    assert (score[weight == 0] == -1).all()
    assert int((prune(weight, NM(2, 4), Statistics(torch.ones(8))) != 0).sum()) == 3 * 4
