"""The quick and the slow measure against transformers' own forward pass, for every family."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tailcut.allocation import NM, Allocation, Budget, LayerPlan, LayerScore, LayerScores, Unstructured
from tailcut.checkpoint import Checkpoint
from tailcut.compress.calibration import Calibration
from tailcut.compress.discovery import find_linears
from tailcut.compress.run import compress
from tailcut.compress.searches import Effort, Task, _prepare
from tailcut.compress.searches._grid import Grid
from tailcut.compress.searches._prepare import Subject, examine, prepare
from tailcut.errors import InputError
from tailcut.progress import silent

TinyModel = Callable[..., Path]
EFFORT = Effort(evaluations=10, tokens=(48, 96, 144), final_tokens=72)


def bare_scores(directory: Path) -> LayerScores:
    linears = find_linears(Checkpoint(directory))
    return LayerScores("model", tuple(LayerScore(one.name, one.block, one.shape, {}) for one in linears), 1)


def examined(directory: Path, calibration: Calibration, pruner: str) -> Subject:
    return examine(Task(directory, bare_scores(directory), Budget(0.5), pruner, calibration, EFFORT, "cpu"), {})


def prepared(directory: Path, calibration: Calibration, pruner: str) -> tuple[Subject, Grid, Any, Any]:
    subject = examined(directory, calibration, pruner)
    return subject, subject.grid, *prepare(subject, silent)


def model_of(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def logits_of(model: Any, tokens: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.from_numpy(tokens.copy()), use_cache=False).logits
    return logits.double()


def divergence(dense: Any, cut: Any, tokens: np.ndarray, scored: slice = slice(None)) -> float:
    """KL in float64 from transformers' logits, over these positions."""
    p, q = (torch.log_softmax(logits_of(model, tokens)[:, scored], -1) for model in (dense, cut))
    return float((p.exp() * (p - q)).sum(-1).mean())


def other_levels(grid: Grid) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 40, len(grid.names))


def cut_by_magnitude(directory: Path, grid: Grid, levels: np.ndarray) -> Any:
    cut = model_of(directory)
    for name, level in zip(grid.names, levels.tolist(), strict=True):
        weight = cut.get_submodule(name).weight.data  # magnitude ranks the whole matrix: its layout does not matter
        count = int(weight.numel() * level * grid.ladder.unit + 1e-6)
        weight.view(-1)[weight.abs().flatten().argsort(stable=True)[:count]] = 0.0
    return cut


def test_quick_divergence_is_that_of_the_pruned_model(
    family: str, tiny_model: TinyModel, calibration: Calibration
) -> None:
    directory = tiny_model(family)
    subject, grid, proxy, _ = prepared(directory, calibration, "magnitude")
    levels = other_levels(grid)
    wanted = divergence(model_of(directory), cut_by_magnitude(directory, grid, levels), subject.texts.search)
    every = range(proxy.batches)
    # float32 forward passes of three tiny blocks against float64 sums of float32 logits
    assert proxy.divergence(levels, every) == pytest.approx(wanted, rel=1e-3, abs=1e-6)
    assert proxy.divergence(np.zeros_like(levels), every) == pytest.approx(0.0, abs=1e-6)
    assert proxy.divergence(levels, every) == pytest.approx(wanted, rel=1e-3, abs=1e-6)  # back where it was


