"""Clients themselves, where they are installed, on tiny models: the same tokens as plain ONNX Runtime."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tailcut.bench import clients
from tailcut.bench.worker import Worker, WorkerError
from tailcut.kernels.decoder import Decoder

Model = Callable[..., Path]
PROMPT = [256, 7, 30, 99]
COUNT = 12


def needs(name: str) -> list[pytest.MarkDecorator]:
    reason = clients.load(name).available()
    return [pytest.mark.interop, pytest.mark.skipif(reason is not None, reason=f"{name}: {reason}")]


def reference(model: Path, tmp_path: Path, count: int = COUNT) -> tuple[Path, list[int]]:
    """A package, and its greedy tokens by plain ONNX Runtime."""
    from tailcut.export.run import export

    package = tmp_path / "package"
    export(model, package, check=False)
    decoder = Decoder(package, 1, kernels="off")
    tokens = [int(decoder.prefill(np.array([PROMPT]), last_only=True)[0, 0].argmax())]
    while len(tokens) < count:
        tokens.append(int(decoder.step(np.array(tokens[-1:]))[0].argmax()))
    return package, tokens


def cut(model: Path, out: Path, bits: int | None = None) -> Path:
    from tailcut.allocation import Allocation, LayerPlan, Unstructured
    from tailcut.checkpoint import Checkpoint
    from tailcut.compress.calibration import Calibration
    from tailcut.compress.discovery import find_linears
    from tailcut.compress.run import compress

    plan = LayerPlan(Unstructured(0.5), bits)  # type: ignore[arg-type]
    plans = {linear.name: plan for linear in find_linears(Checkpoint(model))}
    settings = {"pruner": "magnitude", "quantiser": "rtn"}
    compress(model, Allocation(plans, {}), out, calibration=Calibration(samples=1, seqlen=16), **settings)  # type: ignore[arg-type]
    return out


def test_transformers_reads_a_cut_directory(tiny_model: Model, tmp_path: Path) -> None:
    model = cut(tiny_model("llama"), tmp_path / "cut")
    _, wanted = reference(model, tmp_path)
    found = clients.greedy("transformers", model, PROMPT, COUNT)
    assert found["tokens"] == wanted
    assert found["proof"]["zeros"] >= 0.5 * 3 * 32 * (2 * 32 + 2 * 16 + 3 * 64)
    assert found["proof"]["sparse_kernel"] is False


def test_a_directory_that_leaves_weights_out_does_not_load(tiny_model: Model, tmp_path: Path) -> None:
    import shutil

    from tailcut.checkpoint import Checkpoint, write_shard

    model = tmp_path / "m"
    shutil.copytree(tiny_model("llama"), model)
    checkpoint = Checkpoint(model)
    tensors = {name: np.array(checkpoint.read(name)) for name in checkpoint.names if "layers.1.mlp.up" not in name}
    write_shard(model / "model.safetensors", tensors)
    with pytest.raises(WorkerError, match=r"no weights for 1 tensors, the first is model\.layers\.1\.mlp\.up_proj"):
        clients.greedy("transformers", model, PROMPT, COUNT)


def hf4() -> list[pytest.MarkDecorator]:
    return needs("transformers4")


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=hf4()) for kind in ("llama", "qwen2", "gpt2", "opt")])
def test_the_release_before_reads_the_same(kind: str, tiny_model: Model, tmp_path: Path) -> None:
    model = cut(tiny_model(kind), tmp_path / "cut")
    assert clients.greedy("transformers4", model, PROMPT, COUNT)["tokens"] == reference(model, tmp_path)[1]


@pytest.mark.parametrize("bits", [pytest.param(bits, marks=needs("compressed-tensors")) for bits in (8, 4)])
@pytest.mark.parametrize("activations", ["float", "int8"])
def test_compressed_tensors_reads_our_integers(bits: int, activations: str, tiny_model: Model, tmp_path: Path) -> None:
    from tailcut.compress.quantised_dense import write_compressed_tensors

    if (bits, activations) == (4, "int8"):
        pytest.skip("8-bit activations go with 8-bit weights")
    model = cut(tiny_model("llama"), tmp_path / "cut", bits)
    write_compressed_tensors(model, tmp_path / "ct", activations=activations)  # type: ignore[arg-type]
    client = clients.load("compressed-tensors")
    tokens = np.random.default_rng(0).integers(0, 256, (1, 16))
    logits = []
    for launch in (client.launch(tmp_path / "ct", 1), clients.load("transformers").launch(model, 1)):
        with Worker(launch) as worker:
            worker.ask("open", **launch.settings)
            logits.append(worker.ask("logits", {"tokens": tokens})[1]["logits"])
    gap = float(np.abs(logits[0] - logits[1]).max() / np.abs(logits[1]).max())
    # the same float32 products of the same weights; rounding activations to 8 bits moves logits by more than that
    assert gap < 1e-5 if activations == "float" else 1e-5 < gap < 0.1
    if activations == "float":
        found = clients.greedy("compressed-tensors", tmp_path / "ct", PROMPT, COUNT)
        assert found["tokens"] == reference(model, tmp_path)[1]
        assert found["proof"]["quantisation"] == "CompressedTensorsConfig"


@pytest.mark.parametrize("layout", [pytest.param(layout, marks=needs("web")) for layout in ("bitmask", "dense")])
def test_web_runs_function_bodies(layout: str, tiny_model: Model, tmp_path: Path) -> None:
    from tailcut.export.run import export

    model = cut(tiny_model("llama"), tmp_path / "cut")
    _, wanted = reference(model, tmp_path)
    export(model, tmp_path / "web", target="web", layout=layout, check=False)  # type: ignore[arg-type]
    found = clients.greedy("web", tmp_path / "web", PROMPT, COUNT)
    assert found["tokens"] == wanted
    assert found["proof"]["provider"] == "wasm"
    assert (found["proof"]["function_body_nodes"] > 0) == (layout == "bitmask")


@pytest.mark.parametrize("name", [pytest.param("web", marks=needs("web"))])
def test_web_gives_the_library_s_own_message(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(WorkerError, match="protobuf parsing failed"):
        clients.greedy(name, tmp_path, PROMPT, COUNT)


DEEPSPARSE = [pytest.param(name, marks=needs(name)) for name in ("deepsparse", "deepsparse-cache")]


@pytest.mark.parametrize("name", DEEPSPARSE)
def test_deepsparse_keeps_either_cache_and_refuses_what_does_not_fit(
    name: str, tiny_model: Model, tmp_path: Path
) -> None:
    from tailcut.export.static import export_deepsparse

    model = cut(tiny_model("llama"), tmp_path / "cut")
    _, wanted = reference(model, tmp_path)
    export_deepsparse(model, tmp_path / "static", context=64, prompt=16, engine_cache=True, check=False)
    found = clients.greedy(name, tmp_path / "static", PROMPT, COUNT)
    assert found["tokens"] == wanted
    assert found["proof"]["supported_fraction"] == 1.0
    assert found["proof"]["capacity"] == 64
    with pytest.raises(WorkerError, match="65 tokens do not fit the cache of 64; DeepSparse does not notice"):
        clients.greedy(name, tmp_path / "static", PROMPT, 64 - len(PROMPT) + 2)


@pytest.mark.parametrize("name", [pytest.param("deepsparse-cache", marks=needs("deepsparse-cache"))])
def test_a_package_without_the_engine_s_graph_says_what_to_do(name: str, tiny_model: Model, tmp_path: Path) -> None:
    from tailcut.export.static import export_deepsparse

    export_deepsparse(tiny_model("llama"), tmp_path / "static", context=32, prompt=8, check=False)
    with pytest.raises(WorkerError, match=r"cached\.onnx is not there"):
        clients.greedy(name, tmp_path / "static", PROMPT, COUNT)


@pytest.mark.parametrize(
    ("name", "context"), [pytest.param("deepsparse-cache", n, marks=needs("deepsparse-cache")) for n in (80, 128)]
)
def test_the_engine_s_cache_is_right_to_the_last_token_or_refused(
    name: str, context: int, tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 80 its logits went wrong from the 64th token on, and at 96 it died, when it was let run."""
    from tailcut.export import static

    monkeypatch.setattr(static, "CACHE_MULTIPLE", 1)
    model = cut(tiny_model("llama"), tmp_path / "cut")
    count = context - len(PROMPT) + 1
    _, wanted = reference(model, tmp_path, count)
    static.export_deepsparse(model, tmp_path / "static", context=context, prompt=16, engine_cache=True, check=False)
    if context % 64:
        with pytest.raises(WorkerError, match=r"exported for 80 tokens; .* multiples of 64 only, so nothing was run"):
            clients.greedy(name, tmp_path / "static", PROMPT, count)
    else:
        assert clients.greedy(name, tmp_path / "static", PROMPT, count)["tokens"] == wanted
