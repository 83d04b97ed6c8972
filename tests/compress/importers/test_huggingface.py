"""Pruned directories of other tools: adopted bit for bit, zeros counted, the plan that follows."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tailcut import codec
from tailcut.allocation import NM, Allocation, Dense, LayerPlan, Unstructured
from tailcut.checkpoint import Checkpoint, read_shard, write_shard
from tailcut.compress.adopting import FEW, allocation_of, bring, choose, detect, pattern_of
from tailcut.compress.importers.huggingface import without_signed_zeros
from tailcut.compress.inspection import MatrixFacts
from tailcut.compress.packing import pack
from tailcut.errors import InputError
from tailcut.manifest import verify

TinyModel = Callable[..., Path]
Tailcut = Callable[..., tuple[int, str, str]]


@pytest.fixture
def wanda(tiny_model: TinyModel, tmp_path: Path) -> Path:
    """As Wanda's script saves it: dense bfloat16, q at 2:4, others by a mask that leaves -0.0, k untouched."""
    made = tmp_path / "wanda"
    shutil.copytree(tiny_model("llama", "bfloat16"), made)
    tensors = {name: np.array(array) for name, array in read_shard(made / "model.safetensors").items()}
    for name, array in tensors.items():
        if ".layers." not in name or array.ndim != 2 or "k_proj" in name:
            continue
        size = np.abs(array.astype(np.float32))
        if "q_proj" in name:
            array.reshape(-1, 4)[np.arange(array.size // 4)[:, None], np.argsort(size.reshape(-1, 4), 1)[:, :2]] = 0
        else:
            array[...] = array * (size > np.quantile(size, 0.7)).astype(array.dtype)
    write_shard(made / "model.safetensors", tensors)
    return made


def test_a_pruned_directory_is_adopted(wanda: Path, tmp_path: Path, tailcut: Tailcut) -> None:
    assert detect(wanda) == ("huggingface", "a Hugging Face directory")
    plan = tmp_path / "plan.json"
    code, shown, errors = tailcut("import", wanda, "-o", tmp_path / "m", "--allocation", plan)
    assert code == 0, errors
    assert "21 matrices (3 2:4, 3 dense, 15 unstructured)" in shown
    manifest = verify(tmp_path / "m")
    before, made = Checkpoint(wanda), Checkpoint(tmp_path / "m")
    turned = 0
    for name in before.names:
        one, other = before.read(name), made.read(name)
        assert np.array_equal(one.astype(np.float32), other.astype(np.float32)), name
        if ".layers." in name and one.ndim == 2:
            turned += int(np.count_nonzero(np.signbit(one.astype(np.float32)) & (one == 0)))
            assert not np.any(np.signbit(other.astype(np.float32)) & (other == 0)), name
        else:
            assert one.tobytes() == other.tobytes()
    assert manifest.details["signed_zeros"] == turned > 0
    assert manifest.layers["model.layers.0.self_attn.q_proj"].plan.pattern == NM(2, 4)
    assert manifest.layers["model.layers.1.self_attn.k_proj"].plan.pattern == Dense()
    allocation = codec.load(Allocation, plan)
    assert allocation == allocation_of(manifest)
    code, _, errors = tailcut("export", tmp_path / "m", "-o", tmp_path / "p")
    assert code == 0, errors


def test_what_zeros_say_of_a_matrix() -> None:
    def pattern(zeros: int, group: str | None = None) -> object:
        return pattern_of(MatrixFacts(0, (10, 100), zeros, 4000, 1000, group))

    assert pattern(0) == pattern(round(FEW * 1000) - 1) == Dense()
    assert pattern(700) == Unstructured(0.7)
    assert pattern(500, "2:4") == pattern(515, "2:4") == NM(2, 4)
    assert pattern(800, "2:4") == Unstructured(0.8)  # every group obeys by chance


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_only_signed_zeros_change(dtype: type[np.floating]) -> None:
    array = np.array([[0.0, -0.0, 1.0], [-0.0, -1.0, 0.0]], dtype)
    plain, count = without_signed_zeros(array)
    assert count == 2
    assert plain.tobytes() == np.array([[0.0, 0.0, 1.0], [0.0, -1.0, 0.0]], dtype).tobytes()
    assert without_signed_zeros(plain)[0] is plain
    assert without_signed_zeros(np.zeros((0, 3), dtype))[1] == 0


def test_what_is_ours_already_or_quantised_by_others_is_named(wanda: Path, tmp_path: Path) -> None:
    pack(wanda, tmp_path / "packed")
    with pytest.raises(InputError, match="no importer recognises it"):
        choose(tmp_path, None)
    bring(wanda, tmp_path / "m", "huggingface")
    pack(tmp_path / "m", tmp_path / "ours")
    with pytest.raises(InputError, match="tailcut unpack"):
        choose(tmp_path / "ours", None)
    with pytest.raises(InputError, match="not written over its source"):
        bring(wanda, wanda, "huggingface", overwrite=True)
    with pytest.raises(InputError, match="no such file"):
        choose(tmp_path / "nowhere", "huggingface")
    with pytest.raises(InputError, match="unknown importer 'pickle'; choose one of"):
        choose(wanda, "pickle")
    config = json.loads((wanda / "config.json").read_text())
    (wanda / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(InputError, match=r"quantised \(gptq\)"):
        bring(wanda, tmp_path / "again", "huggingface")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    "damage", ["truncated", "huge header", "missing shard", "escape", "pickle", "nan", "other config"]
)
def test_hostile_directories_are_refused(damage: str, wanda: Path, tmp_path: Path, tailcut: Tailcut) -> None:
    weights, index = wanda / "model.safetensors", wanda / "model.safetensors.index.json"
    names = list(read_shard(weights))
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "huge header":
        weights.write_bytes((1 << 60).to_bytes(8, "little") + weights.read_bytes()[8:])
    elif damage == "missing shard":
        index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-00002-of-00002.safetensors")}))
    elif damage == "escape":
        index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "../wanda/model.safetensors")}))
    elif damage == "pickle":
        weights.rename(wanda / "pytorch_model.bin")
    elif damage == "nan":
        tensors = {name: np.array(array) for name, array in read_shard(weights).items()}
        tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = np.nan
        write_shard(weights, tensors)
    else:
        config = json.loads((wanda / "config.json").read_text())
        (wanda / "config.json").write_text(json.dumps(config | {"hidden_size": 1 << 40}))
    code, shown, errors = tailcut("import", wanda, "-o", tmp_path / "m")
    assert code == 2
    assert errors.splitlines()[-1].startswith("tailcut: ")
    assert ".tmp-" not in errors
    assert "Traceback" not in shown + errors
    assert not (tmp_path / "m").exists()


def test_the_derived_plan_has_no_bits() -> None:
    from tailcut.compress.inspection import Inspection

    found = Inspection({"a": MatrixFacts(0, (4, 4), 8, 64, 40, "2:4")}, 16, 64)
    assert allocation_of(found).plans == {"a": LayerPlan(NM(2, 4))}
