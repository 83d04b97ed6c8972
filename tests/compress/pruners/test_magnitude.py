"""Magnitude: one ranking per matrix."""

import torch

from tailcut.allocation import Unstructured
from tailcut.compress.pruners.magnitude import prune
from tailcut.compress.statistics import Statistics


def test_the_largest_of_the_whole_matrix_stay() -> None:
    weight = torch.tensor([[0.1, -0.2, 0.3], [4.0, -5.0, 6.0]])
    expected = torch.tensor([[0.0, 0.0, 0.0], [4.0, -5.0, 6.0]])
    assert torch.equal(prune(weight, Unstructured(0.5), Statistics()), expected)


def test_ties_do_not_overshoot() -> None:
    """The published rule `|w| <= threshold` would zero this whole matrix."""
    pruned = prune(torch.full((10, 10), 0.5), Unstructured(0.3), Statistics())
    assert int((pruned == 0).sum()) == 30
