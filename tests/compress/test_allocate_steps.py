"""`tailcut allocate` with mixed patterns, bits and speed, and the recipe's keys for them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tailcut import codec
from tailcut.allocation import NM, Allocation, Budget, Dense, LayerScore, LayerScores, Unstructured
from tailcut.cost import Cost, CostTable
from tailcut.errors import InputError
from tailcut.pipeline import plan
from tailcut.pipeline_work import Run, do_allocate
from tailcut.recipe import make_recipe, read_recipe, with_paths
from tailcut.results import Machine

Tailcut = Callable[..., tuple[int, str, str]]
MACHINE = Machine("cpu", (), 2, 2, 1, 1, None, "Linux", {}, None, "f00d")


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    layers = tuple(
        LayerScore(f"b{b}.m{m}", b, (8, 16), {"alpha_peak": 2.0 + b + m / 4}) for b in range(4) for m in (0, 1)
    )
    codec.save(LayerScores("made", layers, 2048), tmp_path / "scores.json")
    return tmp_path / "scores.json"


@pytest.fixture
def cost(tmp_path: Path) -> Path:
    points = ((Dense(), 1.0), (Unstructured(0.5), 0.6), (Unstructured(0.9), 0.2))
    entries = tuple(Cost((8, 16), pattern, "float32", ms) for pattern, ms in points)
    codec.save(CostTable("tailcut", MACHINE, 1, entries, {"float32": 2.0}), tmp_path / "cost.json")
    return tmp_path / "cost.json"


def plans(path: Path) -> Allocation:
    return codec.load(Allocation, path)


def test_a_mean_pattern(tailcut: Tailcut, scores: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    code, shown, _ = tailcut("allocate", scores, "-o", out, "--allocator", "nm-mixed", "--pattern", "4:8", "--tau", 0.4)
    assert code == 0
    assert "hardware: " in shown
    assert {plan.pattern.block for plan in plans(out).plans.values() if isinstance(plan.pattern, NM)} == {8}
    arguments = ("--allocator", "nm-mixed", "--sparsity", 0.5, "--group", 4, "--overwrite")
    assert tailcut("allocate", scores, "-o", out, *arguments)[0] == 0
    assert {plan.pattern.block for plan in plans(out).plans.values() if isinstance(plan.pattern, NM)} == {4}


def test_two_of_four_for_a_third(tailcut: Tailcut, scores: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    code, shown, _ = tailcut("allocate", scores, "-o", out, "--allocator", "sparse24", "--sparsity", 0.25)
    assert code == 0
    assert "patterns: 2:4 in 4 of 8 matrices" in shown


def test_bits_alone_and_beside_a_sparsity(tailcut: Tailcut, scores: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    code, shown, _ = tailcut("allocate", scores, "-o", out, "--bits", 4)
    assert code == 0
    assert "bits: " in shown
    assert all(plan.pattern.sparsity == 0.0 for plan in plans(out).plans.values())
    arguments = ("--bits", 3, "--bit-choices", "4,2", "--sparsity", 0.5, "--allocator", "uniform", "--overwrite")
    assert tailcut("allocate", scores, "-o", out, *arguments)[0] == 0
    assert {plan.bits for plan in plans(out).plans.values()} == {4, 2}
    assert {plan.pattern for plan in plans(out).plans.values()} == {Unstructured(0.5)}


def test_a_speed_in_place_of_a_sparsity(tailcut: Tailcut, scores: Path, cost: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    code, shown, _ = tailcut("allocate", scores, "-o", out, "--speedup", 1.6, "--cost", cost)
    assert code == 0
    assert "predicted: 6.2" in shown  # ms: 10 dense over 1.6 is 6.25
    assert "times as fast" in shown
    assert plans(out).provenance["allocator"] == "latency"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--speedup", 2), "what products cost here: --cost cost.json"),
        (("--speedup", 9, "--cost", "COST"), "a speedup of 9 is out of reach on tailcut"),
        (("--speedup", 2, "--cost", "COST", "--precision", "int8"), "holds float32; choose one"),
        (("--speedup", 2, "--allocator", "alpha"), "use --allocator latency"),
        (("--bits", 9), "9.0 bits a weight on average cannot be made of 2 to 8 bits"),
        (("--bits", 4, "--bit-choices", "8,5"), "bit choices must be some of"),
        (("--bits", 4, "--bit-choices", "many"), "are not comma-separated numbers"),
        (("--sparsity", 0.5, "--group", 8), "alpha allocator does not read group"),
        ((), "say how much to cut"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    tailcut: Tailcut, scores: Path, cost: Path, tmp_path: Path, arguments: tuple[object, ...], words: str
) -> None:
    given = [cost if word == "COST" else word for word in arguments]
    code, _, errors = tailcut("allocate", scores, "-o", tmp_path / "a.json", *given)
    assert code == 2
    assert words in " ".join(errors.split())
    assert errors.count("\n") == 1
    assert not (tmp_path / "a.json").exists()


def test_recipe_keys(tmp_path: Path) -> None:
    recipe = make_recipe({"model": "m", "bits": 3.5, "bit_choices": [4, 3], "sparsity": 0.6}, "flags")
    assert recipe.budget() == Budget(0.6, bits=3.5, bit_choices=(4, 3))
    mixed = make_recipe({"model": "m", "pattern": "3:8", "allocator": "nm-mixed"}, "flags")
    assert mixed.budget() == Budget(0.625, pattern=NM(3, 8))
    (tmp_path / "recipe.yaml").write_text("model: m\nallocator: latency\nspeedup: 2.0\ncost: cost.json\n")
    fast = with_paths(read_recipe(tmp_path / "recipe.yaml", {}))
    assert fast.cost == str((tmp_path / "cost.json").resolve())
    assert fast.budget() == Budget(0.0, speedup=2.0)


@pytest.mark.parametrize(
    "keys", [{"speedup": 2.0, "cost": "c"}, {"allocator": "latency"}, {"allocator": "latency", "speedup": 2.0}]
)
def test_a_recipe_by_speed_is_whole(keys: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"allocator latency, speedup and cost .* go together"):
        make_recipe({"model": "m"} | keys, "flags")


def test_a_run_allocates_by_speed_and_again_when_the_table_changes(scores: Path, cost: Path, tmp_path: Path) -> None:
    keys = {"model": "m", "allocator": "latency", "speedup": 1.6, "cost": str(cost)}
    state = Run(make_recipe(keys, "flags"), tmp_path)
    do_allocate(state)
    assert plans(tmp_path / "allocation.json").provenance["precision"] == "float32"
    before = {stage.name: stage.settings for stage in plan(state, "f00d")}
    table = codec.load(CostTable, cost)
    codec.save(replace(table, threads=2), cost)
    after = {stage.name: stage.settings for stage in plan(state, "f00d")}
    assert [name for name in before if before[name] != after[name]] == ["allocate"]


def test_bits_that_follow_a_metric_have_it_measured(tmp_path: Path) -> None:
    keys = {"model": "m", "allocator": "uniform", "metric": "stable-rank"}
    with_bits, without = (make_recipe(keys | more, "flags") for more in ({"bits": 4.0}, {}))
    stages = [{s.name: s.settings for s in plan(Run(recipe, tmp_path), "f00d")} for recipe in (with_bits, without)]
    assert "stable_rank" in str(stages[0]["measure"])
    assert "stable_rank" not in str(stages[1]["measure"])
