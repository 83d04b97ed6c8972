"""Cost tables measured with tailcut's kernels on a tiny package, and read from a GPU result."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tailcut import codec
from tailcut.allocation import NM, Allocation, Budget, Dense, LayerPlan, LayerScore, LayerScores, Pattern, Unstructured
from tailcut.bench import cost
from tailcut.bench.cost import Calibrated, Effort, calibrated, from_gpu, measure_costs
from tailcut.bench.gpu import GpuResult
from tailcut.checkpoint import Checkpoint
from tailcut.compress.allocators import Settings, allocate
from tailcut.compress.calibration import Calibration
from tailcut.compress.discovery import find_linears
from tailcut.compress.run import compress
from tailcut.cost import Cost, CostTable
from tailcut.errors import InputError
from tailcut.export.run import export
from tailcut.kernels import library
from tailcut.manifest import read_manifest, write_manifest
from tailcut.quantised import Precision

TinyModel = Callable[..., Path]
needs_kernels = pytest.mark.skipif(library.problem() is not None, reason="tailcut's kernels are not compiled here")
GPU_RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "gpu_kernels.json"
LITTLE = Effort(rounds=2, calls=2, steps=4)


@pytest.fixture
def package(tiny_model: TinyModel, tmp_path: Path) -> Path:
    export(tiny_model("llama"), tmp_path / "dense")
    return tmp_path / "dense"


def scores_of(package: Path) -> LayerScores:
    layers = read_manifest(package).layers
    items = [
        LayerScore(name, int(name.split(".")[2]), layer.shape, {"alpha_peak": 2.0 + 0.1 * place})
        for place, (name, layer) in enumerate(layers.items())
    ]
    return LayerScores("tiny", tuple(items), sum(item.parameters for item in items))


@needs_kernels
@pytest.mark.parametrize("precision", ["float32", "int8", "int4"])
def test_every_shape_of_a_package_is_timed(tiny_model: TinyModel, tmp_path: Path, precision: str) -> None:
    export(tiny_model("llama"), tmp_path / "dense", weights=precision)  # type: ignore[arg-type]
    table = measure_costs(tmp_path / "dense", threads=1, sparsities=(0.5, 0.8), effort=LITTLE)
    shapes = {layer.shape for layer in read_manifest(tmp_path / "dense").layers.values()}
    patterns = (Dense(), Unstructured(0.5), Unstructured(0.8))
    assert {(e.shape, e.pattern) for e in table.entries} == {(s, p) for s in shapes for p in patterns}
    assert table.precisions == (precision,)
    assert all(len(entry.samples_ms) == 2 and entry.ms > 0 for entry in table.entries)
    assert len(table.dense_step_ms[table.precisions[0]]) == 8
    assert table.fixed_ms[table.precisions[0]] >= 0.0
    codec.save(table, tmp_path / "cost.json")
    assert codec.load(CostTable, tmp_path / "cost.json") == table


@needs_kernels
def test_a_measured_table_serves_the_allocator(package: Path) -> None:
    table = measure_costs(package, threads=1, sparsities=(0.5,), effort=LITTLE)
    allocation = allocate("latency", scores_of(package), Budget(0.0, speedup=1.0), Settings(cost=table))
    assert float(allocation.provenance["predicted_speedup"]) >= 1.0 - 1e-6


@needs_kernels
def test_a_sparse_package_is_refused(package: Path) -> None:
    manifest = read_manifest(package)
    layers = {name: replace(layer, plan=LayerPlan(Unstructured(0.5))) for name, layer in manifest.layers.items()}
    write_manifest(replace(manifest, layers=layers), package)
    with pytest.raises(InputError, match="was cut; costs are measured on the dense package"):
        measure_costs(package, threads=1, effort=LITTLE)


@pytest.fixture
def cut(tiny_model: TinyModel, tmp_path: Path) -> Path:
    """The same model with 80 % zeros, exported."""
    model = tiny_model("llama")
    plans = {linear.name: LayerPlan(Unstructured(0.8)) for linear in find_linears(Checkpoint(model))}
    compress(model, Allocation(plans, {}), tmp_path / "cut", pruner="magnitude", calibration=Calibration())
    export(tmp_path / "cut", tmp_path / "sparse")
    return tmp_path / "sparse"


@needs_kernels
def test_a_cut_package_says_what_products_cost_inside_of_a_step(
    package: Path, cut: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # tiny products are too short to time alike twice, so each takes what its parameters and zeros say
    monkeypatch.setattr(cost, "_steps", lambda path, *_: (10.0,) if path == package else (5.0,))
    monkeypatch.setattr(cost, "_shape_costs", _in_proportion)
    table = measure_costs(package, threads=1, sparsities=(0.5, 0.8), effort=LITTLE, cut=cut)
    assert table.cut_step_ms == {"float32": (5.0, 5.0)}
    sums = []
    for path in (package, cut):
        layers = read_manifest(path).layers.values()
        patterns = [Unstructured(layer.sparsity) if layer.zeros else Dense() for layer in layers]
        sums.append(sum(table.curve(x.shape, "float32").ms(p) for x, p in zip(layers, patterns, strict=True)))
    # both packages cost what they took
    assert table.fixed_ms["float32"] + sums[0] == pytest.approx(10.0)
    assert table.fixed_ms["float32"] + sums[1] == pytest.approx(5.0)
    assert codec.from_json(CostTable, codec.to_json(table), "table") == table


def _in_proportion(shape: tuple[int, int], patterns: Sequence[Pattern], precision: Precision, *_: object) -> list[Cost]:
    each = shape[0] * shape[1] / 1e4
    return [Cost(shape, p, precision, each * (1 - p.sparsity), (each * (1 - p.sparsity),)) for p in patterns]


def test_two_packages_give_a_factor_and_a_fixed_part() -> None:
    assert calibrated((16.0, 29.0), (4.0, 14.0)) == Calibrated(1.25, 9.0)
    bounded = calibrated((10.0, 20.0), (5.0, 5.0))  # three times, which would leave less than nothing
    assert (bounded.factor, bounded.fixed_ms) == (2.0, 0.0)
    with pytest.raises(InputError, match="too much alike"):
        calibrated((10.0, 20.0), (9.5, 19.0))
    with pytest.raises(InputError, match="decodes no faster here"):
        calibrated((10.0, 20.0), (5.0, 20.0))


@needs_kernels
def test_what_cannot_calibrate_is_refused(package: Path, tiny_model: TinyModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no zeros"):
        measure_costs(package, threads=1, effort=LITTLE, cut=package)
    export(tiny_model("gemma3_text"), tmp_path / "other")
    with pytest.raises(InputError, match="matrices are not those of"):
        measure_costs(package, threads=1, effort=LITTLE, cut=tmp_path / "other")
    export(tiny_model("llama"), tmp_path / "int8", weights="int8")
    with pytest.raises(InputError, match="its weights are int8"):
        measure_costs(package, threads=1, effort=LITTLE, cut=tmp_path / "int8")


def test_a_gpu_result_says_what_its_kernels_accelerate() -> None:
    result = codec.load(GpuResult, GPU_RESULT)
    table = from_gpu(result)
    assert table.precisions == ("bfloat16", "int4", "int8")
    curve = table.curve((4096, 4096), "bfloat16")
    found = result.product((4096, 4096), 1, "2:4 bf16")
    assert found is not None
    assert found.median_us is not None
    assert curve.ms(NM(2, 4)) == pytest.approx(found.median_us / 1e3)
    assert set(curve.groups) == {NM(2, 4)}
    assert [sparsity for sparsity, _ in curve.points] == [0.5, 0.8]
    with pytest.raises(InputError, match="no dense 4096 x 4096 matrix at int8"):
        table.curve((4096, 4096), "int8")


def test_on_that_gpu_a_speed_is_a_mixture() -> None:
    shapes = [(4096, 4096)] * 2 + [(11008, 4096), (4096, 11008)]
    layers = [
        LayerScore(f"b{b}.m{m}", b, shape, {"alpha_peak": 2.0 + b + 0.1 * m})
        for b in range(4)
        for m, shape in enumerate(shapes)
    ]
    scores = LayerScores("made", tuple(layers), sum(layer.parameters for layer in layers))
    table = from_gpu(codec.load(GpuResult, GPU_RESULT))
    settings = Settings(cost=table, precision="bfloat16")
    allocation = allocate("latency", scores, Budget(0.0, speedup=1.4), settings)
    kinds = {plan.pattern.kind for plan in allocation.plans.values()}
    assert len(kinds) > 1
    assert float(allocation.provenance["predicted_speedup"]) >= 1.4 - 1e-6
    assert float(allocation.provenance["gap_at_most"]) < 0.05


def test_a_result_without_single_rows_is_refused() -> None:
    with pytest.raises(InputError, match="no products of one row"):
        from_gpu(replace(codec.load(GpuResult, GPU_RESULT), products=()))


Tailcut = Callable[..., tuple[int, str, str]]


def test_the_command_reads_a_gpu_result(tailcut: Tailcut, tmp_path: Path) -> None:
    out = tmp_path / "cost.json"
    code, _, errors = tailcut("cost", GPU_RESULT, "-o", out, "--cut", tmp_path)
    assert code == 2
    assert "a GPU result holds products alone" in errors
    code, shown, _ = tailcut("cost", GPU_RESULT, "-o", out)
    assert code == 0
    assert "11008 x 4096" in shown
    assert codec.load(CostTable, out).engine == "tailcut-cuda"
    code, _, errors = tailcut("cost", GPU_RESULT, "-o", out)
    assert code == 2
    assert "cost.json" in errors


@needs_kernels
def test_the_command_measures_a_package(tailcut: Tailcut, package: Path, tmp_path: Path) -> None:
    little = ("--sparsities", "0.5", "--rounds", 1, "--steps", 4, "--threads", 1)
    code, shown, errors = tailcut("cost", package, "-o", tmp_path / "cost.json", *little)
    assert code == 0, errors
    assert "ms outside of them" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--sparsities", "half"), "'half' are not comma-separated fractions"),
        (("--sparsities", "1.5"), "must lie between 0 and 1"),
        (("--rounds", 0), "at least 1 round"),
    ],
)
def test_the_command_refuses_in_a_sentence(
    tailcut: Tailcut, tmp_path: Path, arguments: tuple[object, ...], words: str
) -> None:
    code, _, errors = tailcut("cost", tmp_path, "-o", tmp_path / "cost.json", *arguments)
    assert code == 2
    assert words in errors
    assert errors.count("\n") == 1


def test_a_directory_that_is_no_package(tailcut: Tailcut, tmp_path: Path) -> None:
    code, _, errors = tailcut("cost", tmp_path, "-o", tmp_path / "cost.json")
    assert code != 0
    assert "model.onnx" in errors
