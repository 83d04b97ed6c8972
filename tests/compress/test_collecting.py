"""Linears that are handed the same tensor share their sums, and nothing but that."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tailcut.checkpoint import Checkpoint
from tailcut.compress.blocks import open_stream
from tailcut.compress.collecting import SharedSums, collect
from tailcut.compress.discovery import linears_of_skeleton
from tailcut.compress.resident import Weights
from tailcut.compress.skeleton import build_skeleton
from tailcut.compress.statistics import Accumulator
from tailcut.errors import InputError


def sums(*names: str) -> SharedSums:
    return SharedSums({name: [Accumulator(4, "hessian")] for name in names})


def test_the_same_tensor_is_added_once_and_known_by_all() -> None:
    a, b = sums("q", "k", "o"), sums("q", "k", "o")
    for seed in range(3):
        inputs = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(seed))
        a.add("q", inputs)
        a.add("k", inputs)
        a.add("o", 2 * inputs)
        b.add("q", inputs)
        b.add("k", inputs.clone())  # equal, but not the same
        b.add("o", 2 * inputs)
    got, apart = a.result(), b.result()
    assert got["q"] is got["k"]
    assert apart["q"] is not apart["k"]
    for name in ("q", "k", "o"):
        ours, theirs = got[name].hessian, apart[name].hessian
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours, theirs)


def test_sums_of_other_kinds_are_not_shared() -> None:
    inputs = torch.ones(1, 3, 4)
    mixed = SharedSums({"q": [Accumulator(4, "hessian")], "k": [Accumulator(4, "norms"), Accumulator(4, "moments")]})
    mixed.add("q", inputs)
    mixed.add("k", inputs)
    found = mixed.result()
    assert found["q"].hessian is not None
    assert found["q"].total is None
    assert found["k"].hessian is None
    assert found["k"].total is not None
    assert found["k"].energy is not None


def test_inputs_that_part_later_are_refused() -> None:
    shared, inputs = sums("q", "k"), torch.ones(1, 3, 4)
    shared.add("q", inputs)
    shared.add("k", inputs)
    shared.add("q", inputs.clone())
    with pytest.raises(InputError, match=r"k: shares its input with q at times only"):
        shared.add("k", inputs)


def test_a_linear_that_saw_nothing_is_named() -> None:
    shared = sums("q", "expert")
    shared.add("q", torch.ones(1, 3, 4))
    with pytest.raises(InputError, match="expert: saw no calibration input"):
        shared.result()


def test_llama_s_seven_linears_have_four_inputs(tiny_model: Callable[..., Path]) -> None:
    checkpoint = Checkpoint(tiny_model("llama"))
    skeleton = build_skeleton(checkpoint)
    linears = [linear for linear in linears_of_skeleton(checkpoint, skeleton) if linear.block == 0]
    weights = Weights(checkpoint, skeleton, "cpu", torch.float32)
    weights.load_rest()
    stream = open_stream(weights, np.arange(40).reshape(2, 20))
    found = collect(weights, 0, {linear: frozenset({"hessian"}) for linear in linears}, stream)
    assert len(found) == 7
    assert len({id(stats) for stats in found.values()}) == 4
