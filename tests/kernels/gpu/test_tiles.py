"""TwoFourTiles against the fragment layout as the PTX ISA words it, lane by lane."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tailcut.errors import InputError
from tailcut.kernels.gpu.tiles import (
    TwoFourTiles,
    tiles_from_dense,
    tiles_from_two_four,
    tiles_to_dense,
    tiles_to_groups,
)
from tailcut.kernels.gpu.two_four_pack import pack_two_four, unpack_two_four


def two_four(rows: int, columns: int, dtype: torch.dtype, seed: int = 0, fewer: bool = False) -> Tensor:
    """Random W [rows, columns], two non-zeros a group of four; `fewer`: some groups with one or none."""
    random = torch.Generator().manual_seed(seed)
    groups = torch.randn(rows, columns // 4, 4, generator=random)
    keep = torch.rand(groups.shape, generator=random).topk(2, -1).indices
    kept = torch.zeros_like(groups).scatter_(-1, keep, groups.gather(-1, keep))
    if fewer:
        kept *= torch.rand(groups.shape, generator=random) < 0.7
    return kept.view(rows, columns).to(dtype)


def expand_as_the_isa_says(data: Tensor) -> Tensor:
    """One tile, int32 [9, 32, 4] -> bits of W, int32 [32, 128]: per instruction, lane and register."""
    dense = torch.zeros(32, 128, dtype=torch.int32)
    words = data.tolist()
    for step in range(4):
        for half in range(2):
            # positions of row and 16 columns, from the lane pair that the instruction's selector names
            word, selector = half * 2 + step // 2, step % 2
            positions = {}
            for lane in range(32):
                g, t = lane >> 2, lane & 3
                if t >> 1 == selector:
                    bits = words[8][lane][word] & 0xFFFFFFFF
                    positions[g, t & 1], positions[g + 8, t & 1] = bits & 0xFFFF, bits >> 16
            for lane in range(32):
                g, t = lane >> 2, lane & 3
                for register in range(4):
                    row = g + 8 * (register % 2)
                    first_column = 4 * t + 16 * (register // 2)
                    nibble = positions[row, first_column // 16] >> (first_column % 16)  # 4 bits for 4 columns
                    low, high = nibble & 3, (nibble >> 2) & 3
                    assert low < high, "mma.sp::ordered_metadata takes ascending positions only"
                    pair = words[step * 2 + half][lane][register] & 0xFFFFFFFF
                    dense[half * 16 + row, step * 32 + first_column + low] = pair & 0xFFFF
                    dense[half * 16 + row, step * 32 + first_column + high] = pair >> 16
    return dense


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_tile_holds_what_the_isa_says(dtype: torch.dtype) -> None:
    weight = two_four(64, 256, dtype, fewer=True)
    data = tiles_from_dense(weight).data
    assert data.shape == (2, 2, 1152)
    assert data.dtype == torch.int32
    data = data.view(2, 2, 9, 32, 4)
    for block in range(2):
        for step in range(2):
            want = weight[block * 32 : block * 32 + 32, step * 128 : step * 128 + 128]
            got = expand_as_the_isa_says(data[block, step]).to(torch.int16).view(dtype)
            assert torch.equal(got, want)


@pytest.mark.parametrize("shape", [(32, 128), (1, 4), (33, 132), (70, 388), (5, 1024)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dense_there_and_back(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = two_four(*shape, dtype, seed=1, fewer=True)
    tiles = tiles_from_dense(weight)
    assert torch.equal(tiles_to_dense(tiles), weight)
    assert tiles.nbytes == -(-shape[0] // 32) * -(-shape[1] // 128) * 4608
    assert tiles.to("cpu").shape == shape


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", [(32, 128), (1, 4), (70, 388)])
def test_rounded_values_there_and_back(shape: tuple[int, int], bits: int) -> None:
    layout = pack_two_four(two_four(*shape, torch.float32, seed=2, fewer=True), bits)
    tiles = tiles_from_two_four(layout)
    assert torch.equal(tiles_to_dense(tiles), unpack_two_four(layout))
    assert tiles.data.shape[2] * 4 == {8: 2560, 4: 1664}[bits]
    assert tiles.error == layout.error


def test_damaged_tiles_are_refused() -> None:
    tiles = tiles_from_dense(two_four(32, 128, torch.float16), 8)
    with pytest.raises(InputError, match="contiguous int32"):
        replace(tiles, data=tiles.data[:, :, :100])
    with pytest.raises(InputError, match="scales apart"):
        replace(tiles, scales=None)


def test_groups_keep_two_ascending_positions() -> None:
    kept, positions = tiles_to_groups(tiles_from_dense(two_four(40, 136, torch.bfloat16, fewer=True)))
    assert kept.shape == (40, 34, 2)
    assert positions.shape == (40, 34)
    assert bool(((positions & 3) < (positions >> 2)).all())


def test_a_matrix_that_is_not_two_four_is_refused() -> None:
    with pytest.raises(InputError, match="not 2:4, 3 non-zeros in row 0"):
        tiles_from_dense(torch.tensor([[1.0, 1, 1, 0]], dtype=torch.bfloat16))
    with pytest.raises(InputError, match="in % 4 == 0"):
        tiles_from_dense(torch.zeros(2, 6, dtype=torch.bfloat16))
    with pytest.raises(InputError, match="bfloat16 or float16"):
        tiles_from_dense(torch.zeros(2, 8))


def test_shape_and_kind() -> None:
    tiles = tiles_from_dense(two_four(8, 16, torch.float16))
    assert isinstance(tiles, TwoFourTiles)
    assert (tiles.kind, tiles.shape, tiles.dtype) == ("two_four_tiles_16", (8, 16), torch.float16)
    assert tiles.device.type == "cpu"
