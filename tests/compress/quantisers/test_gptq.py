"""GPTQ against closed forms, an independent formulation and round to nearest."""

import numpy as np
import pytest
import torch

from tailcut.allocation import NM, Bits, Dense, Unstructured
from tailcut.compress.pruners import sparsegpt
from tailcut.compress.pruners.sparsegpt import DAMPING
from tailcut.compress.quantisers import gptq, joint, rtn
from tailcut.compress.statistics import Statistics


def stats_of(hessian: torch.Tensor) -> Statistics:
    return Statistics(hessian.diagonal().clone(), hessian)


def random_hessian(columns: int, seed: int, tokens: int = 600) -> torch.Tensor:
    """2 X^T X of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return 2 * inputs.T @ inputs / tokens


def output_error(change: torch.Tensor, hessian: torch.Tensor) -> float:
    return float(((change @ hessian) * change).sum())


def test_two_by_two_by_hand() -> None:
    """w0 is rounded by e = w0 - q0; w1 takes over (H01 / H11) e with H11 damped, and is rounded then."""
    hessian = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    weight = torch.tensor([[1.0, 2.0]])
    made = gptq.quantise(weight, Dense(), 2, stats_of(hessian), clip=False)
    assert float(made.scales) == 2.0  # max |w| / 1
    assert made.q.tolist() == [[0, 1]]  # 0.5 steps: to even; w1 = 2 + 1/3 -> one step
    fine = gptq.quantise(torch.tensor([[1.0, 2.0]]), Dense(), 8, stats_of(hessian), clip=False)
    step = 2.0 / 127
    first = round(1.0 / step)
    second = 2.0 + (1.0 - first * step) / (3.0 + DAMPING[0] * 2.5)
    assert fine.q.tolist() == [[first, min(127, round(second / step))]]


def test_joint_two_by_two_by_hand() -> None:
    """Section 9's golden case, rounded: w0 goes, w1 becomes 2.3333 of the undamped formula, on the grid of max |w|."""
    hessian = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    weight = torch.tensor([[1.0, 2.0]])
    made = joint.quantise(weight, Unstructured(0.5), 8, stats_of(hessian), clip=False)
    assert made.q.tolist() == [[0, 127]]  # 2.33 is beyond the grid of the dense row, whose largest is 2
    wide = joint.quantise(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), Unstructured(0.5), 8, stats_of(hessian), clip=False)
    assert int((wide.q == 0).sum()) == 2


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("clip", [True, False])
def test_isotropic_inputs_give_round_to_nearest(bits: Bits, clip: bool) -> None:
    weight = torch.randn(12, 200, generator=torch.Generator().manual_seed(3))
    stats = stats_of(5.0 * torch.eye(200))
    searched = clip and bits in rtn.SEARCHED
    made, plain = (method.quantise(weight, Dense(), bits, stats, searched) for method in (gptq, rtn))
    assert torch.equal(made.q, plain.q)
    assert torch.equal(made.scales, plain.scales)


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_less_output_error_than_round_to_nearest_on_average(bits: Bits) -> None:
    totals = dict.fromkeys(("gptq", "rtn"), 0.0)
    for seed in range(6):
        weight = torch.randn(10, 160, generator=torch.Generator().manual_seed(seed))
        hessian = random_hessian(160, seed)
        for name, method in (("gptq", gptq), ("rtn", rtn)):
            change = method.quantise(weight, Dense(), bits, stats_of(hessian), True).dense() - weight
            totals[name] += output_error(change, hessian)
    assert totals["gptq"] < totals["rtn"]


def published(weight: torch.Tensor, hessian: torch.Tensor, bits: int) -> np.ndarray:
    """The recursion of Optimal Brain Quantisation in float64, one column after the other, without a Cholesky factor:
    the inverse Hessian of the columns that are left, by Gaussian elimination of the one that is done.
    """
    W = weight.double().numpy().copy()
    H = hessian.double().numpy()
    inverse = np.linalg.inv(H + DAMPING[0] * np.diag(H).mean() * np.eye(len(H)))
    largest = {8: 127, 4: 7, 3: 3}[bits]
    done = np.zeros_like(W)
    for j in range(W.shape[1]):
        if bits != 8 and j % 128 == 0:
            scale = np.abs(W[:, j : j + 128]).max(1) / largest
        elif j == 0:
            scale = np.abs(W).max(1) / largest
        done[:, j] = np.clip(np.rint(W[:, j] / scale), -largest, largest) * scale
        error = (W[:, j] - done[:, j]) / inverse[j, j]
        W[:, j + 1 :] -= np.outer(error, inverse[j, j + 1 :])
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return done


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_the_sweep_is_optimal_brain_quantisation(bits: Bits) -> None:
    weight = torch.randn(8, 180, generator=torch.Generator().manual_seed(7))
    hessian = random_hessian(180, 7, 3000)
    made = gptq.quantise(weight, Dense(), bits, stats_of(hessian), clip=False).dense()
    want = published(weight, hessian, bits)
    # where a corrected weight lies between two steps, float32 may go to the other one, and what follows differs then
    assert (np.abs(made.numpy() - want) < 1e-4).mean() > 0.95
    ours, theirs = (output_error(one - weight, hessian) for one in (made, torch.from_numpy(want).float()))
    assert ours == pytest.approx(theirs, rel=0.02)


@pytest.mark.parametrize("pattern", [Unstructured(0.5), Unstructured(0.333), NM(2, 4), NM(4, 8)], ids=str)
@pytest.mark.parametrize("bits", [8, 4, 3])
def test_pruned_masks_are_exact(pattern: Unstructured | NM, bits: Bits) -> None:
    weight = torch.randn(9, 264, generator=torch.Generator().manual_seed(8))
    hessian = random_hessian(264, 8)
    pruned = sparsegpt.prune(weight, pattern, stats_of(hessian))
    for method in (gptq, rtn):
        made = method.quantise(pruned, Dense(), bits, stats_of(hessian), True)
        assert (made.q[pruned == 0] == 0).all()


def test_joint_removes_what_sparsegpt_removes_first() -> None:
    """Before any rounding error has been handed on, the first block's mask is SparseGPT's."""
    weight = torch.randn(9, 264, generator=torch.Generator().manual_seed(8))
    hessian = random_hessian(264, 8)
    pruned = sparsegpt.prune(weight, Unstructured(0.5), stats_of(hessian))
    made = joint.quantise(weight, Unstructured(0.5), 8, stats_of(hessian), True)
    assert (made.q[:, :128][pruned[:, :128] == 0] == 0).all()


@pytest.mark.parametrize("bits", [4, 3])
def test_joint_loses_less_than_rounding_after(bits: Bits) -> None:
    after = joined = 0.0
    for seed in range(6):
        weight = torch.randn(10, 160, generator=torch.Generator().manual_seed(seed))
        hessian = random_hessian(160, seed)
        pruned = sparsegpt.prune(weight, Unstructured(0.5), stats_of(hessian))
        later = gptq.quantise(pruned, Dense(), bits, stats_of(hessian), True).dense()
        after += output_error(later - weight, hessian)
        one = joint.quantise(weight, Unstructured(0.5), bits, stats_of(hessian), True).dense()
        joined += output_error(one - weight, hessian)
    assert joined < after
