"""Packing to the 2:4 layouts and back, exact; rounding equal to that of the CPU packages; what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import Tensor

from tailcut import bitmask
from tailcut.checkpoint import Checkpoint, packed_tensors
from tailcut.errors import InputError
from tailcut.export.quantise import quantise
from tailcut.kernels.gpu import reference
from tailcut.kernels.gpu.layouts import Dense, TwoFour, choose_group8, chunks_of
from tailcut.kernels.gpu.two_four_pack import from_checkpoint, from_packed, pack_two_four, unpack_two_four
from tailcut.quantised import Precision, dequantise

PRECISION: dict[int, Precision] = {8: "int8", 4: "int4"}
SHAPES = ((1, 4), (5, 12), (3, 132), (2, 1056), (2, 4096), (1, 11008))


def two_four(out: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Random, 2:4, with a row of zeros, groups of one and no weight, -0.0 and a subnormal."""
    generator = torch.Generator().manual_seed(out * columns)
    groups = torch.randn(out, columns // 4, 4, generator=generator)
    kept = groups.abs().topk(2, -1).indices
    cut = torch.zeros_like(groups).scatter_(-1, kept, groups.gather(-1, kept)).to(dtype)
    cut[0, 0] = torch.tensor([0.0, 0.0, -0.0, torch.finfo(dtype).smallest_normal / 2])
    if out > 1:
        cut[1] = 0
        cut[1, -1, 3] = 1
    return cut.view(out, columns)


def bits_of(tensor: Tensor) -> Tensor:
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.dtype.itemsize])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("group8", [None, 32, 64, 128])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_16_bits_come_back_bit_for_bit(shape: tuple[int, int], group8: int | None, dtype: torch.dtype) -> None:
    weight = two_four(*shape, dtype)
    layout = pack_two_four(weight, group8=group8)
    assert layout.dtype == dtype
    assert layout.error == 0
    assert torch.equal(bits_of(unpack_two_four(layout)), bits_of(weight))


@pytest.mark.parametrize("group8", [None, 32, 128])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_8_and_4_bits_are_the_numbers_of_the_cpu_packages(
    shape: tuple[int, int], bits: int, group8: int | None
) -> None:
    weight = two_four(*shape)
    q, scales = quantise(weight.float().numpy(), PRECISION[bits])
    layout = pack_two_four(weight, bits, group8=group8)
    assert layout.scales is not None
    assert np.array_equal(layout.scales.numpy(), scales)
    stored = unpack_two_four(layout)
    assert np.array_equal(stored.numpy(), dequantise(q, scales))
    exact = weight.double()
    assert layout.error == pytest.approx(float((stored - exact).norm() / exact.norm()), rel=1e-9)


def test_a_scale_too_small_to_divide_by_counts_as_zero() -> None:
    weight = torch.zeros(2, 8)
    weight[0, 1], weight[1, 2] = 1e-40, 3.0
    for bits in (8, 4):
        stored = unpack_two_four(pack_two_four(weight, bits))
        assert stored[0].eq(0).all()
        assert stored[1, 2] == pytest.approx(3.0)


def test_bfloat16_scales_change_only_the_scales() -> None:
    weight = two_four(3, 264)
    wide, narrow = pack_two_four(weight, 4), pack_two_four(weight, 4, scale_dtype=torch.bfloat16)
    assert torch.equal(wide.values, narrow.values)
    assert wide.scales is not None
    assert narrow.scales is not None
    assert torch.equal(wide.scales.bfloat16(), narrow.scales)
    assert 0 < wide.error < 0.2
    assert narrow.error < wide.error + 2**-8


def test_the_words_lie_as_documented() -> None:
    """One row of 4 * 32 * 8 columns and G8 = 32: group 32 s + lane is nibble s of word `lane`."""
    weight = torch.zeros(1, 1024, dtype=torch.bfloat16)
    group, first, second = 32 * 5 + 7, 1, 3
    weight[0, 4 * group + first], weight[0, 4 * group + second] = 2.0, -3.0
    layout = pack_two_four(weight, group8=32)
    assert layout.meta[0, 0, 7] >> 20 & 15 == first | second << 2
    assert layout.meta[0, 0, 6] >> 20 & 15 == 0 | 1 << 2
    assert torch.equal(layout.values[0, group : group + 1].view(torch.bfloat16), torch.tensor([2.0, -3.0]).bfloat16())
    eight = pack_two_four(weight, 8, group8=32)
    word = int(eight.values[0, 0, 2, 7])  # slices 4 and 5
    assert word >> 16 & 0xFF == round(2 / 3 * 127) + 128
    assert word >> 24 & 0xFF == -127 + 128
    four = pack_two_four(weight, 4, group8=32)
    word = int(four.values[0, 0, 1, 7])  # slices 4 to 7
    assert word >> 8 & 0xFF == (round(2 / 3 * 7) + 8) | (-7 + 8) << 4


@pytest.mark.parametrize(
    ("columns", "group8"), [(4, 32), (576, 32), (4096, 128), (5120, 32), (8192, 128), (11008, 128), (14336, 64)]
)
def test_the_longest_slice_that_wastes_little_is_chosen(columns: int, group8: int) -> None:
    assert choose_group8(columns) == group8
    assert chunks_of(columns, group8) * 32 * group8 >= columns


