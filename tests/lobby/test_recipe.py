"""Recipes name things and never code: unknown keys, bad values and YAML tricks are one sentence."""

from pathlib import Path
from typing import Any

import pytest

from tailcut.allocation import NM, Budget
from tailcut.errors import InputError
from tailcut.recipe import Recipe, make_recipe, read_recipe, with_paths
from tailcut.results import Stopping


def test_defaults_make_a_whole_recipe() -> None:
    recipe = make_recipe({"model": "m"}, "flags")
    assert recipe.budget() == Budget(0.5, 0.99)
    assert recipe.version == 1


def test_flags_lie_on_top_of_the_file_and_paths_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("model: sub/m\nsparsity: 0.6\ncalibration: mine.txt\ntext: demo\n")
    recipe = read_recipe(tmp_path / "r.yaml", {"sparsity": 0.7})
    assert recipe.sparsity == 0.7
    assert recipe.model == str(tmp_path / "sub" / "m")
    assert recipe.calibration == str(tmp_path / "mine.txt")
    assert recipe.text == "demo"


def test_what_rounds_the_weights() -> None:
    assert not make_recipe({"model": "m"}, "x").rounds
    assert not make_recipe({"model": "m", "head": "float32"}, "x").rounds
    assert make_recipe({"model": "m", "weights": "int8"}, "x").rounds
    assert make_recipe({"model": "m", "head": "int8"}, "x").rounds
    assert make_recipe({"model": "m", "bits": 4}, "x").rounds  # integer kernels round activations


def test_which_allocators_search() -> None:
    assert make_recipe({"model": "m", "allocator": "auto", "minutes": 3.0}, "x").searches
    assert not make_recipe({"model": "m", "allocator": "owl"}, "x").searches


def test_when_a_bench_ends() -> None:
    def stopping(**settings: float) -> Stopping | None:
        return make_recipe({"model": "m", **settings}, "x").stopping(1.5)

    assert stopping() is None
    assert stopping(min_speedup=1.5, blocks=4) is None  # as recipes always meant
    assert stopping(bench_minutes=3.0) == Stopping(at_least=1.5, minutes=3.0)
    assert stopping(bench_minutes=3.0, at_least=2.0) == Stopping(at_least=2.0, minutes=3.0)
    # who asks for a precision wants it, settled or not
    assert stopping(precision=0.02, max_blocks=9) == Stopping(precision=0.02, max_blocks=9)
    assert make_recipe({"model": "m", "bench_minutes": 3}, "x").stopping() == Stopping(minutes=3.0)


def test_pattern_fixes_the_budget() -> None:
    assert make_recipe({"model": "m", "pattern": "2:4"}, "x").budget() == Budget(0.5, 0.99, NM(2, 4))
    assert make_recipe({"model": "m", "pattern": "1:4"}, "x").budget().sparsity == 0.75


def test_paths_become_absolute_and_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = with_paths(Recipe("m", calibration="datasets:c4", text="demo"))
    assert (recipe.model, recipe.calibration, recipe.text) == (str(tmp_path / "m"), "datasets:c4", "demo")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: m\nsparsty: 0.5\n", r"field sparsty"),
        ("model: m\nversion: 2\n", r"field version"),
        ("model: m\ntrust_remote_code: true\n", r"field trust_remote_code"),
        ("sparsity: 0.5\n", r"field model"),
        ("model: m\nsparsity: 1.2\n", r"sparsity must be in \[0, 1\), got 1\.2"),
        ("model: m\nsparsity: half\n", r"field sparsity"),
        ("model: m\npattern: 24\n", r"field pattern"),
        ("model: m\npattern: '4:2'\n", r"got 4:2"),
        ("model: m\npruner: os.system\n", r"unknown pruner 'os\.system'; choose one of"),
        ("model: m\nquantiser: os.system\n", r"unknown quantiser 'os\.system'; choose one of gptq, joint, rtn"),
        ("model: m\nallocator: ../../x\n", r"unknown allocator"),
        ("model: m\nallocator: atuo\n", r"unknown allocator 'atuo'; choose one of alpha, als, atp, auto"),
        ("model: m\nallocator: owl\nminutes: 3\n", r"minutes and evaluations are of a search"),
        ("model: m\nengines: [tensorflow]\n", r"unknown engine 'tensorflow'"),
        ("model: m\nweights: int3\n", r"field weights"),
        ("model: m\nhead: float16\n", r"field head"),
        ("model: m\nsamples: 0\n", r"samples must be at least 1, got 0"),
        ("model: m\nbench_minutes: 0\n", r"bench_minutes must be a positive number, got 0"),
        ("model: m\nat_least: -1\n", r"at_least must be a positive number, got -1"),
        ("model: m\nprecision: 0.02\nmin_blocks: 2\n", r"min_blocks 2 and max_blocks 32 must be in order"),
        ("model: m\nmax_blocks: 9\n", r"max_blocks bounds a bench that at_least, precision or bench_minutes ends"),
        ("model: m\nbench: {minutes: 3}\n", r"field bench"),
        ("model: m\ncontext: 64\n", r"context 64 cannot hold 64 prompt and 32 new tokens"),
        ("model: !!python/object/apply:os.system ['true']\n", r"not valid YAML"),
        ("model: [m\n", r"not valid YAML"),
        ("- model\n", r"a recipe is a mapping of settings, got list"),
        ("", r"a recipe is a mapping of settings, got NoneType"),
    ],
)
def test_bad_recipes_are_one_sentence(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(InputError, match=words):
        read_recipe(tmp_path / "r.yaml", {})


def test_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the recipe"):
        read_recipe(tmp_path / "none.yaml", {})


def test_a_recovery_is_asked_for_by_its_text(tmp_path: Path) -> None:
    assert make_recipe({"model": "m"}, "t").recovering() is None
    path = tmp_path / "recipe.yaml"
    path.write_text("model: m\nrecover_text: [own.jsonl, sub/other.txt]\nrecover_budget: 5m\nseed: 3\n")
    (tmp_path / "own.jsonl").write_text('{"text": "a"}\n')
    found = read_recipe(path, {}).recovering()
    assert found is not None
    assert found.texts == (str(tmp_path / "own.jsonl"), str(tmp_path / "sub/other.txt"))
    assert (found.methods, found.budget.minutes, found.seed) == (("least-squares", "distill"), 5.0, 3)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"recover": ["distill"]}, "needs text to learn from"),
        ({"recover_text": ["t"], "recover": ["os.system"]}, "unknown recovery"),
        ({"recover_text": ["t"], "recover_budget": "0m"}, "more than 0"),
    ],
)
def test_a_recovery_that_cannot_be_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        make_recipe({"model": "m"} | settings, "t")
