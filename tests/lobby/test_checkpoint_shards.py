"""Reading single shards, names by file, and packed directories under their own index."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tailcut.checkpoint import (
    INDEX_NAME,
    PACKED_INDEX_NAME,
    Checkpoint,
    packed_tensors,
    read_shard,
    write_index,
    write_shard,
)
from tailcut.errors import InputError

SPARSE = np.array([[0, 1.5, 0], [2, 0, -0.0]], np.float32)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two shards, one matrix of the first packed, and a packed index."""
    (tmp_path / "config.json").write_text("{}")
    write_shard(tmp_path / "a.safetensors", packed_tensors("w", SPARSE) | {"x": np.ones(2, np.float32)})
    write_shard(tmp_path / "b.safetensors", {"y": np.arange(3, dtype=np.int64)})
    write_index(tmp_path, [tmp_path / "a.safetensors", tmp_path / "b.safetensors"], PACKED_INDEX_NAME)
    return tmp_path


def test_packed_index_is_read(directory: Path) -> None:
    checkpoint = Checkpoint(directory)
    assert checkpoint.names == ("w", "x", "y")
    assert checkpoint.read("w").tobytes() == SPARSE.tobytes()


def test_names_in_a_file(directory: Path) -> None:
    checkpoint = Checkpoint(directory)
    assert [checkpoint.names_in(path) for path in checkpoint.files] == [("w", "x"), ("y",)]


def test_the_ordinary_index_goes_first(directory: Path) -> None:
    write_index(directory, [directory / "b.safetensors"], INDEX_NAME)
    assert Checkpoint(directory).names == ("y",)


def test_read_shard_gives_what_was_written(tmp_path: Path) -> None:
    tensors = {
        "bf16": np.array([[1.5, -2.0]], ml_dtypes.bfloat16),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.asarray(3.0, np.float64),
    }
    write_shard(tmp_path / "s.safetensors", tensors)
    back = read_shard(tmp_path / "s.safetensors")
    assert back.keys() == tensors.keys()
    for name, array in tensors.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes()


def test_a_truncated_shard_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.safetensors", {"x": np.ones(100)})
    (tmp_path / "s.safetensors").write_bytes((tmp_path / "s.safetensors").read_bytes()[:-8])
    with pytest.raises(InputError, match="damaged or truncated"):
        read_shard(tmp_path / "s.safetensors")
