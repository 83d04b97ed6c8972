"""The GPU engines without a GPU: what they say, and their worker on a CPU against ONNX Runtime."""

import importlib
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailcut.bench import engines
from tailcut.bench.gpu_device import gpu_problem
from tailcut.bench.run import bench, memory_of
from tailcut.bench.worker import SCRIPTS, Launch, Worker, WorkerError
from tailcut.manifest import read_manifest
from tailcut.results import BandwidthPoint, Machine, Workload

NAMES = ("torch-cuda-dense", "torch-cuda-2:4", "torch-cusparselt", "torch-int4")
SPARSE = ("torch-cuda-2:4", "torch-cusparselt")
WORKLOAD = Workload(batch=1, prompt_tokens=8, new_tokens=4, context=32, threads=1, blocks=1)
Packages = Mapping[str, Path]


@pytest.fixture(scope="module")
def packages(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """A dense package and one cut to 2:4 by `tailcut compress`, both float32."""
    from tailcut.allocation import NM, Allocation, LayerPlan
    from tailcut.checkpoint import Checkpoint
    from tailcut.compress.calibration import Calibration
    from tailcut.compress.discovery import find_linears
    from tailcut.compress.run import compress
    from tailcut.export.run import export

    out = tmp_path_factory.mktemp("packages")
    model = tiny_model("llama", hidden_size=64)
    plans = {linear.name: LayerPlan(NM(2, 4)) for linear in find_linears(Checkpoint(model))}
    compress(model, Allocation(plans, {}), out / "cut", pruner="magnitude", calibration=Calibration(), device="cpu")
    export(model, out / "dense", check=False)
    export(out / "cut", out / "sparse", check=False)
    return {"dense": out / "dense", "sparse": out / "sparse"}


def on_a_cpu(launch: Launch) -> Launch:
    environment = {**launch.environment, "TRITON_INTERPRET": "1"}
    return replace(launch, settings={**launch.settings, "device": "cpu"}, environment=environment)


def logits_of(launch: Launch, tokens: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], Mapping[str, Any]]:
    with Worker(launch, timeout_s=120) as worker:
        worker.ask("open", **launch.settings)
        evidence, _ = worker.ask("describe")
        _, arrays = worker.ask("logits", {"tokens": tokens})
        _, decoded = worker.ask("decode", {"tokens": tokens}, context=16, steps=2, warmup=1, seed=0)
        _, filled = worker.ask("prefill", {"tokens": tokens}, repeats=2, warmup=1)
        worker.close()
    assert (decoded["ms"].size, filled["ms"].size) == (2, 2)
    return arrays["logits"], evidence


def test_the_colon_is_part_of_the_name() -> None:
    assert set(NAMES) <= set(engines.names())
    assert engines.load("torch-cuda-2:4") is engines.load("torch-cuda-24")


@pytest.mark.parametrize("role", ["dense", "sparse"])
def test_the_dense_loop_computes_the_model(packages: Packages, role: str) -> None:
    """float32 on a CPU, so that only orders of summation differ: the tolerance of the CPU engines."""
    tokens = np.random.default_rng(0).integers(0, 256, (1, 4))
    launch = on_a_cpu(engines.load("torch-cuda-dense").launch(packages[role], "decode", WORKLOAD))
    reference = engines.load("onnxruntime").launch(packages[role], "decode", WORKLOAD)
    got, evidence = logits_of(launch, tokens)
    want, _ = logits_of(reference, tokens)
    assert np.abs(got - want).max() / np.abs(want).max() <= 1e-4
    assert evidence["sparse_kernel"] is False
    assert evidence["cache"] == "float32, in place"


