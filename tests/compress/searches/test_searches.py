"""evo and auto from end to end on a tiny model: what they keep, that they go on, and that auto is no worse than the rest."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tailcut import codec, plugins
from tailcut.allocation import NM, Allocation, Budget, Dense, LayerPlan, LayerScores
from tailcut.compress import searches
from tailcut.compress.allocators import Settings
from tailcut.compress.calibration import Calibration
from tailcut.compress.measure import measure
from tailcut.compress.searches import Effort, Task, search
from tailcut.compress.searches._proxy import Proxy
from tailcut.compress.searches._trace import read_trace
from tailcut.errors import InputError

TinyModel = Callable[..., Path]
Tailcut = Callable[..., tuple[int, str, str]]
EFFORT = Effort(evaluations=40, tokens=(48, 96, 144), final_tokens=96, finals=3)
SEARCHES = plugins.names(searches.PACKAGE)
PLANTED = "model.layers.1.mlp.gate_proj"
every_search = pytest.mark.parametrize("name", SEARCHES)


@pytest.fixture(scope="session")
def scores(tiny_model: TinyModel, calibration: Calibration) -> LayerScores:
    metrics = ("alpha_peak", "owl", "dlp", "magnitude")
    return measure(tiny_model("llama"), metrics=metrics, calibration=calibration, device="cpu").scores


@pytest.fixture
def task(tiny_model: TinyModel, scores: LayerScores, calibration: Calibration) -> Task:
    return Task(tiny_model("llama"), scores, Budget(0.6), "wanda", calibration, EFFORT, "cpu")


def finals_of(allocation: Allocation) -> dict[str, float]:
    pairs = (item.rpartition(" ") for item in allocation.provenance["finals"].split("; "))
    return {name: float(value) for name, _, value in pairs}


@every_search
def test_keeps_what_allocators_keep(name: str, task: Task) -> None:
    budget = Budget(0.6, cap=0.7)
    allocation = search(name, replace(task, budget=budget))
    sizes = {layer.name: layer.parameters for layer in task.scores.layers}
    assert list(allocation.plans) == [layer.name for layer in task.scores.layers]
    assert allocation.sparsity(sizes) == pytest.approx(0.6, abs=1e-12)
    assert all(0.0 <= plan.pattern.sparsity <= 0.7 for plan in allocation.plans.values())
    assert codec.from_json(Allocation, codec.to_json(allocation)) == allocation
    assert allocation.provenance["allocator"] == name


MIXTURES = {
    "4:8": (Budget(0.5, pattern=NM(4, 8)), Settings()),
    "nearly 5:8, dense allowed": (Budget(0.4), Settings(group=8, allow_dense=True)),
    "3.5 bits": (Budget(0.0, bits=3.5), Settings()),
    "3.5 bits of half": (Budget(0.5, bits=3.5, bit_choices=(8, 4, 3)), Settings()),
    "4 bits of 2:4": (Budget(0.5, pattern=NM(2, 4), bits=4.0), Settings()),
}


@every_search
@pytest.mark.parametrize("mixture", MIXTURES)
def test_mixtures_keep_their_mean(name: str, mixture: str, task: Task) -> None:
    """Matrices of the tiny model are 512, 1024 or 2048 weights, of which any mean of the smallest can be made."""
    budget, settings = MIXTURES[mixture]
    task = replace(task, budget=budget, settings=settings, quantiser="rtn", pruner="magnitude")
    allocation = search(name, task)
    sizes = {layer.name: layer.parameters for layer in task.scores.layers}
    total, plans = sum(sizes.values()), allocation.plans
    half_a_unit = 0.5 * min(sizes.values()) / total
    if budget.bits is None:
        assert 0.0 <= allocation.sparsity(sizes) - budget.sparsity < half_a_unit / 4
        assert {plan.pattern.block for plan in plans.values() if isinstance(plan.pattern, NM)} == {8}
        assert settings.allow_dense or all(plan.pattern.sparsity for plan in plans.values())
        assert "obey 2:4" in allocation.provenance["two_four"]
    else:
        mean = sum((plan.bits or 0) * sizes[name] for name, plan in plans.items()) / total
        assert 0.0 <= budget.bits - mean < half_a_unit
        assert {plan.bits for plan in plans.values()} <= set(budget.bit_choices)
        assert len({plan.pattern for plan in plans.values()}) == 1
        assert allocation.sparsity(sizes) == pytest.approx(budget.sparsity)
        assert allocation.provenance["bits_planned"] == f"{mean:.6f}"
    if name == "auto":
        assert {"uniform", "refined", allocation.provenance["start"]} <= set(finals_of(allocation))


@pytest.fixture(scope="session")
def planted(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of which one matrix loses by what is done to it. In all others 7 of 8 weights are zeros and the rest 0.3 or
    -0.3, which 1:4 and 2 bits keep as they are.
    """
    directory = tmp_path_factory.mktemp("models") / "planted"
    shutil.copytree(tiny_model("llama"), directory)
    weights = load_file(directory / "model.safetensors")
    for name, weight in weights.items():
        if "_proj." in name and not name.startswith(PLANTED):
            signs = np.where(weight < 0, -0.3, 0.3).astype(weight.dtype)
            weights[name] = np.where(np.arange(weight.shape[1]) % 8 == 0, signs, weight.dtype.type(0.0))
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return directory


