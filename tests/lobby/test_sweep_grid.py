"""What a sweep goes over: lists in a recipe, flags on top, and one sentence for what makes no sense."""

from pathlib import Path
from typing import Any

import pytest

from tailcut.errors import InputError
from tailcut.sweep_grid import Cut, make_grid, read_grid, split_numbers


def test_every_allocator_meets_every_sparsity_and_a_pattern_stands_alone() -> None:
    grid = make_grid(
        {"model": "m", "allocator": ["alpha", "lamp"], "sparsity": [0.5, 0.6], "pattern": ["unstructured", "2:4"]}, "t"
    )
    assert [str(cut) for cut in grid.cuts] == ["alpha 50 %", "alpha 60 %", "lamp 50 %", "lamp 60 %", "uniform 2:4"]
    recipe = grid.recipe_of(grid.cuts[-1])
    assert (recipe.allocator, recipe.pattern, recipe.budget().sparsity) == ("uniform", "2:4", 0.5)
    assert len({cut.name for cut in grid.cuts}) == 5
    assert all("/" not in cut.name and ":" not in cut.name for cut in grid.cuts)


def test_single_values_and_repeated_ones_are_lists_of_one() -> None:
    grid = make_grid({"model": "m", "allocator": "alpha", "sparsity": [0.5, 0.5], "baselines": "none"}, "t")
    assert grid.cuts == (Cut("alpha", 0.5),)
    assert grid.baselines == ()


def test_flags_win_over_the_file_whose_paths_are_its_own(tmp_path: Path) -> None:
    recipe = tmp_path / "sweep.yaml"
    recipe.write_text("model: ./model\nallocators: [alpha]\nsparsities: [0.5]\nengine: tailcut\nblocks: 3\n")
    grid = read_grid(str(recipe), {"sparsity": (0.7,), "engines": ("onnxruntime",)})
    assert grid.cuts == (Cut("alpha", 0.7),)
    assert (grid.engines, grid.recipe.blocks, grid.recipe.model) == (("onnxruntime",), 3, str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"sparsity": [0.5, 1.5]}, "sparsity must be in"),
        ({"sparsity": "half"}, "is not a number"),
        ({"sparsity": []}, "one value or a list"),
        ({"sparsity": {"from": 0.5}}, "one value or a list"),
        ({"sparsity": True}, "one value or a list"),
        ({"pattern": "2:4", "sparsity": 0.5}, "a pattern fixes the sparsity"),
        ({"pattern": "24"}, "is not N:M"),
        ({"allocator": ["os.system"]}, "unknown allocator"),
        ({"engine": ["abacus"]}, "unknown engine"),
        ({"engines": "none"}, "at least one engine"),
        ({"engine": "tailcut", "engines": "tailcut"}, "given twice"),
        ({"weights": ["float32", "float8"]}, "weights"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"sparsity": [number / 1000 for number in range(900)]}, "more than the 500"),
        ({"context": 4}, "cannot hold"),
        ({"precision": 0.02}, "a sweep measures a number of blocks"),
    ],
)
def test_nonsense_is_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as found:
        make_grid({"model": "m"} | settings, "here")
    assert "\n" not in str(found.value)


def test_numbers_on_the_command_line() -> None:
    assert split_numbers("0.5, 0.6,") == (0.5, 0.6)
    with pytest.raises(InputError, match="list of fractions"):
        split_numbers("0.5;0.6")
