"""tailcut inspect counts what is on disk."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tailcut.allocation import NM, Allocation, Dense, Unstructured
from tailcut.compress.calibration import Calibration
from tailcut.compress.inspection import inspect_directory
from tailcut.compress.run import compress

TinyModel = Callable[..., Path]
Allocate = Callable[..., Allocation]


@pytest.fixture
def pruned(tiny_model: TinyModel, allocate: Allocate, calibration: Calibration, tmp_path: Path) -> Path:
    source = tiny_model("llama", "bfloat16")
    others = {"q_proj": Dense(), "k_proj": NM(2, 4), "v_proj": NM(4, 8)}
    compress(
        source, allocate(source, Unstructured(0.75), others), tmp_path / "m", pruner="wanda", calibration=calibration
    )
    return tmp_path / "m"


def test_counts_and_patterns(pruned: Path) -> None:
    found = inspect_directory(pruned)
    assert found.layers["model.layers.0.self_attn.q_proj"].sparsity == 0.0
    assert found.layers["model.layers.1.self_attn.k_proj"].group == "2:4"
    assert found.layers["model.layers.1.self_attn.v_proj"].group in ("4:8", "2:4")
    up = found.layers["model.layers.2.mlp.up_proj"]
    assert up.sparsity == 0.75
    assert up.dense_bytes == 64 * 32 * 2
    # values, mask of 4 bytes a row, row offsets and shape as int64
    assert up.bitmask_bytes == 64 * 8 * 2 + 64 * 4 + 64 * 8 + 16
    assert 0 < found.whole_model_sparsity < found.sparsity


def test_dense_model_has_no_pattern(tiny_model: TinyModel) -> None:
    found = inspect_directory(tiny_model("gpt2"))
    assert found.sparsity == 0.0
    assert {layer.group for layer in found.layers.values()} == {None}
    assert found.bytes_on_disk == (tiny_model("gpt2") / "model.safetensors").stat().st_size