@pytest.mark.parametrize(("name", "kind"), [("auto", "bits"), ("auto", "nm"), ("evo", "bits")])
def test_the_one_matrix_that_matters_is_spared(name: str, kind: str, planted: Path, task: Task) -> None:
    """The budget leaves just enough to spare one of the large matrices, so that the best plan is known."""
    sizes = {layer.name: layer.parameters for layer in task.scores.layers}
    rest = 1.0 - sizes[PLANTED] / sum(sizes.values())
    if kind == "bits":
        budget, settings = Budget(0.0, bits=8.0 - 6.0 * rest), Settings()
        spared, lost = LayerPlan(Dense(), 8), LayerPlan(Dense(), 2)
    else:
        budget, settings = Budget(0.75 * rest), Settings(group=4, allow_dense=True)
        spared, lost = LayerPlan(Dense()), LayerPlan(NM(1, 4))
    # neither magnitude nor rounding to the nearest needs statistics: what they lose of the others is nothing at all
    how = replace(task, model=planted, budget=budget, settings=settings, pruner="magnitude", quantiser="rtn")
    allocation = search(name, replace(how, effort=replace(EFFORT, evaluations=300)))
    assert allocation.plans == {layer: spared if layer == PLANTED else lost for layer in sizes}


@every_search
def test_a_number_of_evaluations_gives_the_same_plan_again(name: str, task: Task) -> None:
    assert search(name, task) == search(name, task)
    other = replace(task, calibration=replace(task.calibration, seed=2))
    assert search(name, other).plans != search(name, task).plans


class Killed(BaseException):
    """Stands for Ctrl-C: nothing may catch it."""


