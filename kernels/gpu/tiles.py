"""TwoFourTiles: a 2:4 matrix in the order in which sparse tensor cores take it, and exactly back.

PTX `mma.sp.m16n8k32` multiplies 16 rows x 32 columns of W (2:4, 16 bits a value) with 32 x 8 values of x. A warp's lane
4g + t holds of W the kept pairs of rows g and g + 8 in the groups of four columns t and t + 4, and the positions of kept
values of half such a tile: of the two lanes with t = 2s and 2s + 1, s being the instruction's selector, the first has
columns 0-15 and the second 16-31, row g in the low and row g + 8 in the high half. (PTX ISA, "matrix fragments for
sparse mma.m16n8k32"; values 0b0100 … 0b1110 of a nibble are allowed: ascending positions.)

A tile here is 32 rows x 128 columns, 4608 bytes, nine vectors of 32 lanes x 4 words:
  vector step * 2 + half, step = 0..3 (32 columns), half = 0..1 (16 rows): the pairs; words 0-3: group t row g,
           group t row g + 8, group t + 4 row g, group t + 4 row g + 8;
  vector 8: positions, word = half * 2 + step // 2; the lane's s says which of the two steps.
So a warp reads a tile with nine loads of 16 bytes a lane. Rows are filled up to 32 and columns to 128 with zeros.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from tailcut.errors import InputError
from tailcut.kernels.gpu.layouts import TwoFour
from tailcut.kernels.gpu.two_four_pack import pack_two_four

TILE_ROWS: Final = 32
TILE_COLUMNS: Final = 128
TILE_WORDS: Final = 1152
_FIRST_TWO: Final = 0b0100  # the positions 0 and 1: what a group of zeros keeps


@dataclass(frozen=True, slots=True, eq=False)
class TwoFourTiles:
    """A 2:4 matrix W [out, in]: data int32 [ceil(out/32), ceil(in/128), 9, 32, 4], dtype bfloat16 or float16."""

    data: Tensor
    shape: tuple[int, int]
    dtype: torch.dtype

    @property
    def kind(self) -> str:
        return "two_four_tiles"

    @property
    def nbytes(self) -> int:
        return self.data.numel() * self.data.element_size()

    @property
    def device(self) -> torch.device:
        return self.data.device

    def to(self, device: torch.device | str) -> "TwoFourTiles":
        return TwoFourTiles(self.data.to(device), self.shape, self.dtype)


def tiles_from_dense(weight: Tensor, name: str = "weight") -> TwoFourTiles:
    """Pack W [out, in] bfloat16 or float16 with at most two non-zeros in each group of four columns of a row."""
    return tiles_from_two_four(pack_two_four(weight, name=name))


def tiles_from_two_four(layout: TwoFour) -> TwoFourTiles:
    """The same matrix as `layout` (16-bit values), rearranged; no dense copy is made."""
    if layout.bits != 16:
        raise InputError(f"2:4 tiles hold 16-bit values, the layout has {layout.bits} bits")
    rows, columns = layout.shape
    slices = torch.arange(8, device=layout.meta.device, dtype=torch.int32).view(1, 1, 8, 1)
    nibbles = (layout.meta.view(rows, -1, 1, layout.meta.shape[-1]) >> (4 * slices)) & 15
    positions = nibbles.reshape(rows, -1)[:, : columns // 4]
    return _tiles(layout.values.view(rows, columns // 4), positions, (rows, columns), layout.dtype)


def tiles_to_dense(tiles: TwoFourTiles) -> Tensor:
    """W [out, in] in the tiles' dtype, on their device."""
    pairs, positions = tiles_to_groups(tiles)
    rows, columns = tiles.shape
    index = torch.stack((positions & 3, (positions >> 2) & 3), -1).to(torch.int64)
    values = pairs.view(tiles.dtype).view(rows, columns // 4, 2)
    dense = torch.zeros(rows, columns // 4, 4, dtype=tiles.dtype, device=tiles.device)
    return dense.scatter_(-1, index, values).view(rows, columns)


def tiles_to_groups(tiles: TwoFourTiles) -> tuple[Tensor, Tensor]:
    """Pairs int32 [out, in/4] (first kept value in the low half) and positions int32 [out, in/4] (first | second << 2)."""
    blocks, steps = tiles.data.shape[:2]
    # [block, tile, step, half, g, t, group + 4, row + 8] -> rows (block, half, row + 8, g), groups (tile, step, +4, t)
    pairs = tiles.data[:, :, :8].reshape(blocks, steps, 4, 2, 8, 4, 2, 2).permute(0, 3, 7, 4, 1, 2, 6, 5)
    # [block, tile, g, selector, columns + 16, half, step // 2, row + 8]
    words = tiles.data[:, :, 8].reshape(blocks, steps, 8, 2, 2, 2, 2, 1)
    both = torch.cat((words & 0xFFFF, (words >> 16) & 0xFFFF), -1)
    quads = both.permute(0, 5, 7, 2, 1, 6, 3, 4)  # block, half, row + 8, g, tile, step // 2, selector, columns + 16
    shifts = torch.arange(0, 16, 4, device=tiles.device, dtype=torch.int32)
    positions = (quads.unsqueeze(-1) >> shifts) & 15
    rows, groups = tiles.shape[0], tiles.shape[1] // 4
    whole = (blocks * TILE_ROWS, steps * TILE_COLUMNS // 4)
    return (
        pairs.reshape(whole)[:rows, :groups].contiguous(),
        positions.reshape(whole)[:rows, :groups].contiguous(),
    )


def _tiles(pairs: Tensor, positions: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> TwoFourTiles:
    """From pairs and positions int32 [out, in/4], positions ascending."""
    blocks, steps = -(-shape[0] // TILE_ROWS), -(-shape[1] // TILE_COLUMNS)
    values = _filled(pairs, blocks, steps, 0).view(blocks, 2, 2, 8, steps, 4, 2, 4)
    vectors = values.permute(0, 4, 5, 1, 3, 7, 6, 2).reshape(blocks, steps, 8, 32, 4)
    nibbles = _filled(positions, blocks, steps, _FIRST_TWO).view(blocks, 2, 2, 8, steps, 2, 2, 2, 4)
    shifts = torch.arange(0, 16, 4, device=pairs.device, dtype=torch.int32)
    quads = (nibbles << shifts).sum(-1, dtype=torch.int32)  # block, half, row + 8, g, tile, step // 2, selector, + 16
    words = quads[:, :, 0] | (quads[:, :, 1] << 16)
    last = words.permute(0, 3, 2, 5, 6, 1, 4).reshape(blocks, steps, 1, 32, 4)
    return TwoFourTiles(torch.cat((vectors, last), 2).contiguous(), shape, dtype)


def _filled(groups: Tensor, blocks: int, steps: int, value: int) -> Tensor:
    """[out, in/4] -> [32 blocks, 32 steps], filled with `value`."""
    more = (0, steps * TILE_COLUMNS // 4 - groups.shape[1], 0, blocks * TILE_ROWS - groups.shape[0])
    return torch.nn.functional.pad(groups, more, value=value)
