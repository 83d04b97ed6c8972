"""Unstructured matrices in the GPU's layout: there and back, bit for bit, and within the bytes it promises."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tailcut import bitmask
from tailcut.checkpoint import write_shard
from tailcut.errors import InputError
from tailcut.export.quantise import quantise
from tailcut.kernels.gpu.bitmask_layout import GAP_BITS, Bitmask, group_of
from tailcut.kernels.gpu.bitmask_pack import (
    from_checkpoint,
    pack_bitmask,
    quantise_rows,
    to_packed,
    unpack_bitmask,
    unpack_stored,
)


def sparse(rows: int, columns: int, sparsity: float, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    generator = torch.Generator().manual_seed(rows * columns)
    weight = torch.randn(rows, columns, generator=generator)
    return torch.where(torch.rand(rows, columns, generator=generator) < sparsity, 0, weight).to(dtype)


def uneven() -> Tensor:
    """Rows of every kind: empty, full, one weight, weights only at the ends, a run."""
    weight = torch.zeros(21, 203)
    weight[1] = 1.5
    weight[3, 202] = -1
    weight[4, [0, 202]] = 2
    weight[7, 60:90] = 3
    weight[20] = sparse(1, 203, 0.5, torch.float32)
    return weight.to(torch.bfloat16)


def same_bits(left: Tensor, right: Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(left.view(torch.int16), right.view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gap_bits", [None, *GAP_BITS])
@pytest.mark.parametrize(
    ("shape", "sparsity", "tile"),
    [((64, 256), 0.5, (32, 8)), ((37, 301), 0.8, (8, 4)), ((5, 77), 0.95, (4, 16)), ((3, 1), 0.0, (2, 1))],
)
def test_there_and_back(
    shape: tuple[int, int], sparsity: float, tile: tuple[int, int], gap_bits: int | None, dtype: torch.dtype
) -> None:
    weight = sparse(*shape, sparsity, dtype)
    layout = pack_bitmask(weight, gap_bits=gap_bits, rows=tile[0], segments=tile[1])
    assert same_bits(unpack_bitmask(layout), weight)


@pytest.mark.parametrize("gap_bits", GAP_BITS)
@pytest.mark.parametrize("weight", [uneven(), torch.zeros(9, 40).bfloat16(), torch.ones(9, 40).bfloat16()])
def test_rows_of_every_kind(weight: Tensor, gap_bits: int) -> None:
    assert same_bits(unpack_bitmask(pack_bitmask(weight, gap_bits=gap_bits, rows=4, segments=4)), weight)


def test_every_bit_pattern_but_zero_is_kept() -> None:
    weight = torch.arange(1 << 16).to(torch.int16).view(torch.bfloat16).view(256, 256)  # -0.0, NaNs and infinities too
    layout = pack_bitmask(weight)
    assert same_bits(unpack_bitmask(layout), weight)
    assert int((layout.values.view(torch.int16) != 0).sum()) == (1 << 16) - 1


def test_a_column_above_65535() -> None:
    weight = torch.zeros(2, 70000, dtype=torch.float16)
    weight[0, [3, 69999]] = 1
    weight[1, 65536] = -2
    layout = pack_bitmask(weight, rows=2, segments=2)
    assert layout.starts.dtype == torch.int32
    assert same_bits(unpack_bitmask(layout), weight)
    assert pack_bitmask(weight[:, :65536].contiguous(), rows=2, segments=2).starts.dtype == torch.int16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_checkpoints_bitmask_there_and_back(dtype: torch.dtype, tmp_path: Path) -> None:
    weight = sparse(19, 133, 0.7, dtype)
    packed = to_packed(pack_bitmask(weight))
    assert packed.shape == (19, 133)
    assert same_bits(unpack_bitmask(pack_bitmask(packed)), weight)
    (tmp_path / "config.json").write_text("{}")
    parts = {"w.compressed": packed.values, "w.bitmask": packed.mask, "w.row_offsets": packed.row_offsets}
    write_shard(tmp_path / "model.safetensors", parts | {"w.shape": np.array(packed.shape)})
    assert same_bits(unpack_bitmask(from_checkpoint(tmp_path, "w")), weight)


def test_8_bits_round_as_the_cpu_packages_do() -> None:
    weight = sparse(40, 133, 0.6, torch.float32)
    weight[2] = 0
    weight[3] *= 1e-40  # its scale would be subnormal: counts as zero
    q, scales = quantise(weight.numpy(), "int8")
    layout = pack_bitmask(weight, 8, torch.float16, rows=8, segments=4)
    assert layout.scales is not None
    assert np.array_equal(unpack_stored(layout).numpy(), q)
    assert np.array_equal(layout.scales.numpy(), scales)
    assert np.array_equal(bitmask.unpack(to_packed(layout)), q)
    assert torch.equal(unpack_bitmask(layout), torch.from_numpy(q * scales[:, None]))
    difference = (unpack_bitmask(layout).double() - weight.double()).norm() / weight.double().norm()
    assert layout.error == pytest.approx(float(difference))


@pytest.mark.parametrize(("sparsity", "most"), [(0.5, 1.11), (0.6, 1.10), (0.7, 1.08), (0.8, 1.04), (0.9, 0.93)])
def test_bytes_against_a_bitmask(sparsity: float, most: float) -> None:
    """As the module says, for LLaMA-7B's rows."""
    weight = sparse(128, 4096, sparsity)
    packed = to_packed(pack_bitmask(weight))
    mask_bytes = packed.mask.nbytes + packed.values.nbytes
    assert pack_bitmask(weight).nbytes / mask_bytes < most


