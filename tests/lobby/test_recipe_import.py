"""Recipes of others: what carries over, what is named, and files that want more than to be read."""

import time
from pathlib import Path
from typing import Any

import pytest

from tailcut.allocation import NM, Dense, Unstructured
from tailcut.errors import InputError
from tailcut.recipe import make_recipe
from tailcut.recipe_import import Imported, Matrix, import_recipe, modifiers_in, translate
from tailcut.untrusted import MAX_SETTINGS_BYTES

MATRICES = tuple(
    Matrix(f"model.layers.{block}.{kind}", f"model.layers.{block}", size)
    for block in range(3)
    for kind, size in (("self_attn.q_proj", 100), ("mlp.up_proj", 300))
)


def read(text: str, texts: tuple[str, ...] = ()) -> Imported:
    return translate(modifiers_in(text.encode(), "r.yaml"), "r.yaml", "dense", MATRICES, texts)


def one(name: str, **settings: Any) -> Imported:
    body = "".join(f"\n      {key}: {value}" for key, value in settings.items()) or " {}"
    return read(f"oneshot_stage:\n  a_modifiers:\n    {name}:{body}\n")


def test_sparsegpt_at_one_sparsity_is_a_whole_recipe() -> None:
    found = one(
        "SparseGPTModifier",
        sparsity=0.6,
        block_size=128,
        dampening_frac=0.01,
        mask_structure='"0:0"',
        targets='["Linear"]',
    )
    assert found.settings == {"model": "dense", "sparsity": 0.6, "allocator": "uniform", "pruner": "sparsegpt"}
    assert found.plan is None
    assert found.unsupported == ()
    assert make_recipe(dict(found.settings), "x").sparsity == 0.6


@pytest.mark.parametrize(("theirs", "ours"), [("2:4", "2:4"), ("3:4", "1:4"), ("2:8", "6:8")])
def test_masks_are_turned_round(theirs: str, ours: str) -> None:
    assert one("WandaPruningModifier", sparsity=0.5, mask_structure=f'"{theirs}"').settings["pattern"] == ours


def test_owl_is_an_allocator() -> None:
    found = one("WandaPruningModifier", sparsity=0.7, sparsity_profile="owl", owl_m=5, owl_lmbda=0.08)
    assert {**found.settings} == {
        "model": "dense", "pruner": "wanda", "allocator": "owl", "sparsity": 0.7, "compat": True, "spread": 0.08,
    }  # fmt: skip
    assert found.unsupported == ()
    other = one("WandaPruningModifier", sparsity=0.7, sparsity_profile="owl", owl_m=7, owl_lmbda=0.08)
    assert "owl_m 7" in other.unsupported[0]


def test_a_list_follows_the_model_whatever_the_order_of_targets() -> None:
    found = one(
        "SparseGPTModifier",
        sparsity="[0.1, 0.2, 0.4]",
        targets='["model.layers.2", "model.layers.0", "re:model.layers.1$"]',
    )
    assert found.plan is not None
    assert [plan.pattern for plan in found.plan.plans.values()] == [
        Unstructured(value) for value in (0.1, 0.1, 0.2, 0.2, 0.4, 0.4)
    ]
    assert found.settings["sparsity"] == pytest.approx(0.7 / 3, abs=1e-6)
    assert "tailcut compress" in found.unsupported[-1]


def test_some_targets_and_ignored_ones_leave_the_rest_dense() -> None:
    found = one(
        "WandaPruningModifier",
        sparsity=0.5,
        targets='["re:.*up_proj", "model.layers.0"]',
        ignore='["model.layers.1.mlp.up_proj", "lm_head"]',
    )
    assert found.plan is not None
    cut = [name for name, plan in found.plan.plans.items() if plan.pattern != Dense()]
    assert cut == ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj", "model.layers.2.mlp.up_proj"]
    assert found.settings["sparsity"] == pytest.approx(0.5 * 700 / 1200, abs=1e-6)


def test_mixed_patterns_make_a_plan() -> None:
    text = """
oneshot_stage:
  a_modifiers:
    SparseGPTModifier: {sparsity: 0.5, mask_structure: "2:4", targets: [model.layers.0]}
  b_modifiers:
    SparseGPTModifier: {sparsity: 0.3, targets: [model.layers.1]}
"""
    found = read(text)
    assert found.plan is not None
    assert [plan.pattern for plan in found.plan.plans.values()] == [NM(2, 4)] * 2 + [Unstructured(0.3)] * 2 + [
        Dense()
    ] * 2


