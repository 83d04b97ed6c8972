"""Allocations as recipes of llm-compressor and SparseML: the list follows the model, N:M is turned round, the rest is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tailcut import codec, recipe_formats
from tailcut.allocation import NM, Allocation, Dense, LayerPlan, Pattern, Unstructured
from tailcut.commands.recipe import app
from tailcut.errors import InputError
from tailcut.recipe_formats import Wanted

KINDS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")
FORMATS = recipe_formats.names()


def plan_of(pattern: Callable[[int, str], Pattern], blocks: int = 12) -> Allocation:
    plans = {
        f"model.layers.{block}.{kind}": LayerPlan(pattern(block, kind)) for block in range(blocks) for kind in KINDS
    }
    return Allocation(plans, {"allocator": "alpha"})


def modifiers(name: str, allocation: Allocation, wanted: Wanted | None = None) -> dict[str, Any]:
    """Group -> settings of its only modifier, as a YAML 1.1 reader such as theirs gets them."""
    text = recipe_formats.load(name).write(allocation, wanted or Wanted()).text
    (stage,) = yaml.safe_load(text).values()
    return {group: next(iter(inner.values())) for group, inner in stage.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_equal_plans_in_a_block_name_blocks_by_number_not_by_text(name: str) -> None:
    allocation = plan_of(lambda block, _: Unstructured(0.3 + 0.01 * block))
    shuffled = Allocation(dict(sorted(allocation.plans.items())), {})  # layers.10 before layers.2
    for given in (allocation, shuffled):
        only = modifiers(name, given)["unstructured_modifiers"]
        assert only["targets"] == [f"model.layers.{block}" for block in range(12)]
        assert only["sparsity"] == [0.3 + 0.01 * block for block in range(12)]
        assert only["mask_structure"] == "0:0"


@pytest.mark.parametrize("name", FORMATS)
def test_unequal_plans_name_matrices_in_the_order_of_the_model(name: str) -> None:
    allocation = plan_of(lambda block, kind: Unstructured(0.1 * KINDS.index(kind) + 0.01 * block), 2)
    backwards = tuple(reversed(list(allocation.plans)))
    only = modifiers(name, allocation, Wanted(order=backwards))["unstructured_modifiers"]
    cut = [target for target in backwards if allocation.plans[target].pattern.sparsity > 0]
    assert only["targets"] == cut  # the dense one is nobody's target
    assert only["sparsity"] == [allocation.plans[target].pattern.sparsity for target in cut]


@pytest.mark.parametrize("name", FORMATS)
def test_masks_count_what_is_removed_and_each_pattern_has_a_modifier(name: str) -> None:
    found = modifiers(name, plan_of(lambda block, _: (NM(1, 4), NM(2, 4), Dense(), Unstructured(0.5))[block], 4))
    assert {group: one["mask_structure"] for group, one in found.items()} == {
        "remove_3_of_4_modifiers": "3:4",
        "remove_2_of_4_modifiers": "2:4",
        "unstructured_modifiers": "0:0",
    }
    assert found["remove_3_of_4_modifiers"]["sparsity"] == 0.75  # above 0: their SparseGPT refuses to run at 0
    assert [target for one in found.values() for target in one["targets"]].count("model.layers.2") == 0


def test_sequential_update_only_where_it_is_affordable() -> None:
    blocks = modifiers("sparseml", plan_of(lambda *_: Unstructured(0.5)))
    assert blocks["unstructured_modifiers"]["sequential_update"] is True
    assert blocks["unstructured_modifiers"]["sparsity"] == 0.5
    single = modifiers("sparseml", plan_of(lambda *_: Unstructured(0.5)), Wanted(per_matrix=True))
    assert single["unstructured_modifiers"]["sequential_update"] is False
    assert (
        "sequential_update"
        not in modifiers("llm-compressor", plan_of(lambda *_: Unstructured(0.5)))["unstructured_modifiers"]
    )


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("plans", "pruner", "said"),
    [
        (
            {"m.0.a": LayerPlan(Unstructured(0.5), 4), "m.0.b": LayerPlan(Unstructured(0.5), 8)},
            "wanda",
            "m.0.a: 4 bits.*m.0.b: 8",
        ),
        ({"m.0.a": LayerPlan(Unstructured(1.0))}, "sparsegpt", "m.0.a: nothing of it would be left"),
        ({"m.0.a": LayerPlan(NM(5, 10))}, "sparsegpt", "m.0.a: groups of 10 cross"),
        ({"m.0.a": LayerPlan(Dense())}, "wanda", "cuts nothing"),
        ({"m.0.a": LayerPlan(Unstructured(0.5))}, "magnitude", "wanda or sparsegpt"),
        ({"re:.*": LayerPlan(Unstructured(0.5))}, "wanda", "no module's name"),
        ({"m.0.a\nevil: 1": LayerPlan(Unstructured(0.5))}, "wanda", "no module's name"),
        ({"Linear": LayerPlan(Unstructured(0.5))}, "wanda", "no module's name"),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(name: str, plans: dict[str, LayerPlan], pruner: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        recipe_formats.load(name).write(Allocation(plans, {}), Wanted(pruner))


def test_a_plan_of_another_model_is_refused() -> None:
    with pytest.raises(InputError, match=r"not one of this model: .*model\.layers\.0\.mlp"):
        recipe_formats.load("sparseml").write(
            plan_of(lambda *_: Unstructured(0.5), 1), Wanted(order=("model.layers.0.x",))
        )


def test_no_text_of_the_file_becomes_a_line_of_the_recipe() -> None:
    allocation = Allocation({"m.0.a": LayerPlan(Unstructured(0.5))}, {"allocator": "x\nevil_stage: {}"})
    assert list(yaml.safe_load(recipe_formats.load("sparseml").write(allocation, Wanted()).text)) == ["oneshot_stage"]


def test_the_command_writes_and_does_not_overwrite(tmp_path: Path) -> None:
    codec.save(plan_of(lambda *_: Unstructured(0.5)), tmp_path / "plan.json")
    words = ["export", str(tmp_path / "plan.json"), "--format", "llm-compressor", "-o", str(tmp_path / "r.yaml")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "note: targets are whole blocks" in done.output
    assert "WandaPruningModifier" in (tmp_path / "r.yaml").read_text()
    again = CliRunner().invoke(app, words)
    assert isinstance(again.exception, InputError)
