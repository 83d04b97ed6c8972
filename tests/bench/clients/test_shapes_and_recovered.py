"""Structurally cut, recovered and quantised-and-recovered directories through the clients: the same tokens, or a sentence."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from tailcut.bench import clients
from tailcut.bench.worker import WorkerError
from tailcut.errors import InputError

Model = Callable[..., Path]
COUNT: Final = 24
PROMPT: Final = [11, 3, 250, 7, 7, 90, 41, 2]
WIDE: Final = {"hidden_size": 128, "intermediate_size": 256}
HF_CLIENTS: Final = ("transformers", "transformers4", "vllm")
ON_PACKAGES: Final = ("onnxruntime", "openvino", "optimum", "genai", "tailcut")
KINDS: Final = ("equal", "narrow", "recovered", "recovered int8")
TEXT: Final = "The river ran past the old mill, and nobody had opened its door for years; then one morning smoke rose. "

pytestmark = pytest.mark.interop


def require(name: str) -> None:
    if reason := clients.load(name).available():
        pytest.skip(f"{name}: {reason}")


@pytest.fixture(scope="module")
def made(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """made(kind) -> a directory: `equal` and `narrow` blocks after a structured cut, `uneven` ones, or recovered zeros."""
    teacher = tiny_model("llama", **WIDE)
    root = tmp_path_factory.mktemp("made")
    (root / "text.txt").write_text(TEXT * 100)
    makers = {
        "equal": lambda out: structured(teacher, out, ratio=0.5),
        "narrow": lambda out: structured(teacher, out, ratio=0.3, units=("mlp",)),
        "uneven": lambda out: structured(teacher, out, allocation=rising(teacher)),
        "uneven mlp": lambda out: structured(teacher, out, allocation=rising(teacher), units=("mlp",)),
        "recovered": lambda out: recovered(teacher, out, None, root / "text.txt"),
        "recovered int8": lambda out: recovered(teacher, out, 8, root / "text.txt"),
    }

    def make(kind: str) -> Path:
        if not (root / kind).exists():
            makers[kind](root / kind)
        return root / kind

    return make


def structured(model: Path, out: Path, **asked: Any) -> None:
    from tailcut.compress.structured_run import Structuring, cut_structured

    cut_structured(model, out, Structuring(importance="magnitude", multiple=32, refit=False, device="cpu", **asked))


def plans(model: Path, plan: Callable[[int], Any]) -> Any:
    from tailcut.allocation import Allocation
    from tailcut.checkpoint import Checkpoint
    from tailcut.compress.discovery import find_linears

    return Allocation({linear.name: plan(linear.block) for linear in find_linears(Checkpoint(model))}, {})


def rising(model: Path) -> Any:
    """More of each block than of the one before."""
    from tailcut.allocation import LayerPlan, Unstructured

    return plans(model, lambda block: LayerPlan(Unstructured(0.2 + 0.2 * block)))


def recovered(teacher: Path, out: Path, bits: Any, text: Path) -> None:
    from tailcut.allocation import LayerPlan, Unstructured
    from tailcut.compress.calibration import Calibration
    from tailcut.compress.recover import recover
    from tailcut.compress.run import compress
    from tailcut.recovering import Effort, Recovering

    cut = out.with_name(f"{out.name} cut")
    calibration = Calibration(str(text), samples=2, seqlen=16)
    compress(
        teacher,
        plans(teacher, lambda _: LayerPlan(Unstructured(0.5), bits)),
        cut,
        calibration=calibration,
        device="cpu",
    )
    sizes: dict[str, Any] = {"seqlen": 24, "batch": 4, "samples": 4, "rank": 4, "rate": 3e-3, "device": "cpu"}
    recover(cut, teacher, out, Recovering((str(text),), Effort(steps=8), ("distill",), **sizes))


@pytest.fixture(scope="module")
def wanted(made: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[int]]:
    """wanted(kind) -> greedy tokens by plain ONNX Runtime, of a package that was compared with torch."""
    from tailcut.export.run import export

    known: dict[str, list[int]] = {}

    def find(kind: str) -> list[int]:
        if kind not in known:
            out = tmp_path_factory.mktemp("reference") / "package"
            export(made(kind), out, target="onnxruntime")
            known[kind] = list(clients.greedy("onnxruntime", out, PROMPT, COUNT)["tokens"])
        return known[kind]

    return find


def said(name: str, model: Path, out: Path, **asked: Any) -> Mapping[str, Any]:
    """What a client answers to the package of its target."""
    from tailcut.export.run import export

    export(model, out, target=clients.load(name).TARGET, check=False, **asked)
    return clients.greedy(name, out, PROMPT, COUNT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HF_CLIENTS)
def test_directories_with_equal_blocks_are_ordinary(
    name: str, kind: str, made: Callable[[str], Path], wanted: Callable[[str], list[int]]
) -> None:
    require(name)
    assert clients.greedy(name, made(kind), PROMPT, COUNT)["tokens"] == wanted(kind)


@pytest.mark.parametrize("kind", [*KINDS, "uneven mlp"])
@pytest.mark.parametrize("name", ON_PACKAGES)
def test_packages_of_every_kind_are_ordinary(
    name: str, kind: str, made: Callable[[str], Path], wanted: Callable[[str], list[int]], tmp_path: Path
) -> None:
    require(name)
    if (name, kind) == ("optimum", "equal"):  # it lost heads, and optimum works out their width from the hidden size
        with pytest.raises(InputError, match="optimum takes hidden / heads = 64 for the head's width"):
            said(name, made(kind), tmp_path / "package")
        return
    if (name, kind) == ("tailcut", "recovered int8"):
        pytest.skip("its kernels round activations of 8-bit matrices too, so tokens may differ")
    assert said(name, made(kind), tmp_path / "package")["tokens"] == wanted(kind)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "tailcut", "web"])
def test_blocks_with_other_heads_run_where_each_cache_has_its_own_shape(
    name: str, made: Callable[[str], Path], wanted: Callable[[str], list[int]], tmp_path: Path
) -> None:
    require(name)
    assert said(name, made("uneven"), tmp_path / "package")["tokens"] == wanted("uneven")


@pytest.mark.parametrize("name", ["optimum", "genai"])
def test_blocks_with_other_heads_are_refused_at_export_where_one_cache_serves_all(
    name: str, made: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="its blocks have different numbers of key/value heads"):
        said(name, made("uneven"), tmp_path / "package")
    assert not (tmp_path / "package").exists()


@pytest.mark.parametrize("kind", ["uneven", "uneven mlp"])
@pytest.mark.parametrize("name", HF_CLIENTS)
def test_blocks_of_other_shapes_are_refused_by_whoever_builds_them_alike(
    name: str, kind: str, made: Callable[[str], Path]
) -> None:
    """Never silently another model: the library's own error names what does not fit."""
    require(name)
    with pytest.raises(WorkerError, match=r"is a per-layer attribute|size mismatch for weight"):
        clients.greedy(name, made(kind), PROMPT, COUNT)


@pytest.mark.parametrize("name", ["compressed-tensors"])
def test_recovered_integers_are_packed_as_they_are(
    name: str, made: Callable[[str], Path], wanted: Callable[[str], list[int]], tmp_path: Path
) -> None:
    require(name)
    from tailcut.compress.quantised_dense import write_compressed_tensors

    write_compressed_tensors(made("recovered int8"), tmp_path / "packed")
    assert clients.greedy(name, tmp_path / "packed", PROMPT, COUNT)["tokens"] == wanted("recovered int8")
