"""Quantised directories exported: the same integers in the package, run by the kernels, damage refused."""

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tailcut import codec
from tailcut import manifest as manifests
from tailcut.allocation import NM, Allocation, Bits, Dense, LayerPlan, Pattern, Unstructured
from tailcut.checkpoint import Checkpoint, write_shard
from tailcut.compress.calibration import Calibration
from tailcut.compress.discovery import find_linears
from tailcut.compress.run import compress
from tailcut.errors import InputError
from tailcut.export.run import export
from tailcut.kernels import library
from tailcut.kernels.decoder import Decoder
from tailcut.kernels.package import open_package
from tailcut.kernels.session import load_session
from tailcut.kernels.stored import module_names, stored_matrices
from tailcut.sidecar import open_sidecars

TinyModel = Callable[..., Path]


@pytest.fixture(scope="session")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text(" ".join(f"{37 * i * i % 1009} sheep of {i % 13} farms" for i in range(130)))
    return Calibration(str(path), samples=6, seqlen=24, seed=1)


def plan(
    directory: Path, pattern: Pattern, bits: Bits | None, others: dict[str, LayerPlan] | None = None
) -> Allocation:
    """The same for every linear, but for those whose name has a part of `others`."""
    plans = {}
    for linear in find_linears(Checkpoint(directory)):
        chosen = [value for part, value in (others or {}).items() if part in linear.name]
        plans[linear.name] = chosen[0] if chosen else LayerPlan(pattern, bits)
    return Allocation(plans, {"allocator": "test"})


MIXED: dict[str, LayerPlan] = {
    "layers.0.self_attn.k_proj": LayerPlan(Unstructured(0.5), 8),  # q, k and v of three precisions
    "layers.0.self_attn.v_proj": LayerPlan(Dense()),
    "layers.0.mlp.up_proj": LayerPlan(NM(2, 4), 8),
    "layers.1.mlp.down_proj": LayerPlan(Unstructured(0.7), 3),
    "layers.1.self_attn.o_proj": LayerPlan(Dense(), 2),
    "layers.2.self_attn.": LayerPlan(Dense(), 8),
}


@pytest.fixture(scope="session")
def mixed(
    tiny_model: TinyModel, calibration: Calibration, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """mixed(dtype): a llama with heads wide enough for fused.onnx, and every kind of plan in it."""
    made: dict[str, Path] = {}

    def make(dtype: str) -> Path:
        if dtype not in made:
            source = tiny_model("llama", dtype, head_dim=16, hidden_size=144, num_attention_heads=8)
            made[dtype] = tmp_path_factory.mktemp("mixed") / dtype
            chosen = plan(source, Unstructured(0.5), 4, MIXED)
            compress(source, chosen, made[dtype], pruner="sparsegpt", quantiser="gptq", calibration=calibration)
        return made[dtype]

    return make


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("layout", ["bitmask", "dense"])
def test_packages_hold_the_directorys_integers(
    dtype: str, layout: Literal["bitmask", "dense"], mixed: Callable[[str], Path], tmp_path: Path
) -> None:
    source = mixed(dtype)
    before = manifests.verify(source)
    made = export(source, tmp_path / "p", layout=layout)
    sidecars, seen = open_sidecars(source, before), set()
    for matrix in stored_matrices(open_package(tmp_path / "p")):
        begin, whole = 0, matrix.dense()
        for module in module_names(matrix.name):
            rows = slice(begin, begin := begin + made.layers[module].shape[0])
            if module not in sidecars:
                continue
            seen.add(module)
            want = sidecars.read(module)
            assert matrix.kind.endswith("Int8" if want.bits == 8 else "Int4")
            assert matrix.scales is not None
            assert np.array_equal(matrix.scales[rows], want.scales)
            assert np.array_equal(whole[rows], want.dense())
    assert seen == set(sidecars)
    for name, layer in made.layers.items():
        assert layer.plan == before.layers[name].plan
        if name in sidecars:
            assert (layer.error, layer.output_error) == (before.layers[name].error, before.layers[name].output_error)
    assert made.details["precision"] == "mixed: 1 float32, 14 int4, 6 int8"
    assert made.details["parity_top1_agreement"] == 1.0
    assert (layout == "dense") == ("fused_parity_max_abs_error" not in made.details)


def logits_of(model: Any, ids: np.ndarray[Any, Any]) -> Any:
    with torch.inference_mode():
        return model(torch.from_numpy(ids)).logits.numpy()


@pytest.mark.parametrize("bits", [8, 4])
def test_logits_are_those_of_the_directory(
    bits: Bits, tiny_model: TinyModel, calibration: Calibration, tmp_path: Path
) -> None:
    source = tiny_model("llama")
    compress(source, plan(source, Unstructured(0.5), bits), tmp_path / "q", pruner="wanda", calibration=calibration)
    export(tmp_path / "q", tmp_path / "p")
    ids = np.arange(24).reshape(2, 12) * 7 % 258
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "q", attn_implementation="eager")
    want = logits_of(model, ids)
    got = Decoder(tmp_path / "p", kernels="off").prefill(ids, np.ones_like(ids))
    # the same float32 weights; sums of 64 products in another order, three blocks: a few 1e-7 of the largest logit each
    assert np.abs(got - want).max() < 2e-5 * np.abs(want).max()


