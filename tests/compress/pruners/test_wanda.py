"""Wanda: |W| * ||x||, per row."""

import pytest
import torch

from tailcut.allocation import Unstructured
from tailcut.compress.pruners import magnitude
from tailcut.compress.pruners.wanda import prune
from tailcut.compress.statistics import Statistics


def test_large_inputs_protect_small_weights() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]])
    energy = torch.tensor([100.0, 1.0, 1.0, 1.0])  # norms 10, 1, 1, 1
    expected = torch.tensor([[1.0, 0.0, 0.0, 4.0], [4.0, 3.0, 0.0, 0.0]])
    assert torch.equal(prune(weight, Unstructured(0.5), Statistics(energy)), expected)


def test_scaling_the_inputs_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, energy = torch.randn(8, 32, generator=generator), torch.rand(32, generator=generator)
    a = prune(weight, Unstructured(0.5), Statistics(energy))
    assert torch.equal(a, prune(weight, Unstructured(0.5), Statistics(16.0 * energy)))  # a power of 4: exact in float


def test_equal_inputs_give_magnitude_within_a_row() -> None:
    weight = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    a = prune(weight, Unstructured(0.6), Statistics(torch.ones(64)))
    assert torch.equal(a, magnitude.prune(weight, Unstructured(0.6), Statistics()))


def test_without_statistics_it_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="norms"):
        prune(torch.ones(2, 2), Unstructured(0.5), Statistics())
