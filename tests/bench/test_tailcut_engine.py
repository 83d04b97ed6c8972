"""The engine tailcut on tiny packages: its worker's answers, its proof, and what it refuses."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tailcut import codec
from tailcut.bench import engines
from tailcut.bench.engines import onnxruntime
from tailcut.bench.pair import allowed_gap
from tailcut.bench.run import bench
from tailcut.bench.worker import Worker
from tailcut.export.run import export
from tailcut.kernels import library
from tailcut.manifest import read_manifest
from tailcut.results import BenchResult, Workload

tailcut = engines.load("tailcut")
WORKLOAD = Workload(batch=2, prompt_tokens=8, new_tokens=4, context=32, threads=1, blocks=1)
Seen = tuple[Mapping[str, Any], Mapping[str, Any]]


@pytest.fixture(scope="module", params=["float32", "int8"])
def package(
    request: pytest.FixtureRequest, tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A package with 70 % zeros and a fused graph."""
    model = tmp_path_factory.mktemp("model")
    for path in tiny_model("llama", hidden_size=64).iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    tensors = load_file(model / "model.safetensors")
    for name, array in tensors.items():
        if ".layers." in name and array.ndim == 2:
            tensors[name] = np.where(np.abs(array) < np.quantile(np.abs(array), 0.7), np.float32(0), array)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    export(model, model.with_name(f"{model.name}-{request.param}"), weights=request.param)
    return model.with_name(f"{model.name}-{request.param}")


def zeros(package: Path) -> int:
    return sum(layer.zeros for layer in read_manifest(package).layers.values())


def ask(engine: Any, package: Path) -> Seen:
    """Evidence and logits of a worker that also prefilled and decoded."""
    launch = engine.launch(package, "decode", WORKLOAD)
    tokens = np.random.default_rng(0).integers(0, 256, (2, 32))
    with Worker(launch, timeout_s=120) as worker:
        worker.ask("open", **launch.settings)
        evidence, _ = worker.ask("describe")
        _, logits = worker.ask("logits", {"tokens": tokens[:1, :8]})
        for name, settings in (
            ("prefill", {"repeats": 2, "warmup": 1}),
            ("decode", {"context": 32, "steps": 4, "warmup": 1, "seed": 0}),
            ("decode", {"context": 32, "steps": 4, "warmup": 1, "seed": 0}),
        ):
            _, timed = worker.ask(name, {"tokens": tokens if name == "decode" else tokens[:, :8]}, **settings)
            assert timed["ms"].size == settings.get("steps", 2)
        worker.close()
    return evidence, logits


def test_the_kernels_run_and_prove_it(package: Path) -> None:
    evidence, logits = ask(tailcut, package)
    assert tailcut.refuse(evidence) is None
    proof = tailcut.engagement(evidence, zeros(package))
    assert proof.proven, proof
    calls = evidence["calls_a_token"]
    quantised = package.name.endswith("int8")
    assert calls == 3 * 4 + quantised  # qkv, o, gate and up, down of three blocks; the quantised head
    assert evidence["cache"] == ("float16, in place" if quantised else "float32, in place")
    assert evidence["weight_bytes"] > 0
    _, want = ask(onnxruntime, package)
    gap = np.abs(logits["logits"] - want["logits"]).max() / np.abs(want["logits"]).max()
    assert gap <= allowed_gap(tailcut, package)


def test_the_baseline_runs_without_the_kernels(package: Path) -> None:
    evidence, _ = ask(onnxruntime, package)
    assert evidence["sparse_kernel"] is False
    assert not onnxruntime.engagement(evidence, zeros(package)).proven


def test_tolerance_follows_the_weights(package: Path) -> None:
    assert allowed_gap(tailcut, package) == (3.0 if package.name.endswith("int8") else tailcut.TOLERANCE)
    assert allowed_gap(engines.load("deepsparse"), package) == engines.load("deepsparse").TOLERANCE


def test_without_proof_it_is_not_engaged() -> None:
    good = {"sparse_kernel": True, "zeros_seen": 10, "kernels": "f32 bitmask avx2 12 times a token", "matrix_gap": 0.1}
    assert tailcut.engagement(good, 10).proven
    assert not tailcut.engagement(good, 11).proven
    assert not tailcut.engagement(good, 0).proven
    assert not tailcut.engagement(good | {"sparse_kernel": False}, 10).proven
    assert tailcut.refuse(good) is None
    for gap in (1.5, float("nan")):
        assert "as far from its stored weights" in str(tailcut.refuse(good | {"matrix_gap": gap}))
    assert tailcut.refuse({}) is not None


def test_a_missing_library_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert tailcut.available() is None
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "none.so")
    assert "tailcut engines install tailcut" in str(tailcut.available())


def test_evidence_survives_the_result_file(package: Path) -> None:
    """Only plain values may be in it: a result is written as JSON and read by the gate."""
    work = Workload(prompt_tokens=8, new_tokens=4, context=32, threads=1, blocks=2, prefill_blocks=1)
    result = bench(package, package, engines=["tailcut"], workload=work)
    again = codec.from_json(BenchResult, codec.to_json(result), "result")
    assert again.engines[0].dense is not None, again.engines[0].reason
    assert again.engines[0].dense.evidence["calls_a_token"]