@pytest.mark.parametrize("graph", ["model.onnx", "fused.onnx"])
def test_kernels_run_every_integer_matrix(graph: str, mixed: Callable[[str], Path], tmp_path: Path) -> None:
    """One product a node and step, by its own kind; int8 activations in two parts, so that logits stay close."""
    export(mixed("float32"), tmp_path / "p", activation_bits=16, check=False)
    nodes = Counter(node.op_type[-4:] for node in open_package(tmp_path / "p", graph=graph).model.graph.node)
    # by block, joined ones once. int8: k, up; none; q+k+v, o. int4: q, o, gate, down; q+k+v, o, gate+up, down; the last two
    assert (nodes["Int8"], nodes["Int4"]) == (4, 10)
    session = load_session(tmp_path / "p", kernels="require", graph=graph)
    decoder, portable = Decoder(None, session=session), Decoder(tmp_path / "p", kernels="off")
    ids = np.arange(9)[None] * 11 % 258
    want, got = (one.prefill(ids) for one in (portable, decoder))
    # 16-bit activations: about 1e-4 of a matrix's largest input each, through three blocks
    assert np.abs(got - want).max() < 5e-3 * np.abs(want).max()
    before = library.counters()
    decoder.step(ids[:, 0])
    ran = Counter(library.counters())
    ran.subtract(before)
    for kind, count in (("i8", nodes["Int8"]), ("i4", nodes["Int4"])):
        assert sum(calls for name, calls in ran.items() if name.startswith(f"{kind} ")) == count


def test_the_rest_follows_weights(mixed: Callable[[str], Path], tmp_path: Path) -> None:
    made = export(mixed("float32"), tmp_path / "p", weights="int8", head="int8")
    assert made.details["precision"] == "mixed: 14 int4, 7 int8"
    assert made.layers["model.layers.0.self_attn.v_proj"].plan.bits is None


def test_sizes_count_what_is_stored(mixed: Callable[[str], Path], tmp_path: Path) -> None:
    made = export(mixed("float32"), tmp_path / "p")
    package = open_package(tmp_path / "p")
    inside = set(made.layers)
    tensors = {tensor.name: tensor for tensor in package.model.graph.initializer}
    nodes = [node for node in package.model.graph.node if set(module_names(node.name)) <= inside]
    assert made.details["linear_bytes"] == sum(
        package.array(tensors[part]).nbytes for node in nodes for part in node.input[1:] if part in tensors
    )
    weights = sum(layer.shape[0] * layer.shape[1] for layer in made.layers.values())
    assert made.details["linear_bits_per_weight"] == pytest.approx(8 * int(made.details["linear_bytes"] or 0) / weights)


def test_three_bits_take_the_bytes_of_four(tiny_model: TinyModel, tmp_path: Path) -> None:
    source, sizes = tiny_model("llama"), []
    for bits in (4, 3):
        out = tmp_path / str(bits)
        compress(source, plan(source, Dense(), bits), out, quantiser="rtn", calibration=Calibration())
        export(out, tmp_path / f"p{bits}", layout="dense", check=False)
        sizes.append((tmp_path / f"p{bits}" / "model.onnx.data").stat().st_size)
    assert sizes[0] == sizes[1]


def damaged(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "damaged"))


def test_damaged_integers_are_refused(mixed: Callable[[str], Path], tmp_path: Path) -> None:
    copy = damaged(mixed("float32"), tmp_path)
    path = copy / "quantised-00002-of-00003.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"quantised-00002-of-00003\.safetensors: differs from the manifest"):
        export(copy, tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_weights_that_are_not_the_integers_are_refused(mixed: Callable[[str], Path], tmp_path: Path) -> None:
    """A directory that was trained on after it was quantised."""
    copy = damaged(mixed("float32"), tmp_path)
    checkpoint, name = Checkpoint(copy), "model.layers.1.mlp.down_proj.weight"
    shard = next(path for path in checkpoint.files if name in checkpoint.names_in(path))
    tensors = {key: np.array(checkpoint.read(key)) for key in checkpoint.names_in(shard)}
    tensors[name][0, 0] += 1
    write_shard(shard, tensors)
    with pytest.raises(
        InputError, match=r"layers\.1\.mlp\.down_proj: the stored weights are not those of its integers"
    ):
        export(copy, tmp_path / "p")


def test_commands_end_to_end(tiny_model: TinyModel, calibration: Calibration, tmp_path: Path) -> None:
    source = tiny_model("llama", head_dim=16)
    codec.save(plan(source, Unstructured(0.5), 8, {"mlp": LayerPlan(Unstructured(0.5), 4)}), tmp_path / "a.json")

    def tailcut(*arguments: str) -> str:
        command = [sys.executable, "-m", "tailcut", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    settings = ("--pruner", "sparsegpt", "--quantiser", "joint", "--calibration", calibration.source, "--seqlen", "24")
    said = tailcut(
        "compress", str(source), "-o", str(tmp_path / "q"), "--allocation", str(tmp_path / "a.json"), *settings
    )
    assert "joint: 21 of 21 matrices have integers of 6.00 bits a weight" in said
    assert "squared output error" in tailcut("inspect", str(tmp_path / "q"))
    assert "mixed: 9 int4, 12 int8" in tailcut("export", str(tmp_path / "q"), "-o", str(tmp_path / "p"))
    assert "every file has the size and sha256" in tailcut("inspect", str(tmp_path / "p"))
