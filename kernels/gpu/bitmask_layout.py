"""Unstructured sparse matrices as a GPU reads them: the bitmask checkpoint's values, with gaps instead of mask bits.

A mask word of 32 columns holds a varying number of values, so lanes that take words wait for the fullest one, and
expanding masks costs instructions for every column whether it is kept or not: too many from 60 % sparsity on. Here
every lane has the same work, every load is coalesced, and the work is proportional to the kept weights:

    stream    the kept weights of a row, each with its gap: how many columns after the one before it stands.
              Gaps have `gap_bits` bits; a longer one takes pads (value bits 0) in between, each the largest gap on.
    group     `entries` of a stream: VALUE_WORDS words of values beside GAP_WORDS words of gaps, first entry lowest
    lane      consecutive groups of one row. A row has `segments` lanes; they differ by one group at most.
    slice     `rows` rows of similar length, as long as its longest row; shorter ones end in pads of gap 0.

    values int32 [sum of groups * rows * value words], gaps likewise: [slice][step][word][segment * rows + row], the
                  last step of a slice has lanes only where a group is left
    starts int16 (uint16 bits; int32 above 65536 columns) [slices, segments * rows], column of a lane's first entry,
                  whose own gap is 0
    steps  int32 [slices + 1], groups of a row in the slices before
    order  int32 [slices * rows], matrix row of every place in a slice; `out` where there is none

Bits a kept weight: b + 3.2, 4 or 5.33, and the pads, starts and row ends, against b + 1 / density of a bitmask. Rows of 4096
columns in bfloat16 take 10 % more bytes than a bitmask at 50 %, 9 % more at 60 %, 7 % at 70 %, 3 % at 80 %, and 8 % fewer
at 90 %. Values and columns come back exactly, -0.0 and NaN included: only a weight whose bits are all zero is left out,
and only pads have value bits 0.
"""

from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import torch
from torch import Tensor

from tailcut.errors import InputError
from tailcut.kernels.gpu.layouts import ACTIVATIONS

GAP_BITS: Final = (3, 4, 5, 6, 8)
BITS: Final = (16, 8)
NARROW: Final = 1 << 16  # columns that a 16-bit start can name
MOST_LANES: Final = 1024  # of a slice: threads of a block
_PARTS: Final = ("values", "gaps", "starts", "steps", "order", "scales")


class Group(NamedTuple):
    """One group of a lane: `entries` weights, their words of values and of gaps, and `each` gaps in a word."""

    entries: int
    value_words: int
    gap_words: int
    each: int


@dataclass(frozen=True, slots=True, eq=False)
class Bitmask:
    """An unstructured sparse matrix [out, in] on one device; `dtype` is that of x and y, and of 16-bit values."""

    values: Tensor
    gaps: Tensor
    starts: Tensor
    steps: Tensor
    order: Tensor
    scales: Tensor | None
    shape: tuple[int, int]
    bits: int
    dtype: torch.dtype
    gap_bits: int
    rows: int
    segments: int
    error: float = 0.0  # ||stored - W|| / ||W||: what rounding to `bits` changed

    def __post_init__(self) -> None:
        _check(self)

    @property
    def kind(self) -> str:
        """A name for tables and caches: bitmask_16 or bitmask_8."""
        return f"bitmask_{self.bits}"

    @property
    def group(self) -> Group:
        return group_of(self.bits, self.gap_bits)

    @property
    def slices(self) -> int:
        return -(-self.shape[0] // self.rows)

    @property
    def lanes(self) -> int:
        """Lanes of a slice."""
        return self.rows * self.segments

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The parts by name: what a state dict keeps."""
        parts = {name: getattr(self, name) for name in _PARTS}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def nbytes(self) -> int:
        """Bytes that one multiplication reads."""
        return sum(part.numel() * part.element_size() for part in self.tensors.values())

    def to(self, device: torch.device | str) -> "Bitmask":
        """The same matrix on another device."""
        return replace(self, **{name: part.to(device) for name, part in self.tensors.items()})  # type: ignore[arg-type]


def group_of(bits: int, gap_bits: int) -> Group:
    """The smallest group whose values and gaps both fill whole words (but for the spare bits of a word of gaps)."""
    each, values_a_word = 32 // gap_bits, 32 // bits
    gap_words = next(words for words in (1, 2, 4) if words * each % values_a_word == 0)
    return Group(gap_words * each, gap_words * each // values_a_word, gap_words, each)


def check_form(bits: int, dtype: torch.dtype, gap_bits: int, rows: int, segments: int) -> None:
    """InputError unless there is such a layout."""
    if bits not in BITS:
        raise InputError(f"a bitmask layout has 16 or 8 bits a value, not {bits}")
    if dtype not in ACTIVATIONS:
        raise InputError(f"a bitmask layout multiplies bfloat16 or float16, not {dtype}")
    if gap_bits not in GAP_BITS:
        raise InputError(f"gaps of a bitmask layout have one of {GAP_BITS} bits, not {gap_bits}")
    if min(rows, segments) < 1 or rows & (rows - 1) or segments & (segments - 1) or rows * segments > MOST_LANES:
        raise InputError(
            f"rows and segments of a slice are powers of two, at most {MOST_LANES} lanes, got {rows} and {segments}"
        )


def _check(layout: Bitmask) -> None:
    """InputError unless the parts fit each other: they may come from a state_dict or another program.

    What the tensors hold is not read: that would wait for the GPU.
    """
    check_form(layout.bits, layout.dtype, layout.gap_bits, layout.rows, layout.segments)
    out, columns = layout.shape
    if out < 1 or columns < 1:
        raise InputError(f"a bitmask layout needs at least one row and column, got [{out}, {columns}]")
    if (layout.scales is not None) != (layout.bits == 8):
        raise InputError("a bitmask layout of 8 bits needs scales, one of 16 bits has none")
    group, starts = layout.group, torch.int16 if columns <= NARROW else torch.int32
    groups = layout.gaps.numel() // group.gap_words
    wanted = {
        "values": (torch.int32, (groups * group.value_words,)),
        "gaps": (torch.int32, (groups * group.gap_words,)),
        "starts": (starts, (layout.slices, layout.lanes)),
        "steps": (torch.int32, (layout.slices + 1,)),
        "order": (torch.int32, (layout.slices * layout.rows,)),
        "scales": (torch.float32, (out,)),
    }
    for name, part in layout.tensors.items():
        dtype, shape = wanted[name]
        if part.dtype != dtype or tuple(part.shape) != shape or not part.is_contiguous():
            raise InputError(
                f"bitmask {name} must be {str(dtype)[6:]} {list(shape)}, contiguous, got {part.dtype} {list(part.shape)}"
            )
    if len({part.device for part in layout.tensors.values()}) > 1:
        raise InputError("the parts of a bitmask layout must be on one device")
