"""TwoFourTiles: a 2:4 matrix in the order in which sparse tensor cores take it, and exactly back.

PTX `mma.sp.m16n8k32` multiplies 16 rows x 32 columns of W (2:4, 16 bits a value) with 32 x 8 values of x. A warp's lane
4g + t holds of W the kept pairs of rows g and g + 8 in the groups of four columns t and t + 4 (registers 0-3: group t row
g, group t row g + 8, group t + 4 row g, group t + 4 row g + 8), and the positions of kept values of half such a tile: of
the two lanes with t = 2s and 2s + 1, s being the instruction's selector, the first has columns 0-15 and the second 16-31,
row g in the low and row g + 8 in the high half. (PTX ISA, "matrix fragments for sparse mma.m16n8k32"; the nibbles of
positions are those of TwoFour.)

A tile here is 32 rows x 128 columns: steps 0-3 of 32 columns, halves 0-1 of 16 rows. It is a run of vectors of 32 lanes x
4 words of int32, which a warp reads with one load of 16 bytes a lane each:
  16 bits  9 vectors (4608 bytes): vector 2 step + half: registers 0-3 (first kept value in the low half)
   8 bits  5 vectors (2560 bytes): vector step: word 2 half + h: registers 2h and 2h + 1, a byte a value (q, signed)
   4 bits  3 vectors and 32 scales (1664 bytes): vector step // 2: word 2 (step % 2) + half: bits 4r … of register r's
           first value and 16 + 4r … of its second one (q + 8); scales float32 [g, half, row + 8] of the tile's rows
The last vector holds the positions: word 2 half + step // 2; the lane's s says which of the two steps.
Rows are filled up to 32 and columns to 128 with zeros. Scales of 8 bits (a row's) stay apart.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from tailcut.errors import InputError
from tailcut.kernels.gpu.layouts import TwoFour
from tailcut.kernels.gpu.two_four_pack import pack_two_four, spread_scales, unpack_nibbles, unpack_pairs

TILE_ROWS: Final = 32
TILE_COLUMNS: Final = 128
TILE_WORDS: Final = {16: 1152, 8: 640, 4: 416}
_GROUPS: Final = TILE_COLUMNS // 4
_SCALE_WORDS: Final = 32
_POSITION_WORDS: Final = 128
_FIRST_TWO: Final = 0b0100  # the positions 0 and 1: what a group of zeros keeps
_SPLIT: Final = (2, 2, 8, -1, 2, 2, 2, 4, 2)  # rows: half, row + 8, g; groups: tile, step // 2, step % 2, + 4, t; value
# dimensions of [block, *_SPLIT] in the order they lie in a tile
_ORDER: Final = {
    16: (0, 4, 5, 6, 1, 3, 8, 7, 2, 9),
    8: (0, 4, 5, 6, 3, 8, 1, 7, 2, 9),
    4: (0, 4, 5, 3, 8, 6, 1, 9, 7, 2),
}


@dataclass(frozen=True, slots=True, eq=False)
class TwoFourTiles:
    """A 2:4 matrix W [out, in]: data int32 [ceil(out/32), ceil(in/128), TILE_WORDS[bits]]; x and y are of `dtype`.

    scales: float32 [out] for 8 bits, else None. error: as in TwoFour.
    """

    data: Tensor
    scales: Tensor | None
    shape: tuple[int, int]
    bits: int
    dtype: torch.dtype
    error: float = 0.0

    def __post_init__(self) -> None:
        wanted = (*_counts(self.shape), TILE_WORDS.get(self.bits, 0))
        if tuple(self.data.shape) != wanted or self.data.dtype != torch.int32 or not self.data.is_contiguous():
            raise InputError(
                f"2:4 tiles must be contiguous int32 {list(wanted)}, got {self.data.dtype} {list(self.data.shape)}"
            )
        if (self.scales is not None) != (self.bits == 8):
            raise InputError(f"2:4 tiles have scales apart if they have 8 bits, and only then; these have {self.bits}")

    @property
    def kind(self) -> str:
        return f"two_four_tiles_{self.bits}"

    @property
    def nbytes(self) -> int:
        """Bytes that one multiplication reads."""
        return self.data.numel() * 4 + (0 if self.scales is None else self.scales.numel() * 4)

    @property
    def device(self) -> torch.device:
        return self.data.device

    def to(self, device: torch.device | str) -> "TwoFourTiles":
        """The same matrix on another device."""
        scales = None if self.scales is None else self.scales.to(device)
        return TwoFourTiles(self.data.to(device), scales, self.shape, self.bits, self.dtype, self.error)


def tiles_from_dense(
    weight: Tensor, bits: int = 16, dtype: torch.dtype | None = None, name: str = "weight"
) -> TwoFourTiles:
    """Pack W [out, in] with at most two non-zeros in each group of four columns of a row; see `pack_two_four`."""
    return tiles_from_two_four(pack_two_four(weight, bits, dtype, name=name))


def tiles_from_two_four(layout: TwoFour) -> TwoFourTiles:
    """The same matrix as `layout`, rearranged; no dense copy is made."""
    blocks, steps = _counts(layout.shape)
    kept = unpack_pairs(layout)
    values = _filled(kept, blocks, steps, 0).view(blocks, *_SPLIT).permute(_ORDER[layout.bits])
    parts = [_values_to_words(values, layout.bits).reshape(blocks, steps, -1), _position_words(layout, blocks, steps)]
    if layout.bits == 4 and layout.scales is not None:
        parts.append(_scale_words(layout.scales, blocks))
    scales = layout.scales if layout.bits == 8 else None
    return TwoFourTiles(torch.cat(parts, 2), scales, layout.shape, layout.bits, layout.dtype, layout.error)


def tiles_to_dense(tiles: TwoFourTiles) -> Tensor:
    """W [out, in]: 16 bits in the tiles' dtype, exact; 8 and 4 bits float32, q * scale."""
    kept, positions = tiles_to_groups(tiles)
    rows, columns = tiles.shape
    index = torch.stack((positions & 3, (positions >> 2) & 3), -1).to(torch.int64)
    dense = torch.zeros(rows, columns // 4, 4, dtype=kept.dtype, device=tiles.device).scatter_(-1, index, kept)
    if tiles.bits == 16:
        return dense.view(tiles.dtype).view(rows, columns)
    scales = tiles.scales if tiles.scales is not None else _tile_scales(tiles)
    return dense.view(rows, columns).float() * spread_scales(scales, columns)


def tiles_to_groups(tiles: TwoFourTiles) -> tuple[Tensor, Tensor]:
    """Kept values [out, in/4, 2] (int16 bits of 16-bit values, or q int8) and positions int32 [out, in/4] (as in TwoFour)."""
    blocks, steps = tiles.data.shape[:2]
    order, split = _ORDER[tiles.bits], (blocks, *_SPLIT[:3], steps, *_SPLIT[4:])
    end = TILE_WORDS[tiles.bits] - _POSITION_WORDS - (_SCALE_WORDS if tiles.bits == 4 else 0)
    values = _words_to_values(tiles.data[:, :, :end], tiles.bits).reshape([split[place] for place in order])
    back = [order.index(place) for place in range(len(order))]
    # [block, tile, g, selector, columns + 16, half, step // 2, row + 8]
    words = tiles.data[:, :, end : end + _POSITION_WORDS].reshape(blocks, steps, 8, 2, 2, 2, 2, 1)
    both = torch.cat((words & 0xFFFF, (words >> 16) & 0xFFFF), -1)
    quads = both.permute(0, 5, 7, 2, 1, 6, 3, 4)  # block, half, row + 8, g, tile, step // 2, selector, columns + 16
    shifts = torch.arange(0, 16, 4, device=tiles.device, dtype=torch.int32)
    positions = (quads.unsqueeze(-1) >> shifts) & 15
    rows, groups = tiles.shape[0], tiles.shape[1] // 4
    kept = values.permute(back).reshape(blocks * TILE_ROWS, steps * _GROUPS, 2)
    return (
        kept[:rows, :groups].contiguous(),
        positions.reshape(blocks * TILE_ROWS, steps * _GROUPS)[:rows, :groups].contiguous(),
    )


def _counts(shape: tuple[int, int]) -> tuple[int, int]:
    return -(-shape[0] // TILE_ROWS), -(-shape[1] // TILE_COLUMNS)


def _filled(groups: Tensor, blocks: int, steps: int, value: int) -> Tensor:
    """[out, in/4, …] -> [32 blocks, 32 steps, …], filled with `value`."""
    more = (0, 0) * (groups.ndim - 2) + (0, steps * _GROUPS - groups.shape[1], 0, blocks * TILE_ROWS - groups.shape[0])
    return torch.nn.functional.pad(groups, more, value=value).contiguous()


def _values_to_words(values: Tensor, bits: int) -> Tensor:
    """Values in tile order -> int32; 4 bits: [..., value, + 4, row + 8] make a word."""
    if bits == 16:
        return values.contiguous().view(torch.int32)
    if bits == 8:
        return values.reshape(*values.shape[:-2], 4).contiguous().view(torch.int32)
    return ((values.to(torch.int32) + 8) << _nibble_shifts(values.device)).sum((-3, -2, -1), dtype=torch.int32)


def _words_to_values(words: Tensor, bits: int) -> Tensor:
    if bits > 4:
        return words.contiguous().view(torch.int16 if bits == 16 else torch.int8)
    return (((words[..., None, None, None] >> _nibble_shifts(words.device)) & 15) - 8).to(torch.int8)


def _nibble_shifts(device: torch.device) -> Tensor:
    """int32 [value, + 4, row + 8]: the bit at which a value of register 2 (+ 4) + (row + 8) begins."""
    return torch.arange(0, 32, 4, dtype=torch.int32, device=device).view(2, 2, 2)


def _position_words(layout: TwoFour, blocks: int, steps: int) -> Tensor:
    nibbles = _filled(unpack_nibbles(layout), blocks, steps, _FIRST_TWO).view(blocks, 2, 2, 8, steps, 2, 2, 2, 4)
    shifts = torch.arange(0, 16, 4, device=layout.device, dtype=torch.int32)
    quads = (nibbles << shifts).sum(-1, dtype=torch.int32)  # block, half, row + 8, g, tile, step // 2, selector, + 16
    words = quads[:, :, 0] | (quads[:, :, 1] << 16)
    return words.permute(0, 3, 2, 5, 6, 1, 4).reshape(blocks, steps, _POSITION_WORDS)


def _scale_words(scales: Tensor, blocks: int) -> Tensor:
    """[out, in/128] -> int32 [block, tile, 32]: float32 bits, [g, half, row + 8]."""
    padded = torch.nn.functional.pad(scales.float(), (0, 0, 0, blocks * TILE_ROWS - scales.shape[0]))
    ordered = padded.view(blocks, 2, 2, 8, -1).permute(0, 4, 3, 1, 2).contiguous()
    return ordered.view(torch.int32).view(blocks, -1, _SCALE_WORDS)


def _tile_scales(tiles: TwoFourTiles) -> Tensor:
    """float32 [out, ceil(in/128)] of 4 bits."""
    blocks, steps = tiles.data.shape[:2]
    words = tiles.data[:, :, -_SCALE_WORDS:].reshape(blocks, steps, 8, 2, 2).permute(0, 3, 4, 2, 1)
    return words.reshape(blocks * TILE_ROWS, steps).contiguous().view(torch.float32)[: tiles.shape[0]]
