"""Reading checkpoints: what is written comes back, and damaged or dishonest files are one sentence, never a crash."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tailcut.checkpoint import (
    DTYPES,
    INDEX_NAME,
    SINGLE_NAME,
    Checkpoint,
    float32,
    is_finite,
    packed_tensors,
    write_index,
    write_shard,
)
from tailcut.errors import InputError

RNG = np.random.default_rng(0)


def directory(path: Path, tensors: dict[str, Any]) -> Path:
    """An HF directory with one weight file."""
    (path / "config.json").write_text('{"model_type": "llama"}')
    write_shard(path / SINGLE_NAME, tensors)
    return path


def raw_file(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file written by hand, so that it may lie."""
    (path / "config.json").write_text("{}")
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (path / SINGLE_NAME).write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(shape: list[int], start: int, stop: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize("dtype", [d for n, d in DTYPES.items() if n != "BOOL"], ids=str)
def test_every_dtype_comes_back_bit_for_bit(dtype: np.dtype[Any], tmp_path: Path) -> None:
    bits = RNG.integers(0, 256, (3, 5 * dtype.itemsize), dtype=np.uint8)
    weight = bits.view(dtype)
    checkpoint = Checkpoint(directory(tmp_path, {"w": weight}))
    assert checkpoint.dtype("w") == dtype
    assert checkpoint.shape("w") == (3, 5)
    assert checkpoint.read("w").tobytes() == weight.tobytes()


def test_views_are_written_by_value(tmp_path: Path) -> None:
    """The safetensors library would store a transposed or strided view's memory instead."""
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    tensors: dict[str, Any] = {"t": base.T, "s": base[:, ::2], "r": base[::-1], "scalar": np.float32(7).reshape(())}
    checkpoint = Checkpoint(directory(tmp_path, tensors))
    for name, want in tensors.items():
        assert np.array_equal(checkpoint.read(name), want)
        assert checkpoint.shape(name) == want.shape


def test_written_files_can_be_read_by_others(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.safetensors", {"w": np.ones(2, np.float32)})
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o644


def test_arrays_are_read_only_views(tmp_path: Path) -> None:
    weight = Checkpoint(directory(tmp_path, {"w": np.ones((2, 2), np.float32)})).read("w")
    with pytest.raises(ValueError, match="read-only"):
        weight[0, 0] = 5


def test_empty_tensor(tmp_path: Path) -> None:
    checkpoint = Checkpoint(directory(tmp_path, {"e": np.zeros((0, 4), np.float32), "w": np.ones(1, np.float32)}))
    assert checkpoint.read("e").shape == (0, 4)


def test_shards_and_index(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    parts = [tmp_path / f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    write_shard(parts[0], {"a": np.ones(3, np.float32)})
    write_shard(parts[1], {"b": np.ones((2, 2), np.float16)})
    write_index(tmp_path, parts)
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.names == ("a", "b")
    assert checkpoint.total_parameters() == 7
    assert json.loads((tmp_path / INDEX_NAME).read_bytes())["metadata"]["total_size"] == 3 * 4 + 4 * 2


def test_fingerprint_changes_with_a_weight_and_with_the_config(tmp_path: Path) -> None:
    first = Checkpoint(directory(tmp_path, {"w": np.ones(2, np.float32)})).fingerprint()
    assert Checkpoint(directory(tmp_path, {"w": np.ones(2, np.float32)})).fingerprint() == first
    second = Checkpoint(directory(tmp_path, {"w": np.zeros(2, np.float32)})).fingerprint()
    (tmp_path / "config.json").write_text('{"model_type": "opt"}')
    assert len({first, second, Checkpoint(tmp_path).fingerprint()}) == 3


# --- damaged and dishonest files


def truncated(path: Path) -> None:
    directory(path, {"w": np.ones((64, 64), np.float32)})
    file = path / SINGLE_NAME
    file.write_bytes(file.read_bytes()[:-100])


def grown(path: Path) -> None:
    directory(path, {"w": np.ones(8, np.float32)})
    with (path / SINGLE_NAME).open("ab") as stream:
        stream.write(b"xxxx")


EIGHT = bytes(8)
DAMAGED: dict[str, Callable[[Path], object]] = {
    "truncated data": truncated,
    "bytes after the end": grown,
    "empty file": lambda path: (path / "config.json").write_text("{}") and (path / SINGLE_NAME).write_bytes(b""),
    "header of an exabyte": lambda path: raw_file(path, b"{}", length=2**60),
    "header longer than the file": lambda path: raw_file(path, b"{}", length=1000),
    "header is not JSON": lambda path: raw_file(path, b"hello world"),
    "header is a list": lambda path: raw_file(path, []),
    "overlapping offsets": lambda path: raw_file(path, {"a": entry([2], 0, 8), "b": entry([1], 4, 8)}, EIGHT),
    "offsets past the end": lambda path: raw_file(path, {"a": entry([4], 0, 16)}, EIGHT),
    "a hole": lambda path: raw_file(path, {"a": entry([1], 4, 8)}, EIGHT),
    "backward offsets": lambda path: raw_file(path, {"a": entry([1], 8, 4)}, EIGHT),
    "shape larger than its data": lambda path: raw_file(path, {"a": entry([2**40], 0, 8)}, EIGHT),
    "shape that overflows": lambda path: raw_file(path, {"a": entry([2**62, 2**62], 0, 8)}, EIGHT),
    "negative shape": lambda path: raw_file(path, {"a": entry([-2], 0, 8)}, EIGHT),
    "no such dtype": lambda path: raw_file(path, {"a": entry([2], 0, 8, "F31")}, EIGHT),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_damaged_file_is_one_sentence(how: str, tmp_path: Path) -> None:
    DAMAGED[how](tmp_path)
    with pytest.raises(InputError, match=r"model\.safetensors: damaged or truncated") as caught:
        Checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


def test_dtype_that_tailcut_does_not_read(tmp_path: Path) -> None:
    raw_file(tmp_path, {"a": entry([8], 0, 8, "F8_E8M0")}, EIGHT)
    with pytest.raises(InputError, match="tensor a has dtype F8_E8M0, which tailcut does not read"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", ""])
def test_index_cannot_leave_its_directory(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(InputError, match="leaves its directory"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"weight_map": []}', '{"weight_map": 3}'])
def test_malformed_index(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / INDEX_NAME).write_text(text)
    with pytest.raises(InputError, match="not a safetensors index"):
        Checkpoint(tmp_path)


def test_index_that_names_a_missing_shard(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / INDEX_NAME).write_text('{"weight_map": {"w": "gone.safetensors"}}')
    with pytest.raises(InputError, match=r"gone\.safetensors"):
        Checkpoint(tmp_path)


def test_the_same_tensor_in_two_shards(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for name in ("a.safetensors", "b.safetensors"):
        write_shard(tmp_path / name, {"w": np.ones(1, np.float32)})
    index = {"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}
    (tmp_path / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"tensor w is also in a\.safetensors"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "consolidated.pt"])
def test_pickles_are_refused_by_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"\x80\x04N.")
    with pytest.raises(InputError, match=rf"only pickled weights \({name}\), which can run code"):
        Checkpoint(tmp_path)


def test_directory_without_weights_or_config_or_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        Checkpoint(tmp_path / "none")
    with pytest.raises(InputError, match=r"config\.json: cannot read"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="expected a JSON object"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="holds no weights"):
        Checkpoint(tmp_path)


def test_tensor_that_is_not_there(tmp_path: Path) -> None:
    checkpoint = Checkpoint(directory(tmp_path, {"w": np.ones(1, np.float32)}))
    with pytest.raises(InputError, match="no tensor named v"):
        checkpoint.read("v")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_nan_and_infinity_are_refused_with_the_tensors_name(value: float, dtype: Any, tmp_path: Path) -> None:
    weight = np.ones((4, 4), dtype)
    weight[2, 1] = value
    checkpoint = Checkpoint(directory(tmp_path, {"model.w": weight, "ok": np.ones(2, dtype)}))
    assert np.array_equal(checkpoint.read_finite("ok"), np.ones(2, dtype))
    with pytest.raises(InputError, match=r"model\.w: holds NaN or infinite"):
        checkpoint.read_finite("model.w")


# --- packed matrices


def test_packed_matrix_reads_back_exactly_under_its_own_name(tmp_path: Path) -> None:
    dense = (RNG.standard_normal((7, 19)) * (RNG.random((7, 19)) > 0.6)).astype(ml_dtypes.bfloat16)
    checkpoint = Checkpoint(directory(tmp_path, packed_tensors("m.weight", dense) | {"bias": np.ones(7, np.float32)}))
    assert checkpoint.names == ("bias", "m.weight")
    assert checkpoint.shape("m.weight") == (7, 19)
    assert checkpoint.dtype("m.weight") == dense.dtype
    assert checkpoint.read("m.weight").tobytes() == dense.tobytes()
    assert checkpoint.total_parameters() == 7 * 19 + 7


LIES: dict[str, dict[str, Any]] = {
    "huge shape": {"shape": np.array([2**40, 2**40])},
    "negative shape": {"shape": np.array([-4, 8])},
    "other rows": {"shape": np.array([5, 8])},
    "three dimensions": {"shape": np.array([2, 2, 8])},
    "shape of floats": {"shape": np.array([np.nan, 8.0])},
    "scalar shape": {"shape": np.array(4)},
    "mask of floats": {"bitmask": np.ones((4, 1), np.float32)},
    "scalar mask": {"bitmask": np.array(1, np.uint8)},
}


@pytest.mark.parametrize("lie", LIES)
def test_packed_tensor_that_lies_about_its_shape(lie: str, tmp_path: Path) -> None:
    parts = packed_tensors("w", np.eye(4, 8, dtype=np.float32))
    parts |= {f"w.{part}": value for part, value in LIES[lie].items()}
    checkpoint = Checkpoint(directory(tmp_path, parts))
    for reading in (checkpoint.read, checkpoint.shape):
        with pytest.raises(InputError, match="packed tensor w"):
            reading("w")


@pytest.mark.parametrize(
    "change",
    [{"w.compressed": np.ones(3, np.float32)}, {"w.bitmask": np.zeros((4, 1), np.uint8)}],
    ids=["a value missing", "an empty mask"],
)
def test_packed_tensor_whose_count_is_wrong(change: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = Checkpoint(directory(tmp_path, packed_tensors("w", np.eye(4, 8, dtype=np.float32)) | change))
    with pytest.raises(InputError, match=r"mask names \d weights"):
        checkpoint.read("w")


def test_three_of_the_four_parts_are_ordinary_tensors(tmp_path: Path) -> None:
    parts = packed_tensors("w", np.eye(4, dtype=np.float32))
    del parts["w.shape"]
    assert "w" not in Checkpoint(directory(tmp_path, parts))


def test_float32_of_every_float_is_contiguous() -> None:
    for dtype in (np.float64, np.float16, ml_dtypes.bfloat16):
        out = float32(np.ones((3, 4), dtype).T)
        assert out.dtype == np.float32
        assert out.flags.c_contiguous


def test_a_file_of_the_library_itself_reads(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    weight = RNG.standard_normal((3, 3)).astype(np.float32)
    save_file({"w": weight}, tmp_path / SINGLE_NAME, {"format": "pt"})
    assert np.array_equal(Checkpoint(tmp_path).read("w"), weight)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, ml_dtypes.float8_e5m2])
def test_finite_is_what_float32_says(dtype: Any) -> None:
    """Bit patterns all over the 16-bit formats and at their edges; for the others the values at the edges."""
    values = np.array([0.0, -0.0, 1.0, -65504.0, 3e38, 1e-45, np.inf, -np.inf, np.nan])
    with np.errstate(over="ignore"):
        array = values.astype(dtype)
    if array.itemsize == 2:
        edges = [0x7BFF, 0x7C00, 0x7C01, 0x7F7F, 0x7F80, 0x7F81, 0x8000, 0xFC00, 0xFF80, 0xFFFF]
        array = np.array([*range(0, 1 << 16, 251), *edges], np.uint16).view(dtype)
    wide = float32(array)
    for one, number in zip(array, wide, strict=True):
        assert is_finite(np.array([one, one])) == np.isfinite(number)
    finite = array[np.isfinite(wide)]
    assert is_finite(finite)
    assert is_finite(finite[: len(finite) // 2 * 2].reshape(-1, 2).T)
