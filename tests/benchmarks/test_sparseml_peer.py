"""The comparison with SparseML: both sides are asked for the same thing, and the table says who is who."""

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tailcut.allocation import NM, Unstructured
from tailcut.compress.discovery import Linear


@pytest.fixture
def script(load_script: Callable[[str], Any]) -> Any:
    return load_script("sparseml_peer")


LINEARS = (Linear("model.layers.0.mlp.up_proj", 0, "w", (8, 8), False),)


def test_both_sides_are_asked_for_the_same(script: Any) -> None:
    for variant in script.VARIANTS:
        (stage,) = yaml.safe_load(script.their_recipe(variant, True)).values()
        ((name, settings),) = stage["pruning_modifiers"].items()
        assert name == script.MODIFIERS[variant.split("+")[0].split()[0]]
        assert settings["sequential_update"] is True
        assert ("owl_m" in settings) == ("owl" in variant)
        assert settings.get("mask_structure") == ("2:4" if "2:4" in variant else None)
    plan = script.our_plan("wanda 2:4", LINEARS, None).plans["model.layers.0.mlp.up_proj"]
    assert plan.pattern == NM(2, 4)
    assert script.our_plan("sparsegpt 0.5", LINEARS, None).plans["model.layers.0.mlp.up_proj"].pattern == Unstructured(
        0.5
    )


def test_the_table_sets_differences_against_ours(script: Any) -> None:
    def row(loss: float, **more: Any) -> dict[str, Any]:
        return {"ppl_9": 7.5, "nll_9": [loss, loss + 8], "layer_error": 0.1, "sparsity": 0.5, "cut_s": 3.0, **more}

    content = {
        "rows": {"dense": {"ppl_9": 5.0}, "tailcut wanda 0.5": row(8), "sparseml wanda 0.5": row(16, agreement=0.97)},
        "context": 9,
        "windows": 2,
        "owl": {"m": 5, "lambda": 0.08},
        "model": {"name": "m"},
        "text": {"name": "t"},
        "calibration": {"samples": 1, "seqlen": 2, "file": "c", "seed": 0},
        "machine": {"cpu": "cpu", "commit": "abc"},
    }
    shown = script.render(content)
    assert "| wanda 0.5 | tailcut | 7.50 | 0.1000 | 0.5000 |  | 3 |" in shown
    assert "| wanda 0.5 | sparseml | 7.50 (+1.0000, 0.0000) | 0.1000 | 0.5000 | 97.0% | 3 |" in shown
    assert "dense 5.00" in shown
    assert "no perplexity" in script.render(content | {"blocks": 4})
