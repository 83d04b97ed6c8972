"""vLLM's CPU build on what tailcut writes: plain directories, and quantised ones by its own integer products."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailcut.bench import clients
from tailcut.bench.machine import describe_machine
from tailcut.bench.worker import Worker, WorkerError
from tailcut.errors import InputError

Model = Callable[..., Path]
PROMPT = [256, 7, 30, 99]
COUNT = 12
WIDTHS = {"hidden_size": 128, "intermediate_size": 256}  # heads of 32, the smallest that its attention takes
BOTH = ("vllm", "vllm-packed")
REASON = clients.load("vllm").available()
INSTALLED = [pytest.mark.interop, pytest.mark.skipif(REASON is not None, reason=f"vllm: {REASON}")]


def installed(*values: Any) -> Any:
    return pytest.param(*values, marks=INSTALLED)


def cut(model: Path, out: Path, bits: int | None, whole: str = "") -> Path:
    """Half of the weights zero; matrices named `whole` have no bits."""
    from tailcut.allocation import Allocation, LayerPlan, Unstructured
    from tailcut.checkpoint import Checkpoint
    from tailcut.compress.calibration import Calibration
    from tailcut.compress.discovery import find_linears
    from tailcut.compress.run import compress

    def plan(name: str) -> LayerPlan:
        return LayerPlan(Unstructured(0.5), None if whole and name.endswith(whole) else bits)  # type: ignore[arg-type]

    plans = {linear.name: plan(linear.name) for linear in find_linears(Checkpoint(model))}
    settings: dict[str, Any] = {"pruner": "magnitude", "quantiser": "rtn"}
    compress(model, Allocation(plans, {}), out, calibration=Calibration(samples=1, seqlen=16), **settings)
    return out


def packed(model: Path, out: Path, bits: int, activations: Any = "float") -> Path:
    from tailcut.compress.quantised_dense import write_compressed_tensors

    write_compressed_tensors(cut(model, out / "cut", bits), out / "packed", activations=activations)
    return out / "packed"


@pytest.mark.parametrize("name", BOTH)
def test_a_launch_wants_a_hugging_face_directory_and_fetches_nothing(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no config\.json"):
        clients.load(name).launch(tmp_path, 1)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="threads must be at least 1, got 0"):
        clients.load(name).launch(tmp_path, 0)
    launch = clients.load(name).launch(tmp_path, 2)
    assert launch.script.is_file()
    assert launch.settings["threads"] == 2
    assert launch.environment["HF_HUB_OFFLINE"] == "1"
    assert launch.environment["VLLM_NO_USAGE_STATS"] == "1"  # it would report home
    assert float(launch.environment["VLLM_CPU_KVCACHE_SPACE"]) <= 1


@pytest.mark.parametrize("kind", [installed(name) for name in ("llama", "qwen3")])
def test_a_cut_directory_gives_the_reference_tokens(kind: str, tiny_model: Model, tmp_path: Path) -> None:
    wide = WIDTHS | ({"head_dim": 32} if kind == "qwen3" else {})
    model = cut(tiny_model(kind, **wide), tmp_path / "cut", None)
    wanted = clients.greedy("transformers", model, PROMPT, COUNT)
    found = clients.greedy("vllm", model, PROMPT, COUNT)
    assert found["tokens"] == wanted["tokens"]
    assert found["proof"]["kernels"] == "12 UnquantizedLinearMethod"  # q, k and v are one to it, gate and up as well
    assert found["decode_s"] > 0


def halved(directory: Path) -> Path:
    """Integers of at most 64 and twice the scales: without VNNI its products add pairs in 16 bits, which larger ones overflow."""
    from safetensors.numpy import load_file, save_file

    for path in directory.glob("*.safetensors"):
        tensors = load_file(path)
        for name in [name for name, array in tensors.items() if array.dtype == np.int8]:
            tensors[name] = np.round(tensors[name] / 2).astype(np.int8)
            tensors[f"{name}_scale"] = tensors[f"{name}_scale"] * 2
        save_file(tensors, path, {"format": "pt"})
    return directory


@pytest.mark.parametrize("name", [installed("vllm-packed")])
def test_8_bit_weights_and_activations_run_as_integers(name: str, tiny_model: Model, tmp_path: Path) -> None:
    if reason := clients.load("compressed-tensors").available():
        pytest.skip(f"compressed-tensors: {reason}")
    directory = halved(packed(tiny_model("llama", **WIDTHS), tmp_path, 8, "int8"))
    found = clients.greedy(name, directory, PROMPT, COUNT)
    assert "12 CompressedTensorsW8A8Int8 by CPUInt8ScaledMMLinearKernel" in found["proof"]["kernels"]
    launch = clients.load("compressed-tensors").launch(directory, 1)
    with Worker(launch) as worker:
        worker.ask("open", **launch.settings)
        tokens = np.array([[*PROMPT, *found["tokens"]]])
        logits = worker.ask("logits", {"tokens": tokens})[1]["logits"][0, len(PROMPT) - 1 : -1]
    chosen = np.take_along_axis(logits, np.array(found["tokens"])[:, None], 1)[:, 0]
    # both round activations, not alike: measured 0.08 of the logits' spread (RMS); a token at random lies some 2.5 below
    assert ((logits.max(1) - chosen) < 0.5 * logits.std(1)).all()


@pytest.mark.parametrize("name", [installed("vllm-packed")])
def test_8_bit_weights_alone_are_refused_in_its_own_words(name: str, tiny_model: Model, tmp_path: Path) -> None:
    directory = packed(tiny_model("llama", **WIDTHS), tmp_path, 8)
    with pytest.raises(WorkerError, match=r"(?s)Failed to find a kernel .* uint8b128.*CPUWNA16"):
        clients.greedy(name, directory, PROMPT, COUNT)


@pytest.mark.parametrize("name", [installed("vllm-packed")])
def test_4_bit_weights_need_avx512(name: str, tiny_model: Model, tmp_path: Path) -> None:
    directory = packed(tiny_model("llama", **WIDTHS), tmp_path, 4)
    if any(feature.startswith("avx512") for feature in describe_machine().isa):
        wanted = clients.greedy("transformers", tmp_path / "cut", PROMPT, COUNT)
        assert clients.greedy(name, directory, PROMPT, COUNT)["tokens"] == wanted["tokens"]
        return
    with pytest.raises(WorkerError, match="no attribute 'cpu_gemm_wna16'"):
        clients.greedy(name, directory, PROMPT, COUNT)


@pytest.mark.parametrize("name", [installed("vllm-packed")])
def test_matrices_that_it_joins_must_be_quantised_alike(name: str, tiny_model: Model, tmp_path: Path) -> None:
    from tailcut.compress.quantised_dense import write_compressed_tensors

    model = cut(tiny_model("llama", **WIDTHS), tmp_path / "cut", 8, whole="q_proj")
    write_compressed_tensors(model, tmp_path / "packed", activations="int8")
    with pytest.raises(WorkerError, match=r"Found different quantization schemes for the shards of .*qkv_proj"):
        clients.greedy(name, tmp_path / "packed", PROMPT, COUNT)
