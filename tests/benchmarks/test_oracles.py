"""The comparison with the public implementations sees what differs (seeded differences; no public code is needed)."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

# written for these tests: what prune_wanda of a public repository does, in few lines, with one place to break it
PRUNE = """
import torch
from .data import get_loaders
from .sums import energies

def prune_wanda(args, model, tokenizer, device=torch.device("cuda:0"), prune_n=0, prune_m=0):
    get_loaders("c4")
    inps, outs, _, _ = prepare_calibration_input(model, None, device)
    for layer in model.model.layers:
        linears = {name: m for name, m in layer.named_modules() if type(m) is torch.nn.Linear}
        found = energies(layer, linears, inps, args.nsamples)
        for name, m in linears.items():
            print("pruning", name)
            score = m.weight.data.abs() * found[name].sqrt().cuda()
            if prune_n:
                groups = score.reshape(len(score), -1, prune_m)
                gone = groups.argsort(dim=-1, stable=True)[..., :prune_n]
                mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, gone, True).reshape(score.shape)
            else:
                gone = score.argsort(dim=1, stable=True)[:, : int(score.shape[1] * args.sparsity_ratio)]
                mask = torch.zeros_like(score, dtype=torch.bool).scatter_(1, gone, True)
            BREAK
            m.weight.data[mask] = 0
    torch.cuda.synchronize()
"""
SUMS = """
import torch

def energies(layer, linears, inps, samples):
    found = {}
    def hook(name):
        def add(_, given, out):
            found[name] = found.get(name, 0.0) + given[0].flatten(0, 1).float().square().sum(0)
        return add
    handles = [m.register_forward_hook(hook(name)) for name, m in linears.items()]
    for j in range(samples):
        layer(inps[j].unsqueeze(0), attention_mask=None, position_ids=None)[0]
    for h in handles:
        h.remove()
    return found
"""
# the two sides are ours here; SCALE makes theirs worse by a known share
SPARSEGPT = """
import torch
from quant import *
from tailcut.allocation import NM, Unstructured
from tailcut.compress.pruners import sparsegpt
from tailcut.compress.statistics import Accumulator

class SparseGPT:
    def __init__(self, layer):
        self.layer, self.sums = layer, Accumulator(layer.weight.shape[1], "hessian")
    def add_batch(self, inp, out):
        self.sums.add(inp, 1)
    def fasterprune(self, sparsity, prunen=0, prunem=0):
        W = self.layer.weight.data
        pattern = NM(prunem - prunen, prunem) if prunen else Unstructured(sparsity)
        made = sparsegpt.prune(W, pattern, self.sums.result())
        self.layer.weight.data = W + (made - W) * SCALE
