"""ONNX Runtime's int8 and int4 variants of a package: the same model within the rounding, run by ONNX Runtime itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tailcut.bench import variants
from tailcut.bench.engines import load
from tailcut.bench.many import LIMITS, relative_l2
from tailcut.bench.ort_quantise import quantise
from tailcut.bench.worker import Worker
from tailcut.errors import InputError
from tailcut.results import Workload

WORK = Workload(prompt_tokens=8, new_tokens=4, context=32, threads=1)
TOKENS = np.random.default_rng(0).integers(0, 258, (2, 8), np.int64)


@pytest.fixture(scope="module")
def package(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tailcut.export.run import export

    out = tmp_path_factory.mktemp("packages") / "dense"
    # wide enough that rounding averages out: a group of 128 inputs, heads that ONNX Runtime can rotate
    model = tiny_model("llama", hidden_size=128, intermediate_size=256)
    export(model, out, check=False)
    return out


def ask(engine: str, package: Path) -> dict[str, Any]:
    """Evidence, logits, and the number of timed steps and prefills that an engine gives."""
    launch = load(engine).launch(package, "decode", WORK)
    with Worker(launch) as worker:
        worker.ask("open", **launch.settings)
        evidence, _ = worker.ask("describe")
        _, arrays = worker.ask("logits", {"tokens": TOKENS})
        decode = {"context": 32, "steps": 3, "warmup": 1, "seed": 0}
        _, steps = worker.ask("decode", {"tokens": np.tile(TOKENS, 4)}, **decode)
        _, prompts = worker.ask("prefill", {"tokens": TOKENS}, repeats=2, warmup=1)
    return {"evidence": evidence, "logits": arrays["logits"], "times": (steps["ms"].size, prompts["ms"].size)}


@pytest.fixture(scope="module")
def wanted(package: Path) -> Any:
    return ask("onnxruntime", package)["logits"]


def test_the_fused_graph_gives_the_standard_graphs_logits(package: Path, wanted: Any) -> None:
    seen = ask("onnxruntime-fused", package)
    assert seen["evidence"]["graph"] == "fused.onnx"
    assert relative_l2(seen["logits"], wanted) < LIMITS["float32"]
    assert seen["times"] == (3, 2)


@pytest.mark.parametrize(
    ("engine", "weights", "kernel"),
    [("onnxruntime-int8", "int8", "DynamicQuantizeMatMul"), ("onnxruntime-int4", "int4", "MatMulNBits")],
)
def test_a_variant_runs_its_own_kernels_and_is_the_model(
    package: Path, wanted: Any, engine: str, weights: str, kernel: str
) -> None:
    chosen = load(engine)
    variants.prepare(engine, package)
    assert chosen.unfit(package, WORK) is None
    seen = ask(engine, package)
    assert f"13 {kernel}" in seen["evidence"]["kernels"]  # 4 a block and the output matrix
    gap = relative_l2(seen["logits"], wanted)
    assert 1e-3 < gap < LIMITS[weights]  # quantised indeed, and still the model
    assert not chosen.engagement(seen["evidence"], 10).proven
    assert (chosen.directory(package) / "model.onnx.data").stat().st_size < (package / "model.onnx.data").stat().st_size


def test_a_variant_is_made_once_and_again_for_another_package(package: Path, tmp_path: Path) -> None:
    copy = tmp_path / "dense"
    copy.mkdir()
    for path in package.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    engine = load("onnxruntime-int4")
    assert "is not there" in str(engine.unfit(copy, WORK))
    variants.prepare("onnxruntime-int4", copy)
    made = engine.directory(copy) / "fused.onnx"
    first = made.stat().st_mtime_ns
    variants.prepare("onnxruntime-int4", copy)
    assert made.stat().st_mtime_ns == first
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(text + "\n")
    assert "another package of that name" in str(engine.unfit(copy, WORK))


def test_only_dense_packages_are_quantised(package: Path, tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    sparse.mkdir()
    for path in package.iterdir():
        (sparse / path.name).write_bytes(path.read_bytes())
    model = onnx.load(sparse / "fused.onnx", load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == "MatMul")
    node.op_type, node.domain = "SparseMatMul", "tailcut"
    (sparse / "fused.onnx").write_bytes(model.SerializeToString())
    text = (sparse / "manifest.json").read_text()
    size = (package / "fused.onnx").stat().st_size
    (sparse / "manifest.json").write_text(
        text.replace(f'"size_bytes": {size}', f'"size_bytes": {(sparse / "fused.onnx").stat().st_size}')
    )
    with pytest.raises(InputError, match="dense float32 package"):
        quantise(sparse, tmp_path, 4)