def test_bytes_that_a_multiplication_reads() -> None:
    weight = two_four(64, 4096)
    dense = Dense(weight).nbytes
    assert dense == 64 * 4096 * 2
    assert pack_two_four(weight).nbytes == dense * 9 // 16
    assert pack_two_four(weight, 8).nbytes == dense * 5 // 16 + 64 * 4
    assert pack_two_four(weight, 4).nbytes == dense * 3 // 16 + 64 * 32 * 4


def test_packed_and_checkpoint_give_the_same_layout(tmp_path: Path) -> None:
    weight = two_four(6, 132, torch.float16)
    array = weight.numpy()
    save_file({"a.weight": array, **packed_tensors("b.weight", array)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    checkpoint = Checkpoint(tmp_path)
    for layout in (
        from_packed(bitmask.pack(array)),
        from_checkpoint(tmp_path, "a.weight"),
        from_checkpoint(checkpoint, "b.weight"),
    ):
        assert torch.equal(bits_of(unpack_two_four(layout)), bits_of(weight))
    assert from_checkpoint(checkpoint, "b.weight", 4, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_bfloat16_checkpoints_are_read(tmp_path: Path) -> None:
    import ml_dtypes

    weight = two_four(4, 64)
    array = weight.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    save_file(packed_tensors("w", array), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert torch.equal(bits_of(unpack_two_four(from_checkpoint(tmp_path, "w"))), bits_of(weight))


def test_reference_multiplies_what_is_stored() -> None:
    weight, x = two_four(5, 64), torch.randn(3, 64)
    for bits in (16, 8, 4):
        layout = pack_two_four(weight, bits)
        want = x.double() @ unpack_two_four(layout).double().T
        assert torch.equal(reference.matmul(x, layout), want)
    assert torch.equal(reference.matmul(x, Dense(weight), torch.float32), x @ weight.float().T)
    with pytest.raises(InputError, match="x has 60 columns, the matrix 64"):
        reference.matmul(x[:, :60], Dense(weight))


def test_layouts_move_and_name_themselves() -> None:
    layout = pack_two_four(two_four(2, 64), 8)
    moved = layout.to("meta")
    assert moved.device.type == "meta"
    assert (layout.kind, layout.chunks, layout.group8, layout.shape) == ("two_four_8", 1, 32, (2, 64))
    dense = Dense(torch.zeros(2, 3)).to("meta")
    assert (dense.kind, dense.shape, dense.dtype, dense.device.type) == ("dense", (2, 3), torch.float32, "meta")


@pytest.mark.parametrize(
    ("weight", "bits", "message"),
    [
        (
            torch.ones(2, 8).bfloat16(),
            16,
            r"q_proj: not 2:4, 4 non-zeros in row 0, columns 0 to 3 .*keep this layer dense",
        ),
        (torch.zeros(2, 6).bfloat16(), 16, r"q_proj: .*in % 4 == 0, got in = 6; keep this layer dense"),
        (torch.zeros(0, 8).bfloat16(), 16, r"q_proj: .*rows and columns, got shape \[0, 8\]"),
        (torch.zeros(8).bfloat16(), 16, r"q_proj: .*got shape \[8\]"),
        (torch.zeros(2, 8), 16, "q_proj: 16-bit .* got torch.float32; convert it first"),
        (torch.zeros(2, 8, dtype=torch.int8), 8, "q_proj: weights must be .* got torch.int8"),
        (torch.zeros(2, 8), 5, "q_proj: .* 16, 8 or 4 bits a value, not 5"),
    ],
)
def test_what_is_not_2_4_is_named(weight: Tensor, bits: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pack_two_four(weight, bits, name="q_proj")


def test_nan_cannot_be_rounded_to_integers() -> None:
    weight = torch.zeros(2, 8)
    weight[0, 2] = float("nan")
    with pytest.raises(InputError, match="w1: NaN and infinite weights cannot be rounded to 4 bits"):
        pack_two_four(weight, 4, name="w1")


def test_x_must_have_the_dtype_of_16_bit_values() -> None:
    with pytest.raises(InputError, match=r"weights are torch.bfloat16, x is to be torch.float16"):
        pack_two_four(two_four(2, 8), dtype=torch.float16)
    with pytest.raises(InputError, match=r"groups a slice must be one of .* got 48"):
        pack_two_four(two_four(2, 8), group8=48)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 5}, "16, 8 or 4 bits"),
        ({"dtype": torch.float32}, "bfloat16 or float16, not torch.float32"),
        ({"shape": (2, 66)}, "in % 4 == 0"),
        ({"shape": (3, 64)}, "2:4 meta must be"),
        ({"meta": torch.zeros(2, 1, 48, dtype=torch.int32)}, "meta must be"),
        ({"meta": torch.zeros(2, 1, 32)}, "meta must be int32"),
        ({"values": torch.zeros(2, 16, dtype=torch.int32)}, "values must be int32"),
        ({"scales": None}, "8 bits needs scales"),
        ({"scales": torch.ones(3)}, "scales must be float32"),
        ({"bits": 16, "values": torch.zeros(2, 16, dtype=torch.int32)}, "16 bits has no scales"),
        ({"meta": torch.zeros(2, 1, 64, dtype=torch.int32)[:, :, ::2]}, "meta must be contiguous"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    layout: TwoFour = pack_two_four(two_four(2, 64), 8)
    with pytest.raises(InputError, match=message):
        replace(layout, **changes)  # type: ignore[arg-type]