def test_gradual_magnitude_pruning_in_old_spelling() -> None:
    text = """
num_epochs: 10
target: 0.8
modifiers:
  - !EpochRangeModifier
    start_epoch: 0.0
    end_epoch: eval(num_epochs)
  - !GMPruningModifier
    params: __ALL_PRUNABLE__
    init_sparsity: 0.05
    final_sparsity: eval(target - 2 * 0.05)
    start_epoch: eval(num_epochs * 0.1)
    mask_type: unstructured
"""
    found = read(text)
    assert found.settings["pruner"] == "magnitude"
    assert found.settings["sparsity"] == pytest.approx(0.7)
    assert "EpochRangeModifier" in found.unsupported[0]
    assert "init_sparsity" in found.unsupported[1]


def test_a_global_threshold_is_the_global_allocator() -> None:
    found = one(
        "MagnitudePruningModifier",
        init_sparsity=0.0,
        final_sparsity=0.5,
        targets='["re:.*weight"]',
        apply_globally="true",
    )
    assert (found.settings["allocator"], found.settings["sparsity"]) == ("global", 0.5)


def test_quantisation() -> None:
    text = """
oneshot_stage:
  q_modifiers:
    GPTQModifier:
      ignore: [lm_head]
      config_groups:
        group_0:
          targets: [Linear]
          weights: {num_bits: 4, type: int, symmetric: true, strategy: group, group_size: 128}
"""
    found = read(text)
    assert found.unsupported == ()
    assert {key: found.settings[key] for key in ("bits", "bit_choices", "quantiser", "activation_bits")} == {
        "bits": 4.0, "bit_choices": [4], "quantiser": "gptq", "activation_bits": 16,
    }  # fmt: skip
    preset = one("QuantizationModifier", scheme="W8A8", targets="Linear")
    assert (preset.settings["quantiser"], preset.settings["bits"], preset.settings["activation_bits"]) == (
        "rtn",
        8.0,
        8,
    )


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("{num_bits: 4, symmetric: false}", "symmetric false"),
        ("{num_bits: 4, strategy: group, group_size: 64}", "64"),
        ("{num_bits: 8, strategy: tensor}", "one scale a row"),
        ("{num_bits: 8, actorder: weight}", "actorder"),
    ],
)
def test_grids_that_are_not_ours_are_named(weights: str, said: str) -> None:
    text = f"s_stage:\n  q_modifiers:\n    QuantizationModifier:\n      config_groups: {{a: {{weights: {weights}}}}}\n"
    assert any(said in sentence for sentence in read(text).unsupported)


@pytest.mark.parametrize("scheme", ["FP8", "W6A16", "NVFP4"])
def test_schemes_without_integers_carry_nothing_over(scheme: str) -> None:
    with pytest.raises(InputError, match="nothing in it carries over"):
        one("QuantizationModifier", scheme=scheme)


@pytest.mark.parametrize(
    "name",
    [
        "SmoothQuantModifier",
        "LogarithmicEqualizationModifier",
        "LearningRateFunctionModifier",
        "AWQModifier",
        "NobodyKnowsModifier",
    ],
)
def test_every_other_modifier_is_named(name: str) -> None:
    text = f"s_stage:\n  p_modifiers:\n    WandaPruningModifier: {{sparsity: 0.5}}\n    {name}: {{smoothing_strength: 0.8}}\n"
    assert [sentence for sentence in read(text).unsupported if name in sentence]


def test_distillation_needs_text() -> None:
    text = "s_stage:\n  p_modifiers:\n    WandaPruningModifier: {sparsity: 0.5}\n    OutputDistillationModifier: {targets: [x]}\n    ConstantPruningModifier: {targets: [x]}\n"
    assert any("--recover-text" in sentence for sentence in read(text).unsupported)
    assert read(text, ("t.txt",)).settings["recover"] == ["distill"]
    assert read(text, ("t.txt",)).settings["recover_text"] == ["t.txt"]


def test_two_modifiers_that_disagree_are_named() -> None:
    text = (
        "s_stage:\n  p_modifiers:\n    WandaPruningModifier: {sparsity: 0.5}\n    SparseGPTModifier: {sparsity: 0.5}\n"
    )
    found = read(text)
    assert found.settings["pruner"] == "wanda"
    assert any(sentence.startswith("pruner sparsegpt") for sentence in found.unsupported)


