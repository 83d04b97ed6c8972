"""Columns that stay make up for those that go, by least squares."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tailcut.compress.calibration import Calibration, draw
from tailcut.compress.perplexity import directory_nll
from tailcut.compress.structured._cutting import refit
from tailcut.compress.structured_run import Structuring, cut_structured

KEPT = torch.tensor([0, 2, 3, 7])


def problem(rows: int = 200) -> tuple[Tensor, Tensor]:
    """Weights [5, 9] and correlated inputs [rows, 9]."""
    rng = torch.Generator().manual_seed(0)
    mixing = torch.randn(9, 9, generator=rng)
    return torch.randn(5, 9, generator=rng), torch.randn(rows, 9, generator=rng) @ mixing


def test_it_is_the_least_squares_solution() -> None:
    weight, inputs = problem()
    want = torch.linalg.lstsq(inputs[:, KEPT].double(), (inputs @ weight.T).double()).solution.T
    got = refit(weight, inputs.double().T @ inputs.double(), KEPT, 1e-9)
    # rounded to float32 at the end, and a ridge of 1e-9 beside inputs whose squares lie up to 1e4 apart
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)


def test_much_ridge_leaves_the_columns_as_they_are() -> None:
    weight, inputs = problem()
    gram = inputs.T @ inputs
    torch.testing.assert_close(refit(weight, gram, KEPT, 1e9), weight[:, KEPT], rtol=1e-5, atol=1e-5)
    assert torch.equal(refit(weight, torch.zeros(9, 9), KEPT, 0.01), weight[:, KEPT])
    assert torch.equal(refit(weight, gram, torch.arange(9), 0.01), weight)


def test_inputs_that_share_nothing_change_nothing() -> None:
    weight, _ = problem()
    torch.testing.assert_close(refit(weight, torch.diag(torch.arange(1.0, 10.0)), KEPT, 0.01), weight[:, KEPT])


def test_a_copy_of_a_removed_input_takes_its_weight() -> None:
    """Input 8 is input 7 doubled: without it, 7's column grows by twice the other's."""
    weight, inputs = problem()
    inputs[:, 8] = 2 * inputs[:, 7]
    kept = torch.arange(8)
    got = refit(weight, inputs.double().T @ inputs.double(), kept, 1e-9)
    want = weight[:, :8].clone()
    want[:, 7] += 2 * weight[:, 8]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)  # the ridge of 1e-9, as above


def test_a_refitted_model_is_nearer_to_the_whole_one(
    tiny_model: Callable[..., Path], calibration: Calibration, tmp_path: Path
) -> None:
    """On the text that it was refitted on, a block's error is what is minimised; logits follow."""
    source = tiny_model("llama")
    tokens = draw(calibration, source, 128).tokens
    errors = []
    dense = directory_nll(source, tokens, device="cpu")
    for wanted in (True, False):
        out = tmp_path / str(wanted)
        asked = Structuring(0.5, importance="wanda", multiple=8, refit=wanted, calibration=calibration, device="cpu")
        manifest = cut_structured(source, out, asked)
        assert manifest.details["refit"] is wanted
        errors.append(float(np.abs(directory_nll(out, tokens, device="cpu") - dense).sum()))
    assert errors[0] < 0.9 * errors[1]