def test_two_four_matrices_are_packed_and_prove_it(packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker in this process. The kernels themselves (minutes in the interpreter) are the formula's: unpack, multiply.

    float16 weights and activations: their rounding (2^-11) over three layers.
    """
    import torch

    from tailcut.kernels.gpu import dispatch, reference
    from tailcut.kernels.gpu.layer import Layer

    def formula(x: torch.Tensor, layer: Layer) -> torch.Tensor:
        assert layer.two_four is not None
        return reference.matmul(x, layer.two_four, torch.float32).to(x.dtype)

    monkeypatch.setattr(dispatch, "linear", formula)
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    worker = importlib.import_module("torch_cuda_worker")
    engine = engines.load("torch-cuda-2:4")
    settings = {**engine.launch(packages["sparse"], "decode", WORKLOAD).settings, "cpus": []}
    worker.open_package({**settings, "device": "cpu", "dtype": "float16"}, {})
    evidence, _ = worker.describe({}, {})
    tokens = np.random.default_rng(0).integers(0, 256, (1, 4))
    _, arrays = worker.logits({}, {"tokens": tokens})
    want, _ = logits_of(engines.load("onnxruntime").launch(packages["sparse"], "decode", WORKLOAD), tokens)
    assert np.abs(arrays["logits"] - want).max() / np.abs(want).max() <= 2e-2
    zeros = sum(layer.zeros for layer in read_manifest(packages["sparse"]).layers.values())
    assert engine.engagement(evidence, zeros).proven, evidence
    assert evidence["kernels"] == "2:4, 16 bits: 12 matrices (gemv 12)"
    assert not engine.engagement(evidence, 10**9).proven


def test_dense_matrices_prove_nothing() -> None:
    good = {"sparse_kernel": True, "zeros_seen": 10, "kernels": "2:4, 16 bits: 4 matrices"}
    for name in SPARSE:
        engine = engines.load(name)
        assert engine.engagement(good, 10).proven
        assert not engine.engagement(good, 0).proven
        assert not engine.engagement(good | {"sparse_kernel": False}, 10).proven
    for name in ("torch-cuda-dense", "torch-int4"):
        assert not engines.load(name).engagement(good, 10).proven


@pytest.mark.parametrize("name", NAMES)
def test_other_families_and_other_patterns_are_refused(name: str, packages: Packages, tmp_path: Path) -> None:
    engine = engines.load(name)
    assert engine.unfit(packages["sparse"], WORKLOAD) is None
    assert engine.unfit(packages["dense"], WORKLOAD) is None
    copy = shutil.copytree(packages["dense"], tmp_path / "copy")
    (copy / "config.json").write_text('{"model_type": "gpt2"}')
    assert "this is 'gpt2'" in str(engine.unfit(copy, WORKLOAD))
    (copy / "config.json").write_text("[]")
    assert "no readable config.json" in str(engine.unfit(copy, WORKLOAD))
    (copy / "model.onnx").unlink()
    assert "no model.onnx" in str(engine.unfit(copy, WORKLOAD))


@pytest.mark.skipif(gpu_problem(triton=True) is None, reason="this machine has a GPU")
def test_without_a_gpu_each_is_listed_with_the_reason(packages: Packages) -> None:
    result = bench(packages["dense"], packages["sparse"], engines=NAMES, workload=WORKLOAD)
    assert [engine.status for engine in result.engines] == ["not measured"] * 4
    assert {engine.reason for engine in result.engines} == {gpu_problem(triton=True)}


def test_a_worker_without_a_gpu_says_so(packages: Packages) -> None:
    launch = engines.load("torch-cuda-dense").launch(packages["dense"], "decode", WORKLOAD)
    if gpu_problem() is None:
        pytest.skip("this machine has a GPU")
    with Worker(launch, timeout_s=120) as worker, pytest.raises(WorkerError, match="could not open"):
        worker.ask("open", **launch.settings)


def test_the_roofline_of_a_gpu_engine_is_the_gpu_s() -> None:
    machine = Machine("cpu", (), 1, 1, 1, 32 << 20, None, "Linux", {}, None, "")
    own = BandwidthPoint(2, 20.0, (20.0,))
    assert memory_of({}, machine, own) == (own, 32 << 20)
    point, cache = memory_of({"device_gb_per_s": 3000.0, "device_l2_bytes": 50 << 20}, machine, own)
    assert (point.best_gb_per_s, cache) == (3000.0, 50 << 20)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_bench_on_the_gpu(name: str, packages: Packages) -> None:
    work = Workload(prompt_tokens=8, new_tokens=4, context=32, threads=1, blocks=2, prefill_blocks=1)
    found = bench(packages["dense"], packages["sparse"], engines=[name], workload=work).engines[0]
    assert found.status == "measured", found.reason
    assert found.engagement is not None
    assert found.engagement.proven is (name in SPARSE), found.engagement
