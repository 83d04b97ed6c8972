"""SparseML as a peer: how it is started, and (where its environment is installed) that our recipes run in it as they say."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailcut import recipe_formats
from tailcut.allocation import NM, Allocation, Dense, LayerPlan, Pattern, Unstructured
from tailcut.bench import peers
from tailcut.bench.worker import Worker, WorkerError
from tailcut.checkpoint import Checkpoint
from tailcut.compress.calibration import Calibration, draw
from tailcut.compress.discovery import find_linears, read_weight
from tailcut.compress.run import compress
from tailcut.recipe_formats import Wanted

SPARSEML = peers.load("sparseml")


def test_its_environment_is_locked_and_the_worker_gets_what_it_lends(tmp_path: Path) -> None:
    lines = SPARSEML.RECIPE.lock.read_text().split()
    assert {"sparseml==1.8.0", "sparsezoo==1.8.1"} <= set(lines)
    assert all(line.count("==") == 1 for line in lines)
    assert not [line for line in lines if line.split("==")[0] in ("torch", "transformers", "onnx")]  # lent
    launch = SPARSEML.launch(tmp_path, 2)
    assert launch.script.is_file()
    assert launch.environment["NM_DISABLE_ANALYTICS"] == "1"
    assert launch.settings["threads"] == 2
    assert all(Path(folder).is_dir() for folder in launch.settings["lent"])


def test_it_says_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TAILCUT_ENGINES", str(tmp_path))
    reason = SPARSEML.available() or ""
    assert "tailcut engines install sparseml" in reason or sys.version_info >= (3, 12)
    monkeypatch.setattr(SPARSEML, "_OWN", (3, 13))
    assert "3.11 or older" in (SPARSEML.available() or "")


def needs_it(test: Any) -> Any:
    reason = SPARSEML.available()
    return pytest.mark.interop(pytest.mark.skipif(reason is not None, reason=f"sparseml: {reason}")(test))


def cut(model: Path, recipe: str, tokens: Any, out: Path) -> dict[str, Any]:
    """Module name -> its matrix after SparseML ran `recipe`."""
    launch = SPARSEML.launch(model, 1)
    with Worker(launch) as worker:
        worker.ask("open", **launch.settings)
        worker.ask("cut", {"tokens": tokens}, recipe=recipe, out=str(out))
    made = Checkpoint(out)
    return {linear.name: read_weight(made, linear) for linear in find_linears(made)}


def mixed(name: str, index: int) -> Pattern:
    """Every kind of plan at once, matrix by matrix."""
    kinds: tuple[Pattern, ...] = (NM(1, 4), Unstructured(0.25), Dense(), NM(2, 4), Unstructured(0.75))
    return kinds[index % len(kinds)]


@needs_it
def test_mixed_plans_come_out_as_planned(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny_model("llama")
    names = [linear.name for linear in find_linears(Checkpoint(model))]
    plan = Allocation({name: LayerPlan(mixed(name, index)) for index, name in enumerate(names)}, {})
    text = recipe_formats.load("sparseml").write(plan, Wanted(order=names)).text
    tokens = np.random.default_rng(0).integers(3, 60, (3, 24))
    for name, weight in cut(model, text, tokens, tmp_path / "out").items():
        pattern = plan.plans[name].pattern
        if isinstance(pattern, NM):
            kept = (weight.reshape(len(weight), -1, pattern.block) != 0).sum(-1)
            assert (kept == pattern.keep).all(), name
        else:  # rows lose floor(inputs * sparsity)
            assert (weight == 0).mean() == int(weight.shape[1] * pattern.sparsity) / weight.shape[1], name


@needs_it
def test_sequential_wanda_is_ours_bit_for_bit(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """The same calibration tokens, blocks one after another: nothing is left to differ."""
    model, text = tiny_model("llama"), tmp_path / "text.txt"
    text.write_text("".join(f"line {number * 7919 % 1009} of many\n" for number in range(150)))
    calibration = Calibration(str(text), 4, 24)
    linears = find_linears(Checkpoint(model))
    plan = Allocation({linear.name: LayerPlan(Unstructured(0.5)) for linear in linears}, {"allocator": "uniform"})
    recipe = recipe_formats.load("sparseml").write(plan, Wanted()).text
    theirs = cut(model, recipe, draw(calibration, model, 2048).tokens, tmp_path / "theirs")
    compress(model, plan, tmp_path / "ours", pruner="wanda", calibration=calibration, device="cpu")
    ours = Checkpoint(tmp_path / "ours")
    different = sum(int(((read_weight(ours, one) == 0) != (theirs[one.name] == 0)).sum()) for one in linears)
    assert different == 0


@needs_it
def test_its_own_words_come_through(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    recipe = 'oneshot_stage: {p_modifiers: {WandaPruningModifier: {sparsity: [0.5], targets: ["re:.*q_proj"]}}}'
    with pytest.raises(WorkerError, match="Number of layer targets must match"):
        cut(tiny_model("llama"), recipe, np.zeros((1, 8), np.int64), tmp_path / "out")
