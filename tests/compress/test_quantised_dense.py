"""Quantised directories as compressed-tensors stores them: the packing bit by bit, the config, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tailcut.allocation import Allocation, Bits, Dense, LayerPlan, Unstructured
from tailcut.checkpoint import Checkpoint
from tailcut.compress.calibration import Calibration
from tailcut.compress.discovery import find_linears
from tailcut.compress.quantised_dense import pack_int32, regroup, write_compressed_tensors
from tailcut.compress.run import compress
from tailcut.errors import InputError
from tailcut.manifest import try_manifest
from tailcut.quantised import dequantise
from tailcut.sidecar import open_sidecars

Model = Callable[..., Path]


def unpack_slowly(packed: np.ndarray, bits: int, columns: int) -> np.ndarray:
    """One value at a time, from the format's definition: 32 / bits values a word, the first in the lowest bits."""
    each = 32 // bits
    rows = [
        [(int(row[at // each]) >> bits * (at % each) & (1 << bits) - 1) - (1 << bits - 1) for at in range(columns)]
        for row in packed.astype(np.int64) & 0xFFFFFFFF
    ]
    return np.array(rows).reshape(len(packed), columns)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 8), (2, 33), (4, 128), (0, 16)])
def test_words_hold_the_integers_first_column_lowest(bits: int, shape: tuple[int, int]) -> None:
    largest = (1 << bits - 1) - 1
    q = np.random.default_rng(0).integers(-largest, largest + 1, shape).astype(np.int8)
    if q.size > 1:
        q.flat[0], q.flat[-1] = -largest, largest
    packed = pack_int32(q, bits)  # type: ignore[arg-type]
    assert packed.dtype == np.int32
    assert packed.shape == (shape[0], -(-shape[1] * bits // 32))
    np.testing.assert_array_equal(unpack_slowly(packed, bits, shape[1]), q)


@pytest.mark.parametrize(("columns", "group"), [(128, 128), (576, 64), (160, 32), (256, 64)])
def test_smaller_groups_repeat_the_scales(columns: int, group: int) -> None:
    scales = np.random.default_rng(1).random((3, -(-columns // 128)), np.float32)
    finer = regroup(scales, columns, group)
    assert finer.shape == (3, columns // group)
    q = np.ones((3, columns), np.int8)
    np.testing.assert_array_equal(np.repeat(finer, group, axis=1), dequantise(q, scales))


def quantised(model: Path, out: Path, bits: dict[str, Bits] | Bits, sparsity: float = 0.5) -> Path:
    names = [linear.name for linear in find_linears(Checkpoint(model))]
    chosen = bits if isinstance(bits, dict) else dict.fromkeys(names, bits)
    pattern = Unstructured(sparsity) if sparsity else Dense()
    plans = {name: LayerPlan(pattern, chosen.get(name)) for name in names}
    compress(
        model,
        Allocation(plans, {}),
        out,
        pruner="magnitude",
        quantiser="rtn",
        calibration=Calibration(samples=1, seqlen=16),
    )
    return out


@pytest.mark.parametrize(("bits", "stored"), [(8, 8), (4, 4), (3, 4)])
def test_a_directory_holds_the_integers_and_says_so(tiny_model: Model, tmp_path: Path, bits: Bits, stored: int) -> None:
    source = quantised(tiny_model("llama"), tmp_path / "q", bits)
    config = write_compressed_tensors(source, tmp_path / "ct")
    assert json.loads((tmp_path / "ct" / "config.json").read_text())["quantization_config"] == config
    (scheme,) = config["config_groups"].values()
    assert (scheme["targets"], scheme["weights"]["num_bits"]) == (["Linear"], stored)
    assert scheme["weights"].get("group_size") == (None if bits == 8 else 32)  # 32 and 64 columns
    assert config["ignore"] == ["lm_head"]
    written, sidecars = Checkpoint(tmp_path / "ct"), open_sidecars(source, try_manifest(source))
    assert len(sidecars) == 21
    for module in sidecars:
        matrix = sidecars.read(module)
        assert f"{module}.weight" not in written
        rows, columns = written.read(f"{module}.weight_shape")
        q = unpack_slowly(written.read(f"{module}.weight_packed"), stored, int(columns))
        np.testing.assert_array_equal(q, matrix.q)
        scales = np.repeat(written.read(f"{module}.weight_scale"), columns if bits == 8 else 32, axis=1)
        np.testing.assert_array_equal(q.astype(np.float32) * scales, matrix.dense())
        assert (q == 0).sum() >= rows * columns // 2


def test_matrices_of_different_bits_and_of_none_are_named(tiny_model: Model, tmp_path: Path) -> None:
    model = tiny_model("llama")
    names = [linear.name for linear in find_linears(Checkpoint(model))]
    bits: dict[str, Bits] = {name: 8 if "mlp" in name else 4 for name in names if "o_proj" not in name}
    config = write_compressed_tensors(quantised(model, tmp_path / "q", bits), tmp_path / "ct")
    eight, four = (config["config_groups"][f"group_{number}"] for number in range(2))
    assert eight["targets"] == sorted(name for name in names if "mlp" in name)
    assert set(four["targets"]) == {name for name in names if "self_attn" in name and "o_proj" not in name}
    assert set(config["ignore"]) == {"lm_head", *(name for name in names if "o_proj" in name)}


def test_eight_bit_activations_store_plain_bytes(tiny_model: Model, tmp_path: Path) -> None:
    source = quantised(tiny_model("llama"), tmp_path / "q", 8)
    config = write_compressed_tensors(source, tmp_path / "ct", activations="int8")
    assert config["format"] == "int-quantized"
    assert config["config_groups"]["group_0"]["input_activations"]["strategy"] == "token"
    name = "model.layers.0.mlp.up_proj"
    stored = Checkpoint(tmp_path / "ct").read(f"{name}.weight")
    assert stored.dtype == np.int8
    np.testing.assert_array_equal(stored, open_sidecars(source, try_manifest(source)).read(name).q)


def test_what_the_format_cannot_hold_is_refused(tiny_model: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no integers to write as compressed-tensors"):
        write_compressed_tensors(tiny_model("llama"), tmp_path / "ct")
    four = quantised(tiny_model("llama"), tmp_path / "four", 4)
    with pytest.raises(InputError, match="8-bit activations need 8-bit weights everywhere"):
        write_compressed_tensors(four, tmp_path / "ct", activations="int8")
    odd = quantised(tiny_model("llama", intermediate_size=48), tmp_path / "odd", 4)
    with pytest.raises(InputError, match=r"down_proj has 48 columns; .* give this matrix 8 bits"):
        write_compressed_tensors(odd, tmp_path / "ct")
    assert not (tmp_path / "ct").exists()


def test_weights_that_are_no_longer_their_integers_are_refused(tiny_model: Model, tmp_path: Path) -> None:
    source = quantised(tiny_model("llama"), tmp_path / "q", 8)
    shard = next(path for path in sorted(source.glob("model*.safetensors")))
    raw = bytearray(shard.read_bytes())
    raw[-4:] = b"\0\0\x80\x3f"
    shard.write_bytes(bytes(raw))
    with pytest.raises(InputError, match="not those of its integers"):
        write_compressed_tensors(source, tmp_path / "ct")
    assert not (tmp_path / "ct").exists()


def test_the_command_writes_one_and_refuses_a_stray_option(
    tiny_model: Model, tmp_path: Path, tailcut: Callable
) -> None:
    source = quantised(tiny_model("llama"), tmp_path / "q", 8)
    code, out, _ = tailcut("pack", source, "-o", tmp_path / "ct", "--format", "compressed-tensors")
    assert (code, out.strip().endswith("pack-quantized, 8 bits")) == (0, True)
    code, _, err = tailcut("pack", source, "-o", tmp_path / "b", "--activations", "int8")
    assert code == 2
    assert "belongs to --format compressed-tensors" in err
