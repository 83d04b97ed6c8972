"""Plans that differ from matrix to matrix, from the allocator to the exported package."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tailcut.allocation import NM, Allocation, Budget, Dense, LayerScore, LayerScores, parse_nm
from tailcut.checkpoint import Checkpoint, float32
from tailcut.compress.allocators import Settings, allocate, nm_mixed, sparse24
from tailcut.compress.calibration import Calibration
from tailcut.compress.discovery import find_linears
from tailcut.compress.inspection import inspect_directory
from tailcut.compress.run import compress
from tailcut.export.run import export
from tailcut.manifest import read_manifest

TinyModel = Callable[..., Path]


def scores_of(directory: Path) -> LayerScores:
    """Values that differ from matrix to matrix, for shapes that are the model's."""
    linears = find_linears(Checkpoint(directory))
    layers = tuple(
        LayerScore(linear.name, linear.block, linear.shape, {"alpha_peak": 2.0 + (7 * place % 11) / 4})
        for place, linear in enumerate(linears)
    )
    return LayerScores("tiny", layers, sum(layer.parameters for layer in layers))


def mixture(directory: Path) -> Allocation:
    settings = Settings(tau=0.6, granularity="matrix", allow_dense=True)
    allocation = nm_mixed.allocate(scores_of(directory), Budget(0.4), settings)
    kept = {plan.pattern.keep for plan in allocation.plans.values() if isinstance(plan.pattern, NM)}
    assert len(kept) >= 3  # else this tests nothing
    return allocation


def fullest(directory: Path, block: int) -> dict[str, int]:
    """Most weights left in any group of each matrix."""
    checkpoint = Checkpoint(directory)
    found = {}
    for linear in find_linears(checkpoint):
        alive = float32(checkpoint.read(linear.tensor)) != 0
        found[linear.name] = int((alive.T if linear.transposed else alive).reshape(-1, block).sum(1).max())
    return found


@pytest.mark.parametrize("pruner", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_every_matrix_gets_its_own_pattern(
    tiny_model: TinyModel, calibration: Calibration, tmp_path: Path, model: str, pruner: str
) -> None:
    source = tiny_model(model)
    allocation = mixture(source)
    manifest = compress(source, allocation, tmp_path / "m", pruner=pruner, calibration=calibration)
    left, seen = fullest(tmp_path / "m", 8), inspect_directory(tmp_path / "m").layers
    for name, plan in allocation.plans.items():
        assert manifest.layers[name].plan == plan
        if isinstance(plan.pattern, NM):
            assert left[name] == plan.pattern.keep
            assert manifest.layers[name].zeros == plan.pattern.sparsity * np.prod(manifest.layers[name].shape)
            obeyed = parse_nm(str(seen[name].group))  # on tiny matrices a tighter one may be obeyed too
            assert obeyed == plan.pattern or obeyed.implies(plan.pattern)
        else:
            assert manifest.layers[name].zeros == 0
            assert seen[name].group is None
    parameters = {name: int(np.prod(layer.shape)) for name, layer in manifest.layers.items()}
    assert manifest.sparsity == pytest.approx(allocation.sparsity(parameters), abs=1e-12)


def test_mixtures_reach_the_package(tiny_model: TinyModel, calibration: Calibration, tmp_path: Path) -> None:
    """export compares the package's logits with torch's; what it wrote must hold the plans and as many zeros."""
    source = tiny_model("llama")
    allocation = mixture(source)
    made = compress(source, allocation, tmp_path / "m", pruner="wanda", calibration=calibration)
    export(tmp_path / "m", tmp_path / "package")
    package = read_manifest(tmp_path / "package")
    assert package.layers == made.layers
    assert package.provenance["allocator"] == "nm-mixed"
    assert "obey 2:4" in package.provenance["two_four"]


def test_patterns_and_bits_together(tiny_model: TinyModel, calibration: Calibration, tmp_path: Path) -> None:
    """Each matrix is cut to its own pattern and rounded to its own bits: no more values a group than bits allow."""
    source = tiny_model("llama")
    settings = Settings(tau=0.6, granularity="matrix", bit_tau=0.5)
    allocation = allocate("nm-mixed", scores_of(source), Budget(0.4, bits=4.0), settings)
    assert len({plan.bits for plan in allocation.plans.values()}) >= 3
    made = compress(source, allocation, tmp_path / "m", quantiser="rtn", calibration=calibration)
    assert {name: layer.plan for name, layer in made.layers.items()} == allocation.plans
    checkpoint = Checkpoint(tmp_path / "m")
    for linear in find_linears(checkpoint):
        plan = allocation.plans[linear.name]
        weight = float32(checkpoint.read(linear.tensor))
        assert isinstance(plan.pattern, NM)
        assert (weight.reshape(-1, 8) != 0).sum(1).max() <= plan.pattern.keep
        # rows have less than 128 columns, so one scale; grids are symmetric about zero
        levels = max(len(np.unique(row)) for row in weight)
        assert levels <= 2 ** (plan.bits or 0) - 1


def test_two_of_four_here_and_dense_there(tiny_model: TinyModel, tmp_path: Path, calibration: Calibration) -> None:
    source = tiny_model("llama")
    allocation = sparse24.allocate(scores_of(source), Budget(0.3), Settings(granularity="matrix"))
    assert {type(plan.pattern) for plan in allocation.plans.values()} == {NM, Dense}
    compress(source, allocation, tmp_path / "m", pruner="sparsegpt", calibration=calibration)
    before, after = Checkpoint(source), Checkpoint(tmp_path / "m")
    groups = {name: layer.group for name, layer in inspect_directory(tmp_path / "m").layers.items()}
    for linear in find_linears(before):
        dense = isinstance(allocation.plans[linear.name].pattern, Dense)
        assert groups[linear.name] == (None if dense else "2:4")
        if dense:
            assert after.read(linear.tensor).tobytes() == before.read(linear.tensor).tobytes()