"""


@pytest.fixture
def script(load_script: Callable[[str], Any]) -> Any:
    return load_script("oracles")


@pytest.fixture
def compare(load_script: Callable[[str], Any]) -> Any:
    return load_script("oracle_compare")


@pytest.fixture
def run(
    script: Any, tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, Any, str]]:
    """run(name, files of the checkout) -> exit code, rows, what was printed; `files` are path -> text."""

    def call(test: str, files: dict[str, str]) -> tuple[int, Any, str]:
        for name, text in files.items():
            path = tmp_path / "checkouts" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        words = ["run", str(tiny_model("llama")), "--checkouts", str(tmp_path / "checkouts"), "--tests", test]
        words += [
            "--samples",
            "3",
            "--seqlen",
            "16",
            "--every",
            "1",
            "--commit",
            "abc",
            "-o",
            str(tmp_path / "out.json"),
        ]
        code = script.main(words)
        content = json.loads((tmp_path / "out.json").read_bytes())
        return code, content["tests"].get(test, {}).get("rows"), "".join(capsys.readouterr())

    return call


def public_wanda(broken: str = "pass") -> dict[str, str]:
    return {"wanda/lib/prune.py": PRUNE.replace("BREAK", broken), "wanda/lib/sums.py": SUMS}


def test_the_same_rule_in_other_words_gives_the_same_masks(run: Callable[..., tuple[int, Any, str]]) -> None:
    code, rows, said = run("wanda", public_wanda())
    assert code == 0
    assert {row["target"] for row in rows} == {"0.5", "0.7", "2:4", "4:8"}
    assert sum(row["ours_zeros"] for row in rows) > 0
    assert all(row["unexplained"] == 0 and row["ours_zeros"] == row["theirs_zeros"] for row in rows)
    assert "All 2 limits are met" in said
    assert "locuslab/wanda of an unknown commit (lib/prune.py: prune_wanda)" in said
    assert not [name for name in sys.modules if name.startswith("oracle_wanda")]


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("mask[0] = mask[0].roll(1)", "differ without a tie"),  # one row of each matrix is wrong
        ("mask[:, 0] = True", "removed by one side"),
    ],
)
def test_a_seeded_difference_fails_the_run(run: Callable[..., tuple[int, Any, str]], broken: str, why: str) -> None:
    code, _, said = run("wanda", public_wanda(broken))
    assert code == 1
    assert f"wanda: {'bits that ' if 'tie' in why else 'more weights '}{why}" in said
    assert "Above their limits" in said


@pytest.mark.parametrize(("scale", "code"), [(1.0, 0), (1.003, 0), (1.02, 1)])
def test_output_errors_are_held_to_one_percent(
    run: Callable[..., tuple[int, Any, str]], scale: float, code: int
) -> None:
    files = {"sparsegpt/sparsegpt.py": SPARSEGPT.replace("SCALE", str(scale)), "sparsegpt/quant.py": "Q = 1"}
    found, rows, said = run("sparsegpt", files)
    assert found == code
    # an error of squares: 1.02 is 4 % more
    assert [row["theirs"] / row["ours"] for row in rows] == pytest.approx([scale**2] * len(rows), rel=1e-4)
    assert ("sparsegpt: output error" in said.splitlines()[-1]) == bool(code)
    assert "quant" not in sys.modules


def test_what_has_no_checkout_is_left_out_and_said(run: Callable[..., tuple[int, Any, str]], tmp_path: Path) -> None:
    run("wanda", public_wanda())
    code, rows, said = run("ria", {})
    assert (code, rows) == (0, None)
    assert "ria: no checkout Relative-importance-and-activation-pruning; left out" in said


def masked(*places: int, size: int = 6) -> torch.Tensor:
    return torch.tensor([[place in places for place in range(size)]])


def kinds(found: dict[str, int]) -> tuple[int, ...]:
    return tuple(found[key] for key in ("differ", "exact", "rounded", "counted", "unexplained"))


def test_ties_are_told_from_differences(compare: Any) -> None:
    score = torch.tensor([[1.0, 2.0, 2.0, 3.0, 4.0, 4.0 * (1 + 1e-6)]])
    assert kinds(compare.mask_difference(masked(0, 1), masked(0, 1), score, 6)) == (0, 0, 0, 0, 0)
    assert kinds(compare.mask_difference(masked(0, 1), masked(0, 2), score, 6)) == (2, 2, 0, 0, 0)
    # five of six: the last two are equal but for float32
    ours, theirs = masked(0, 1, 2, 3, 4), masked(0, 1, 2, 3, 5)
    assert kinds(compare.mask_difference(ours, theirs, score, 6)) == (2, 0, 2, 0, 0)
    assert kinds(compare.mask_difference(ours, theirs, score, 6, rounding=1e-7)) == (2, 0, 0, 0, 2)
    # 3 in place of 1 is nobody's tie
    assert kinds(compare.mask_difference(masked(0, 1), masked(3, 1), score, 6)) == (2, 0, 0, 0, 2)


def test_a_tie_of_the_rows_own_score_is_one(compare: Any) -> None:
    row = torch.tensor([[3.0, 1.0, 2.0, 1.0 + 1e-7, 5.0, 4.0]])
    tied = compare.tied_in_row(row)
    assert tied.tolist() == [[False, True, False, True, False, False]]
    # what the row's score takes together lies apart by the shares that rank it
    shares = torch.tensor([[0.5, 0.1, 0.3, 0.2, 0.9, 0.7]])
    assert kinds(compare.mask_difference(masked(1, 2), masked(3, 2), shares, None)) == (2, 0, 0, 0, 2)
    assert kinds(compare.mask_difference(masked(1, 2), masked(3, 2), shares, None, tied=tied)) == (2, 0, 2, 0, 0)
    # and what is no tie stays unexplained
    assert kinds(compare.mask_difference(masked(1, 2), masked(0, 2), shares, None, tied=tied)) == (2, 0, 1, 0, 1)


def test_weights_between_two_counts_are_told_apart(compare: Any) -> None:
    score = torch.arange(1.0, 7.0)[None]
    assert kinds(compare.mask_difference(masked(0), masked(0, 1, 2, 3), score, None)) == (3, 0, 0, 3, 0)
    assert kinds(compare.mask_difference(masked(0), masked(0, 5), score, None)) == (1, 0, 0, 0, 1)


def test_groups_are_ranked_apart(compare: Any) -> None:
    score = torch.tensor([[1.0, 2.0, 3.0, 3.0, 5.0, 5.0]])
    # in groups of two: ties in the second and third, none in the first
    found = compare.mask_difference(masked(0, 2, 4), masked(1, 3, 5), score, 2)
    assert kinds(found) == (6, 4, 0, 0, 2)


def test_numbers_of_other_units_are_refused(compare: Any) -> None:
    assert compare.vector_difference([1.0, 0.0], [1.0, 0.5])["most"] == 0.5
    with pytest.raises(ValueError, match="3 of our numbers against 2 of theirs"):
        compare.vector_difference([1.0, 2.0, 3.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("test", "row", "wrong"),
    [
        ("alpha-metrics", {"metric": "alpha_mid", "theirs": 2.0}, {"ours_on_their_eigenvalues": (2.00001, 2.001)}),
        ("alpha-ratios", {"above_one": 0}, {"difference_on_their_metric": ({"most": 1e-12}, {"most": 1e-6})}),
        ("owl", {}, {"difference": ({"most": 1e-9}, {"most": 1e-3})}),
        ("lamp", {}, {"difference_from_every_weight": ({"most": 1e-6}, {"most": 1e-3})}),
        ("dsnot", {"weights": 1000}, {"differ_with_their_variance": (0, 4)}),
    ],
)
def test_every_other_limit_sees_a_seeded_difference(
    load_script: Callable[[str], Any], test: str, row: dict[str, Any], wrong: dict[str, tuple[Any, Any]]
) -> None:
    table = load_script("oracles_table")
    ((key, values),) = wrong.items()
    passed = [all(one.passed for one in table.checks({"tests": {test: {"rows": [row | {key: v}]}}})) for v in values]
    assert passed == [True, False]


def test_a_published_sparsity_above_one_is_no_difference(load_script: Callable[[str], Any]) -> None:
    """No matrix can lose more than all of itself; ours is capped there."""
    rows = [{"above_one": 2, "difference_on_their_metric": {"most": 0.1}}]
    assert all(one.passed for one in load_script("oracles_table").checks({"tests": {"alpha-ratios": {"rows": rows}}}))