@pytest.mark.parametrize("every", [2, 5, 10_000])
def test_quick_divergence_may_score_some_positions(
    every: int, tiny_model: TinyModel, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of windows of 48 tokens: every other; 9 in the place of 48; the last."""
    monkeypatch.setattr(_prepare, "_every", lambda subject: every)
    directory = tiny_model("llama")
    subject, grid, proxy, finals = prepared(directory, calibration, "magnitude")
    levels, step = other_levels(grid), min(every, subject.texts.search.shape[1])
    scored = slice(step - 1, None, step)
    wanted = divergence(model_of(directory), cut_by_magnitude(directory, grid, levels), subject.texts.search, scored)
    assert proxy.divergence(levels, range(proxy.batches)) == pytest.approx(wanted, rel=1e-3, abs=1e-6)
    assert finals.reference.every == 1  # what decides scores them all


@pytest.mark.parametrize(("head", "expected"), [(0.15, 1), (1.5, 3)])
def test_fewer_positions_where_heads_take_longer_than_blocks(
    head: float,
    expected: int,
    tiny_model: TinyModel,
    calibration: Calibration,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`head`: weights of one, in those of all blocks. The quick measure needs two, the dense model's and the cut one's."""
    subject = examined(tiny_model("llama"), calibration, "magnitude")
    blocks = sum(linear.parameters for linear in subject.linears)
    monkeypatch.setattr(_prepare, "head_parameters", lambda weights: int(head * blocks))
    assert _prepare._every(subject) == expected


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("pruner", ["wanda", "sparsegpt"])
def test_slow_divergence_is_that_of_the_compressed_directory(
    kind: str, pruner: str, tiny_model: TinyModel, calibration: Calibration, tmp_path: Path
) -> None:
    directory = tiny_model(kind)
    subject, grid, _, finals = prepared(directory, calibration, pruner)
    plans = {name: LayerPlan(Unstructured(0.3 + 0.4 * (place % 2))) for place, name in enumerate(grid.names)}
    allocation = Allocation(plans, {"allocator": "test"})
    compress(directory, allocation, tmp_path / "cut", pruner=pruner, calibration=calibration, device="cpu")
    wanted = divergence(model_of(directory), model_of(tmp_path / "cut"), subject.texts.final)
    assert finals.divergence(allocation, silent, "plan") == pytest.approx(wanted, rel=1e-3)
    assert finals.divergence(allocation, silent, "plan") == pytest.approx(wanted, rel=1e-3)  # not moved by the first


@pytest.mark.parametrize(
    ("budget", "pruner", "quantiser"),
    [
        (Budget(0.5, pattern=NM(4, 8)), "sparsegpt", "gptq"),
        (Budget(0.0, bits=3.5), "wanda", "gptq"),
        (Budget(0.5, bits=3.5), "wanda", "rtn"),
        (Budget(0.5, pattern=NM(2, 4), bits=3.5), "sparsegpt", "joint"),
    ],
)
def test_mixtures_are_cut_and_rounded_as_compress_does(
    budget: Budget, pruner: str, quantiser: str, tiny_model: TinyModel, calibration: Calibration, tmp_path: Path
) -> None:
    """Levels drawn at random. The slow measure is of what `compress` writes; the quick one takes statistics of the dense
    model, which for the first block are the real ones: there its weights are bit for bit the written ones.
    """
    directory = tiny_model("gpt2")
    task = Task(directory, bare_scores(directory), budget, pruner, calibration, EFFORT, "cpu", None, quantiser)
    subject = examine(task, {})
    proxy, finals = prepare(subject, silent)
    grid = subject.grid
    levels = np.random.default_rng(0).integers(0, grid.ladder.top + 1, len(grid.names))
    allocation = Allocation(grid.plans(levels), {"allocator": "test"})
    out = tmp_path / "cut"
    compress(directory, allocation, out, pruner=pruner, quantiser=quantiser, calibration=calibration, device="cpu")
    dense, cut = model_of(directory), model_of(out)
    assert finals.divergence(allocation, silent, "plan") == pytest.approx(
        divergence(dense, cut, subject.texts.final), rel=1e-3
    )
    for place, name in enumerate(grid.names):
        if grid.blocks[place] == 0:
            made = proxy._bank.weight(name, int(levels[place]))
            assert torch.equal(made, cut.get_submodule(name).weight.data), name


def test_no_token_is_in_two_texts(tiny_model: TinyModel, calibration: Calibration) -> None:
    subject, *_ = prepared(tiny_model("llama"), calibration, "magnitude")
    texts = subject.texts
    assert texts.search.shape == (6, 24)
    assert texts.final.shape == (3, 24)
    assert texts.fidelities == (1, 2, 3)
    parts = [texts.calibration.tokens, texts.search, texts.final]
    assert len({row.tobytes() for part in parts for row in part}) == sum(len(part) for part in parts)


def test_a_bank_that_holds_one_matrix_gives_the_same(tiny_model: TinyModel, calibration: Calibration) -> None:
    _, grid, proxy, _ = prepared(tiny_model("llama"), calibration, "wanda")
    levels = other_levels(grid)
    wanted = proxy.divergence(levels, [0])
    proxy._bank._limit = 1
    assert proxy.divergence(levels[::-1].copy(), [0]) != wanted
    assert proxy.divergence(levels, [0]) == wanted
    assert len(proxy._bank._kept) == 1


def test_scores_of_another_model_are_refused(tiny_model: TinyModel, calibration: Calibration) -> None:
    scores = bare_scores(tiny_model("gpt2"))
    with pytest.raises(InputError, match="do not name the same matrices"):
        examine(Task(tiny_model("llama"), scores, Budget(0.5), "wanda", calibration, EFFORT, "cpu"), {})
