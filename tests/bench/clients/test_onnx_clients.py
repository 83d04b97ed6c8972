"""Clients of the dynamic package really generate: 64 greedy tokens, equal to plain ONNX Runtime's on the same weights."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from tailcut.bench import clients
from tailcut.bench.worker import WorkerError
from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.export.run import export
from tailcut.export.targets import genai

TinyModel = Callable[..., Path]
COUNT: Final = 64
PROMPT: Final = [11, 3, 250, 7, 7, 90, 41, 2]
CUTS: Final = {"dense": 0.0, "half": 0.5}

# optimum's empty cache has another shape than these
REFUSED: Final = {("optimum", family) for family in ("gemma2", "phi3")}

pytestmark = pytest.mark.interop


def require(name: str) -> None:
    if reason := clients.load(name).available():
        pytest.skip(f"{name}: {reason}")


@pytest.fixture(scope="module")
def package(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """package(target, cut, weights, family) -> a checked package of a tiny model, some of whose weights are zero."""
    made: dict[tuple[str, ...], Path] = {}

    def make(target: str, cut: str = "dense", weights: Any = "float32", family: str = "llama") -> Path:
        key = (target, cut, weights, family)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("clients") / "package"
            source = _cut(tiny_model(family, hidden_size=64), tmp_path_factory.mktemp("cut"), CUTS[cut])
            export(source, made[key], target=target, weights=weights)
        return made[key]

    return make


def _cut(model: Path, out: Path, share: float) -> Path:
    """A copy of a model directory with the smallest weights of every matrix inside the blocks set to zero."""
    from safetensors.numpy import load_file, save_file

    for path in model.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    for path in out.glob("*.safetensors") if share else ():
        tensors = load_file(path)
        for name, array in tensors.items():
            if ".layers." in name and array.ndim == 2:
                sizes = np.abs(array.astype(np.float32))
                small = sizes <= np.quantile(sizes, share)
                tensors[name] = np.where(small, 0, array).astype(array.dtype)
        save_file(tensors, path, {"format": "pt"})
    (out / "manifest.json").unlink(missing_ok=True)  # it describes the files as they were
    return out


def reference(package: Callable[..., Path], *key: Any) -> Mapping[str, Any]:
    return clients.greedy("onnxruntime", package("onnxruntime", *key), PROMPT, COUNT)


@pytest.mark.parametrize("key", [("dense",), ("half",), ("half", "int8"), ("half", "float32", "gemma3_text")])
@pytest.mark.parametrize("name", ["optimum", "genai", "openvino"])
def test_a_client_generates_the_reference_tokens(package: Callable[..., Path], name: str, key: Any) -> None:
    require(name)
    answer = clients.greedy(name, package(clients.load(name).TARGET, *key), PROMPT, COUNT)
    wanted = reference(package, *key)
    assert len(answer["tokens"]) == COUNT
    assert answer["tokens"] == wanted["tokens"]
    assert answer["versions"]
    assert answer["proof"]["sparse_kernel"] is False  # none of these multiplies sparse weights
    assert answer["decode_s"] > 0
    assert answer["prefill_s"] > 0


@pytest.mark.parametrize("name", ["genai", "openvino", "optimum"])
def test_every_family_says_the_same_or_is_refused_at_export(
    package: Callable[..., Path], name: str, family: str
) -> None:
    """64 tokens pass the sliding windows of 8; genai's type is its own name of the family, or `decoder`."""
    require(name)
    key = ("half", "float32", family)
    if (name, family) in REFUSED:
        with pytest.raises(InputError, match="use --target onnxruntime or genai"):
            package(name, *key)
        return
    answer = clients.greedy(name, package(name, *key), PROMPT, COUNT)
    assert answer["tokens"] == reference(package, *key)["tokens"]
    if name == "genai":
        assert answer["proof"]["type"] == (family if family in genai.TYPES else "decoder")


def test_plain_onnxruntime_runs_the_function_bodies(package: Callable[..., Path]) -> None:
    assert "SparseMatMul" in reference(package, "half")["proof"]["functions"]
    assert reference(package, "half")["tokens"] != reference(package, "dense")["tokens"]


def test_tailcut_itself_multiplies_the_zeros_away(package: Callable[..., Path]) -> None:
    require("tailcut")
    answer = clients.greedy("tailcut", package("tailcut", "half"), PROMPT, COUNT)
    assert answer["tokens"] == reference(package, "half")["tokens"]
    assert answer["proof"]["sparse_kernel"] is True
    assert clients.greedy("tailcut", package("tailcut"), PROMPT, COUNT)["proof"]["sparse_kernel"] is False


def test_openvino_says_which_products_ran_and_why_none_was_sparse(package: Callable[..., Path]) -> None:
    require("openvino-sparse")
    proof = clients.greedy("openvino-sparse", package("openvino", "half", "int8"), PROMPT, 4)["proof"]
    assert proof["int8_products"] > 0  # statically quantised: the form that can be held compressed
    assert proof["fit"] > 0  # matrices of enough zeros and fitting sides
    assert proof["sparse_kernel"] is not bool(proof["why_not"])
    assert proof["amx"] or "no AMX" in proof["why_not"]


def test_a_clients_own_message_comes_through(package: Callable[..., Path], tmp_path: Path) -> None:
    """The file names another input than the graph's, so the graph's stays empty."""
    require("genai")
    broken = tmp_path / "package"
    broken.mkdir()
    for path in package("genai").iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    text = (broken / "genai_config.json").read_text()
    (broken / "genai_config.json").write_text(text.replace("past_key_values.%d.key", "past.%d.key"))
    with pytest.raises(WorkerError, match=r"Missing Input: past_key_values\.0\.key"):
        clients.greedy("genai", broken, PROMPT, 4)


@pytest.fixture(scope="module")
def real_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M; skips where the package that holds its weights is not installed."""
    from tailcut.compress.make_model import make_model, settings_of

    out = tmp_path_factory.mktemp("models") / "smollm2-135m"
    try:
        make_model("smollm2-135m", out, settings_of())
    except MissingEnvironmentError as error:
        pytest.skip(str(error))
    return out


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("cut", "weights"), [("dense", "float32"), ("half", "float32"), ("half", "int8")])
@pytest.mark.parametrize("name", ["optimum", "genai", "openvino"])
def test_a_real_model_says_the_same_in_every_client(
    real_model: Path, tmp_path: Path, name: str, cut: str, weights: Any
) -> None:
    require(name)
    (tmp_path / "cut").mkdir()
    source = _cut(real_model, tmp_path / "cut", CUTS[cut])
    for target in ("onnxruntime", name):
        export(source, tmp_path / target, target=target, layout="dense", weights=weights, check=False)
    wanted = clients.greedy("onnxruntime", tmp_path / "onnxruntime", PROMPT, COUNT, threads=2, timeout_s=900)
    answer = clients.greedy(name, tmp_path / name, PROMPT, COUNT, threads=2, timeout_s=900)
    assert len(answer["tokens"]) == COUNT
    assert answer["tokens"] == wanted["tokens"]
