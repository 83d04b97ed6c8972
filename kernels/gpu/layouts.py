"""What lies in GPU memory: frozen dataclasses of torch tensors, one a layout.

TwoFour: of every 4 neighbouring columns at most 2 weights are kept. With G = in / 4 groups a row and G8 groups a slice,

    group = chunk * 8 * G8 + slice * G8 + lane            slice 0..7, lane 0..G8-1, chunks = ceil(G / (8 * G8))
    meta    int32 [out, chunks, G8]                       nibble `slice` of a word = i0 | i1 << 2
    values  int32 [out, G]                     16 bits    kept value 0 in the low half, value 1 in the high half
            int32 [out, chunks, 4, G8]          8 bits    word h: slices 2 h and 2 h + 1, lowest first
            int32 [out, chunks, 2, G8]          4 bits    word h: slices 4 h ... 4 h + 3, lowest first
    scales  None                               16 bits
            float32 [out]                       8 bits    one a row
            float32 or bfloat16 [out, ceil(in / 128)]     4 bits, one a row and 128 columns

i0 < i1 are the columns of the two kept values in their group; a group with fewer non-zeros keeps explicit zeros in its
lowest free columns. 8 and 4 bit values are stored as q + 2^(bits-1), value 0 below value 1. Groups past G (the last
chunk is padded) have i0 = 0, i1 = 1 and q = 0. So that a warp reads 128 bytes and more at a time, neighbouring lanes
lie side by side and the 8 groups whose indices share a word are G8 groups apart.

Bytes a weight: 16 bits 1.125 (dense 2), 8 bits 0.625, 4 bits 0.375 plus scales.
"""

from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from tailcut.errors import InputError
from tailcut.quantised import groups as scale_groups

ACTIVATIONS: Final = (torch.bfloat16, torch.float16)
GROUP8: Final = (128, 64, 32)  # groups a slice, in the order in which they are tried
SLICES: Final = 8  # groups whose indices share a word
WORDS: Final = {8: 4, 4: 2}  # value words a lane and chunk


@dataclass(frozen=True, slots=True, eq=False)
class TwoFour:
    """A 2:4 matrix [out, in]; `dtype` is that of x and y, and of the values where bits is 16."""

    values: Tensor
    meta: Tensor
    scales: Tensor | None
    shape: tuple[int, int]
    bits: int
    dtype: torch.dtype
    error: float = 0.0  # ||stored - W|| / ||W||: what rounding to `bits` changed

    def __post_init__(self) -> None:
        _check(self)

    @property
    def kind(self) -> str:
        """A name for tables and caches: two_four_16, two_four_8 or two_four_4."""
        return f"two_four_{self.bits}"

    @property
    def group8(self) -> int:
        """Groups a slice (G8)."""
        return int(self.meta.shape[2])

    @property
    def chunks(self) -> int:
        return int(self.meta.shape[1])

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def nbytes(self) -> int:
        """Bytes that one multiplication reads."""
        return _nbytes(self.values) + _nbytes(self.meta) + (0 if self.scales is None else _nbytes(self.scales))

    def to(self, device: torch.device | str) -> "TwoFour":
        """The same matrix on another device."""
        scales = None if self.scales is None else self.scales.to(device)
        return replace(self, values=self.values.to(device), meta=self.meta.to(device), scales=scales)


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """A matrix [out, in] as it is; any floating dtype."""

    weight: Tensor

    @property
    def kind(self) -> str:
        return "dense"

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.weight.shape[0]), int(self.weight.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.weight.device

    @property
    def nbytes(self) -> int:
        return _nbytes(self.weight)

    def to(self, device: torch.device | str) -> "Dense":
        return Dense(self.weight.to(device))


def chunks_of(columns: int, group8: int) -> int:
    """Chunks of a row of `columns` weights."""
    return -(-columns // (4 * SLICES * group8))


def choose_group8(columns: int) -> int:
    """The longest slice that pads a row by at most an eighth, or the one that pads least (longer runs are read faster)."""
    groups = columns // 4

    def padded(group8: int) -> int:
        return chunks_of(columns, group8) * SLICES * group8

    return next((size for size in GROUP8 if 8 * padded(size) <= 9 * groups), min(GROUP8, key=padded))


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _check(layout: TwoFour) -> None:
    """InputError unless the parts fit each other: they may come from a state_dict or another program."""
    out, columns = layout.shape
    if layout.bits not in (16, 8, 4):
        raise InputError(f"a 2:4 layout has 16, 8 or 4 bits a value, not {layout.bits}")
    if layout.dtype not in ACTIVATIONS:
        raise InputError(f"a 2:4 layout multiplies bfloat16 or float16, not {layout.dtype}")
    if out < 1 or columns < 4 or columns % 4:
        raise InputError(f"a 2:4 layout needs at least one row and in % 4 == 0, got [{out}, {columns}]")
    if layout.meta.ndim != 3 or layout.meta.shape[2] not in GROUP8:
        raise InputError(f"2:4 meta must be [out, chunks, G8], G8 one of {GROUP8}, got {tuple(layout.meta.shape)}")
    chunks = chunks_of(columns, layout.group8)
    values = (out, columns // 4) if layout.bits == 16 else (out, chunks, WORDS[layout.bits], layout.group8)
    _check_part("meta", layout.meta, (out, chunks, layout.group8), (torch.int32,))
    _check_part("values", layout.values, values, (torch.int32,))
    _check_scales(layout)


def _check_scales(layout: TwoFour) -> None:
    out, columns = layout.shape
    if layout.bits == 16:
        if layout.scales is not None:
            raise InputError("a 2:4 layout of 16 bits has no scales")
        return
    if layout.scales is None:
        raise InputError(f"a 2:4 layout of {layout.bits} bits needs scales")
    if layout.bits == 8:
        _check_part("scales", layout.scales, (out,), (torch.float32,))
    else:
        _check_part("scales", layout.scales, (out, scale_groups(columns)), (torch.float32, torch.bfloat16))


def _check_part(name: str, part: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    if tuple(part.shape) != shape or part.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise InputError(f"2:4 {name} must be {wanted} {list(shape)}, got {part.dtype} {list(part.shape)}")
    if not part.is_contiguous():
        raise InputError(f"2:4 {name} must be contiguous, got strides {part.stride()}; call .contiguous() first")
