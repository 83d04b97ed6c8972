"""Packed directories: smaller, refused by transformers, and bit for bit reversible."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from tailcut.allocation import NM, Allocation, Unstructured
from tailcut.checkpoint import Checkpoint
from tailcut.compress.calibration import Calibration
from tailcut.compress.packing import is_packed, pack, unpack
from tailcut.compress.perplexity import directory_nll
from tailcut.compress.run import compress
from tailcut.errors import InputError
from tailcut.manifest import verify

TinyModel = Callable[..., Path]
Allocate = Callable[..., Allocation]
Made = Callable[[str, str], tuple[Path, Path]]


@pytest.fixture
def made(tiny_model: TinyModel, allocate: Allocate, calibration: Calibration, tmp_path: Path) -> Made:
    """made(family, dtype) -> the same compression stored plain and packed."""

    def make(family: str, dtype: str) -> tuple[Path, Path]:
        source = tiny_model(family, dtype)
        allocation = allocate(source, Unstructured(0.7), {"0": NM(2, 4)})
        for name, packed in (("plain", False), ("packed", True)):
            compress(source, allocation, tmp_path / name, pruner="wanda", calibration=calibration, pack=packed)
        return tmp_path / "plain", tmp_path / "packed"

    return make


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_round_trip_is_exact(name: str, dtype: str, made: Made, tmp_path: Path) -> None:
    plain, packed = made(name, dtype)
    unpack(packed, tmp_path / "back")
    a, b, c = Checkpoint(plain), Checkpoint(packed), Checkpoint(tmp_path / "back")
    assert a.names == b.names == c.names
    for tensor in a.names:
        assert a.dtype(tensor) == b.dtype(tensor) == c.dtype(tensor)
        assert a.read(tensor).tobytes() == b.read(tensor).tobytes() == c.read(tensor).tobytes()
    assert a.config == c.config
    assert verify(packed).sparsity == verify(tmp_path / "back").sparsity == verify(plain).sparsity
    AutoModelForCausalLM.from_pretrained(tmp_path / "back")


def test_packed_is_smaller(made: Made) -> None:
    plain, packed = made("llama", "float32")

    def size(directory: Path) -> int:
        return sum(path.stat().st_size for path in directory.glob("*.safetensors"))

    assert size(packed) < 0.8 * size(plain)  # most of a tiny model is its embedding and file headers


def test_transformers_refuses_a_packed_directory(made: Made) -> None:
    """It must fail, not make up the missing matrices."""
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(made("llama", "float32")[1])


def test_perplexity_and_further_compression_read_packed_directories(
    made: Made, allocate: Allocate, calibration: Calibration, tmp_path: Path
) -> None:
    plain, packed = made("llama", "bfloat16")
    windows = np.random.default_rng(0).integers(0, 256, (2, 16))
    assert np.array_equal(directory_nll(plain, windows, device="cpu"), directory_nll(packed, windows, device="cpu"))
    allocation = allocate(packed, Unstructured(0.8))
    assert compress(packed, allocation, tmp_path / "more", pruner="magnitude", calibration=calibration).sparsity >= 0.79
    assert not is_packed(tmp_path / "more")
    AutoModelForCausalLM.from_pretrained(tmp_path / "more")


def test_wrong_kind_is_one_sentence(made: Made, tmp_path: Path) -> None:
    plain, packed = made("llama", "float32")
    with pytest.raises(InputError, match="not a packed model directory"):
        unpack(plain, tmp_path / "x")
    with pytest.raises(InputError, match="already packed"):
        pack(packed, tmp_path / "x")


def test_pack_of_a_plain_directory_equals_compress_with_pack(made: Made, tmp_path: Path) -> None:
    plain, packed = made("llama", "float32")
    pack(plain, tmp_path / "packed-later")
    for path in sorted(packed.iterdir()):
        assert path.read_bytes() == (tmp_path / "packed-later" / path.name).read_bytes()