def test_gap_bits_are_those_that_take_fewest_bytes() -> None:
    for sparsity in (0.5, 0.8, 0.9, 0.97):
        weight = sparse(256, 1024, sparsity)
        sizes = {bits: pack_bitmask(weight, gap_bits=bits, segments=1).nbytes for bits in GAP_BITS}
        # by words of full groups: the last group of a row is not counted
        assert sizes[pack_bitmask(weight).gap_bits] <= 1.02 * min(sizes.values())


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("gap_bits", GAP_BITS)
def test_a_group_fills_its_words(bits: int, gap_bits: int) -> None:
    group = group_of(bits, gap_bits)
    assert group.value_words * 32 == group.entries * bits
    assert group.entries == group.gap_words * group.each
    assert group.each * gap_bits <= 32


def test_moving_keeps_everything() -> None:
    layout = pack_bitmask(sparse(9, 50, 0.5), 8)
    moved = layout.to("cpu")
    assert isinstance(moved, Bitmask)
    assert moved.nbytes == layout.nbytes
    assert torch.equal(unpack_bitmask(moved), unpack_bitmask(layout))


WEIGHT = sparse(8, 64, 0.5)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: pack_bitmask(WEIGHT[0]), "w.*needs a matrix"),
        (lambda: pack_bitmask(WEIGHT[:0]), "needs a matrix with rows and columns"),
        (lambda: pack_bitmask(WEIGHT.float()), "16-bit values keep their dtype"),
        (lambda: pack_bitmask(WEIGHT, dtype=torch.float16), "16-bit values keep their dtype"),
        (lambda: pack_bitmask(WEIGHT.to(torch.int8)), "floating-point weights, got torch.int8"),
        (lambda: pack_bitmask(WEIGHT, 4), "16 or 8 bits a value, not 4"),
        (lambda: pack_bitmask(WEIGHT, gap_bits=7), "one of .* bits, not 7"),
        (lambda: pack_bitmask(WEIGHT, rows=12), "powers of two"),
        (lambda: pack_bitmask(WEIGHT, rows=64, segments=32), "at most 1024 lanes"),
        (lambda: quantise_rows(WEIGHT / 0), "weight: NaN and infinite weights"),
    ],
)
def test_wrong_inputs_are_named(call: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        call()  # type: ignore[operator]


@pytest.mark.parametrize("part", ["values", "gaps", "starts", "steps", "order"])
def test_parts_that_do_not_fit_are_refused(part: str) -> None:
    from dataclasses import replace

    layout = pack_bitmask(WEIGHT)
    with pytest.raises(InputError, match=r"bitmask \w+ must be int"):
        replace(layout, **{part: layout.tensors[part].flatten()[:-1]})