@every_search
@pytest.mark.parametrize("after", [0, 25])
def test_goes_on_where_it_was_stopped(
    name: str, after: int, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = search(name, replace(task, trace=tmp_path / "whole.jsonl"))
    task = replace(task, trace=tmp_path / "trace.jsonl")
    measured = 0
    divergence = Proxy.divergence

    def counting(proxy: Proxy, *arguments: Any) -> float:
        nonlocal measured
        measured += 1
        if measured > after:
            raise Killed
        return divergence(proxy, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Proxy, "divergence", counting)
        with pytest.raises(Killed):
            search(name, task)
    measured = -(10**9)
    monkeypatch.setattr(Proxy, "divergence", counting)
    assert search(name, task) == whole
    measured_again = measured + 10**9
    quick = sum(record.stage in ("candidates", "evolve") for record in read_trace(tmp_path / "whole.jsonl"))
    assert measured_again == quick - after
    keys = [[record.key for record in read_trace(tmp_path / one)] for one in ("whole.jsonl", "trace.jsonl")]
    assert keys[0] == keys[1]


def test_auto_is_no_worse_than_the_rest(task: Task) -> None:
    allocation = search("auto", task)
    finals, said = finals_of(allocation), allocation.provenance
    assert finals[said["winner"]] == min(finals.values())
    assert {"uniform", said["start"], "refined"} <= set(finals)
    assert finals[said["winner"]] < finals["uniform"]  # of this model it is known, and of this seed


def test_auto_takes_an_unrefined_plan_where_refining_did_not_help(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quick measure that prefers what is worst must not reach the result."""
    divergence = Proxy.divergence
    monkeypatch.setattr(Proxy, "divergence", lambda *arguments: -divergence(*arguments))
    allocation = search("auto", task)
    finals = finals_of(allocation)
    assert finals["refined"] > finals["uniform"]
    assert allocation.provenance["winner"] != "refined"
    assert finals[allocation.provenance["winner"]] <= finals["uniform"]


def test_time_is_kept(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that the measurements move: 1 s each, 0 between. What is left after the finals is used up, and no more."""
    from tailcut.compress.searches import _prepare, _trace

    now = 0.0

    def measured(*arguments: Any) -> float:
        nonlocal now
        now += 1.0
        return divergence(*arguments)

    divergence = Proxy.divergence
    monkeypatch.setattr(Proxy, "divergence", measured)
    for module in (_trace, _prepare):
        monkeypatch.setattr(module, "time", type("Clock", (), {"monotonic": staticmethod(lambda: now)}))
    allocation = search("auto", replace(task, effort=replace(EFFORT, evaluations=None, minutes=1.0)))
    spent = dict(item.rsplit(" ", 1) for item in allocation.provenance["seconds"].split(", "))
    assert math.isclose(float(spent["candidates"]) + float(spent["evolve"]), 60.0)
    assert float(spent["candidates"]) <= 19.0  # 30 %, and the last measurement of each of three rounds
    assert allocation.provenance["minutes"] == "1.0"


def test_without_time_to_compare_the_finals_are_of_different_plans(task: Task) -> None:
    """Time for the dear cuts alone: beside uniform a candidate is cut, not uniform again."""
    allocation = search("auto", replace(task, effort=replace(EFFORT, evaluations=None, minutes=1e-6)))
    said = allocation.provenance
    assert said["candidates"] == "1"
    assert int(said["candidates_known"]) > 2
    finals = finals_of(allocation)
    assert len(finals) == 3  # uniform and the two that are always judged
    assert "refined" not in finals


@every_search
@pytest.mark.parametrize(
    ("budget", "settings", "said"),
    [
        (Budget(0.0, speedup=2.0), Settings(), "--allocator latency"),
        (Budget(0.5), Settings(tau=0.2), "reads no tau"),
        (Budget(0.5, bits=4.0), Settings(bit_tau=0.2), "reads no bit_tau"),
        (Budget(0.5, bits=4.0), Settings(group=8), "either bits or N:M patterns; leave out bits, or group"),
        (Budget(0.5), Settings(allow_dense=True), "allow-dense is about N:M patterns"),
        (Budget(0.5, pattern=NM(5, 8)), Settings(), "give one of them"),
    ],
)
def test_what_only_allocators_meet_is_refused(
    name: str, budget: Budget, settings: Settings, said: str, task: Task
) -> None:
    with pytest.raises(InputError, match=said):
        search(name, replace(task, budget=budget, settings=settings))


def test_a_quantiser_that_prunes_needs_its_pruner(task: Task) -> None:
    with pytest.raises(InputError, match="choose --pruner sparsegpt"):
        search("auto", replace(task, budget=Budget(0.5, bits=4.0), quantiser="joint"))


def test_a_text_without_room_is_refused(task: Task) -> None:
    greedy = replace(task.calibration, samples=4000)
    with pytest.raises(InputError, match="leave no room to judge by"):
        search("auto", replace(task, calibration=greedy))


def test_nothing_to_cut_is_uniform(task: Task) -> None:
    allocation = search("auto", replace(task, budget=Budget(0.0)))
    assert {plan.pattern.sparsity for plan in allocation.plans.values()} == {0.0}


@pytest.mark.parametrize(
    "wrong",
    [{"minutes": 0.0}, {"minutes": None}, {"evaluations": 0}, {"tokens": (5, 4, 3)}, {"step": 0.5}, {"finals": 1}],
)
def test_an_effort_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Effort(**wrong)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--sparsity", 0.6), "sparsity 0.6000 over the block linears"),
        (("--pattern", "4:8", "--allow-dense"), "obey 2:4"),
        (("--bits", 3.5, "--quantiser", "rtn"), "bits: "),
    ],
)
def test_the_command_writes_plan_trace_and_picture(
    asked: tuple[object, ...], said: str, tailcut: Tailcut, task: Task, text: Path, tmp_path: Path
) -> None:
    codec.save(task.scores, tmp_path / "scores.json")
    out = tmp_path / "plan.json"
    arguments = (
        "allocate", tmp_path / "scores.json", "--allocator", "auto", "--model", task.model, *asked,
        "--calibration", text, "--samples", 6, "--seqlen", 24, "--seed", 1, "--evaluations", 40, "--device", "cpu",
        "--plot", tmp_path / "plot.svg", "-o", out,
    )  # fmt: skip
    code, shown, err = tailcut(*arguments)
    assert code == 0, err
    assert "KL of the finalists: " in shown
    assert said in shown
    first = out.read_bytes()
    assert json.loads(first)["provenance"]["pruner"] == "wanda"
    assert len(read_trace(tmp_path / "plan.search.jsonl")) > 40
    assert (tmp_path / "plot.svg").read_bytes().lstrip().startswith(b"<?xml")
    code, _, err = tailcut(*arguments, "--overwrite")
    assert code == 0, err
    assert "going on after" in err
    assert out.read_bytes() == first


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--allocator", "auto"), "give its directory with --model"),
        (("--allocator", "auto", "--model", "m", "--tau", 0.3), "reads no tau"),
        (("--allocator", "auto", "--model", "m", "--plot", "a.txt"), "a picture ends in .svg"),
        (("--allocator", "owl", "--minutes", 3), "--minutes belongs to a search"),
        (("--allocator", "atuo"), "choose one of alpha, als, atp, auto"),
    ],
)
def test_the_command_says_what_is_wrong(
    options: tuple[object, ...], said: str, tailcut: Tailcut, task: Task, tmp_path: Path
) -> None:
    codec.save(task.scores, tmp_path / "scores.json")
    out = tmp_path / "plan.json"
    code, _, err = tailcut("allocate", tmp_path / "scores.json", "--sparsity", 0.6, *options, "-o", out)
    assert code == 2
    assert said in " ".join(err.split())
    assert not out.exists()


def test_list_explains_the_searches(tailcut: Tailcut) -> None:
    code, out, _ = tailcut("allocate", "--list")
    assert code == 0
    for name in SEARCHES:
        assert f"\n{name}  (a search" in out