def test_unknown_settings_are_named() -> None:
    assert "my_switch" in one("WandaPruningModifier", sparsity=0.5, my_switch=3).unsupported[0]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ('eval(__import__("os").system("touch hacked"))', "holds a call"),
        ("eval(math.pi)", "holds a attribute"),
        ("eval(x[0])", "holds a subscript"),
        ("eval([1 for _ in 2])", "holds a listcomp"),
        ("eval(nowhere * 2)", "no variable"),
        ("eval(a)", "leads from variable to variable"),
        ("eval(9 ** 9 ** 9 ** 9)", "no value"),
        ("eval(1 / 0)", "no value"),
        ("eval((((((1)", "no value|mixes"),
        ("eval(1e300 * 1e300)", "no setting is"),
        ("eval(True)", "holds a constant"),
        ("eval(1) eval(2)", "no value"),
        ("x eval(2)", "mixes"),
        ("'{{ sparsity }}'", "template"),
        ("eval(" + "-" * 5000 + "1)", "at most 200"),
    ],
)
def test_no_code_is_run(value: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quoted = value if value.startswith("'") else "'" + value.replace("'", "''") + "'"
    text = (
        f"a: eval(b)\nb: eval(a)\nx: 3\ns_stage:\n  p_modifiers:\n    WandaPruningModifier:\n      sparsity: {quoted}\n"
    )
    with pytest.raises(InputError, match=said):
        read(text)
    assert list(tmp_path.iterdir()) == []


WANDA = "s_stage:\n  p_modifiers:\n    WandaPruningModifier:"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("!!python/object/apply:os.system ['touch hacked']", "tag"),
        (f"{WANDA} !!python/name:os.system\n", "tag"),
        ("modifiers:\n  - !Evil\n    a: 1\n", "tag"),
        ("a: &a [x, x]\nb: [*a, *a]\n", "anchors and aliases"),
        ("[" * 100 + "]" * 100, "nested deeper"),
        ("a: " + "x" * MAX_SETTINGS_BYTES, "larger than"),
        ("just text", "a mapping"),
        ("a: 1", "no modifiers"),
        ("s_stage: 3", "a mapping of groups"),
        ("modifiers: 3", "expected modifiers by name"),
        ("modifiers: [3]", "one modifier with its settings"),
        ("modifiers: {A b: {}}", "no name of a modifier"),
        ("modifiers: {WandaPruningModifier: 3}", "are a mapping"),
        ("modifiers: {WandaPruningModifier: {sparsity: high}}", "expected a number"),
        ("modifiers: {WandaPruningModifier: {sparsity: 50}}", "not in"),
        ("modifiers: {WandaPruningModifier: {sparsity: .nan}}", "expected a number"),
        ('modifiers: {WandaPruningModifier: {sparsity: 0.5, mask_structure: "4:4"}}', "removed of M"),
        ("modifiers: {WandaPruningModifier: {sparsity: [0.5, 0.5]}}", "2 sparsities for 3 targets"),
        ("modifiers: {WandaPruningModifier: {sparsity: 0.5, targets: [nothing]}}", "none of them"),
        ("modifiers: {WandaPruningModifier: {sparsity: 0.5, targets: ['re:(a+)+$']}}", "none of a group"),
        ("modifiers: {WandaPruningModifier: {sparsity: 0.5, targets: ['re:.*.*.*.*.*x']}}", "4 repetitions"),
        ("modifiers: {WandaPruningModifier: {sparsity: 0.5, targets: ['re:(']}}", "cannot be read"),
        ("modifiers: {SmoothQuantModifier: {}}", "nothing in it carries over"),
        ("modifiers: {\"A\\u202e\": {}}", "invisible"),
        ("\x00", "not valid YAML"),
    ],
)  # fmt: skip
def test_hostile_and_broken_files_are_one_sentence(text: str, said: str) -> None:
    began = time.monotonic()
    with pytest.raises(InputError, match=said) as caught:
        read(text)
    assert len(str(caught.value)) < 2000
    assert time.monotonic() - began < 5


def test_files_and_markdown(tmp_path: Path) -> None:
    path = tmp_path / "recipe.md"
    path.write_text("---\nmodifiers: {WandaPruningModifier: {sparsity: 0.5}}\n---\n# A model card\n")
    assert import_recipe(path, "dense", MATRICES).settings["sparsity"] == 0.5
    path.write_text("# no recipe\n")
    with pytest.raises(InputError, match="between two lines of ---"):
        import_recipe(path, "dense", MATRICES)
    with pytest.raises(InputError, match="cannot read the recipe"):
        import_recipe(tmp_path / "gone.yaml", "dense", MATRICES)
    (tmp_path / "big.yaml").write_bytes(b"a: " + b"x" * MAX_SETTINGS_BYTES)
    with pytest.raises(InputError, match="larger than"):
        import_recipe(tmp_path / "big.yaml", "dense", MATRICES)


def test_stages_below_stages_and_switched_off_ones() -> None:
    text = """
stages:
  first: {enabled: false, p_modifiers: {SparseGPTModifier: {sparsity: 0.9}}}
  second: {p_modifiers: {WandaPruningModifier: {sparsity: eval(s)}}, s: 0.4}
s: 0.1
"""
    assert read(text).settings["sparsity"] == 0.4  # the stage's own variable counts
