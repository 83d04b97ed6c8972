"""A dense matrix, a bitmask-packed one or a checkpoint's -> `Bitmask`, and back, exact.

A weight counts as zero when its bit pattern is zero, as in `tailcut.bitmask`, so that -0.0 and NaN survive. 8 bits round
to nearest with the scales of the CPU packages (`export/quantise.py`): max |w| / 127 of a row; what rounds to 0 is left out.
Everything is a few torch operations on the weight's own device, with up to 100 bytes of memory a kept weight.
"""

from pathlib import Path
from typing import Final, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from tailcut.bitmask import Packed, pack, unpack
from tailcut.checkpoint import Checkpoint
from tailcut.errors import InputError
from tailcut.kernels.gpu.bitmask_layout import GAP_BITS, NARROW, Bitmask, Group, check_form, group_of
from tailcut.kernels.gpu.layouts import ACTIVATIONS
from tailcut.kernels.gpu.two_four_pack import to_torch

TILES: Final = {16: (16, 32), 8: (32, 32)}  # rows and segments of a slice, fastest on an H100 (4096 x 4096, 50 %)
_LARGEST: Final = 127
_PATTERNS: Final = {16: torch.int16, 8: torch.int8}  # value bits as integers


def pack_bitmask(
    weight: Tensor | Packed,
    bits: int = 16,
    dtype: torch.dtype | None = None,
    *,
    gap_bits: int | None = None,
    rows: int | None = None,
    segments: int | None = None,
    name: str = "weight",
) -> Bitmask:
    """weight [out, in] or its bitmask -> Bitmask, on the weight's device.

    bits 16 keeps the weight's own dtype (bfloat16 or float16); 8 rounds any floating weight, and `dtype` is that of x
    and y (the weight's where it is bfloat16 or float16, else bfloat16). gap_bits None: those that take fewest bytes;
    rows and segments None: TILES.
    """
    dense = to_torch(unpack(weight)) if isinstance(weight, Packed) else weight
    dtype = _checked_dtype(dense, bits, dtype, name)
    tile = TILES.get(bits, (1, 1))
    rows, segments = tile[0] if rows is None else rows, tile[1] if segments is None else segments
    check_form(bits, dtype, gap_bits or GAP_BITS[0], rows, segments)
    if bits == 16:
        return _pack(dense.contiguous(), None, bits, dtype, gap_bits, rows, segments, 0.0)
    q, scales = quantise_rows(dense, name)
    size, difference = dense.double().norm(), (q.double() * scales[:, None].double() - dense.double()).norm()
    error = float(difference / size) if size else 0.0
    return _pack(q, scales, bits, dtype, gap_bits, rows, segments, error)


def from_checkpoint(source: Path | Checkpoint, name: str, bits: int = 16, dtype: torch.dtype | None = None) -> Bitmask:
    """The matrix `name` of a checkpoint (plain or bitmask-packed) -> Bitmask on the CPU."""
    checkpoint = source if isinstance(source, Checkpoint) else Checkpoint(source)
    return pack_bitmask(to_torch(checkpoint.read(name)), bits, dtype, name=name)


def quantise_rows(weight: Tensor, name: str = "weight") -> tuple[Tensor, Tensor]:
    """weight [out, in] -> q int8 [out, in] in -127..127 and scales float32 [out]."""
    wide = weight.float()
    if not bool(wide.isfinite().all()):
        raise InputError(f"{name}: NaN and infinite weights cannot be rounded to 8 bits; repair the checkpoint")
    scales = wide.abs().amax(1) / _LARGEST
    scales = torch.where(scales >= torch.finfo(torch.float32).tiny, scales, 0.0)  # a subnormal divisor overflows
    steps = torch.where(scales > 0, scales, 1.0)
    return (wide / steps[:, None]).round().clamp(-_LARGEST, _LARGEST).to(torch.int8), scales


def unpack_bitmask(layout: Bitmask) -> Tensor:
    """Bitmask -> dense [out, in]: 16 bits in the layout's dtype, exact; 8 bits float32, q * scale."""
    stored = unpack_stored(layout)
    return stored if layout.scales is None else stored.float() * layout.scales[:, None]


def unpack_stored(layout: Bitmask) -> Tensor:
    """The stored matrix [out, in], bit for bit: the layout's dtype, or q int8."""
    group, lanes = layout.group, layout.lanes
    steps = layout.steps.long()
    whole, rest = _split(steps.diff(), layout.segments)
    segment = torch.arange(lanes, device=layout.device) // layout.rows
    lane, step = _runs((whole[:, None] + (segment < rest[:, None])).flatten())  # of every group
    piece, within = lane // lanes, lane % lanes
    at = _Address(steps, whole, rest, layout.rows, lanes, piece[:, None], within[:, None], step[:, None])
    entry = torch.arange(group.entries, device=layout.device)
    gap = layout.gaps[at.words(entry // group.each, group.gap_words)] >> (entry % group.each * layout.gap_bits)
    a_word = 32 // layout.bits
    place = at.words(entry // a_word, group.value_words) * a_word + entry % a_word
    bits = layout.values.view(_PATTERNS[layout.bits])[place]
    gap = (gap & ((1 << layout.gap_bits) - 1)).long()
    column = _cumulative(gap.flatten(), lane.repeat_interleave(group.entries)).view_as(gap)
    column += _columns(layout.starts).flatten()[lane][:, None]
    row = layout.order.long()[piece * layout.rows + within % layout.rows][:, None].expand_as(column)
    kept = bits != 0
    dense = torch.zeros(layout.shape, dtype=bits.dtype, device=layout.device)
    dense[row[kept], column[kept]] = bits[kept]
    return dense if layout.bits == 8 else dense.view(layout.dtype)


def to_packed(layout: Bitmask) -> Packed:
    """The checkpoint's bitmask of the stored matrix (8 bits: of q)."""
    stored = unpack_stored(layout).cpu()
    if stored.dtype == torch.bfloat16:
        import ml_dtypes

        return pack(stored.view(torch.int16).numpy().view(np.dtype(ml_dtypes.bfloat16)))
    return pack(stored.numpy())


def _pack(
    stored: Tensor,
    scales: Tensor | None,
    bits: int,
    dtype: torch.dtype,
    gap_bits: int | None,
    rows: int,
    segments: int,
    error: float,
) -> Bitmask:
    patterns = stored.view(_PATTERNS[bits])
    row, column = patterns.nonzero(as_tuple=True)
    gap = _gaps(row, column)
    width = gap_bits or _fewest_bytes(gap, bits)
    out, columns = int(stored.shape[0]), int(stored.shape[1])
    stream = _Stream.of(row, column, gap, patterns[row, column], out, (1 << width) - 1)
    parts = _lay_out(stream, group_of(bits, width), (out, columns), rows, segments, width)
    return Bitmask(*parts, scales, (out, columns), bits, dtype, width, rows, segments, error)


class _Stream(NamedTuple):
    """Kept weights and pads of all rows, one after the other; `place` counts from the row's beginning."""

    row: Tensor
    place: Tensor
    column: Tensor
    gap: Tensor
    bits: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, row: Tensor, column: Tensor, gap: Tensor, bits: Tensor, out: int, largest: int) -> Self:
        pads = _pads(gap, largest)
        lengths = torch.zeros(out, dtype=torch.long, device=row.device).index_add_(0, row, pads + 1)
        rows, place = _runs(lengths)
        at = (pads + 1).cumsum(0) - 1
        gaps = torch.full_like(rows, largest)
        gaps[at] = gap - pads * largest
        values = bits.new_zeros(rows.shape[0]).index_copy_(0, at, bits)
        firsts = torch.zeros_like(lengths).index_copy_(0, row[gap == 0], column[gap == 0])
        return cls(rows, place, _cumulative(gaps, rows) + firsts[rows], gaps, values, lengths)


class _Address(NamedTuple):
    """Where the words of a lane's step lie in a slice (steps [slices + 1] before it, `whole` full steps, `rest`)."""

    steps: Tensor
    whole: Tensor
    rest: Tensor
    rows: int
    lanes: int
    piece: Tensor
    lane: Tensor
    step: Tensor

    def words(self, which: Tensor, words: int) -> Tensor:
        """Index of word `which` of `words` a group, for every group of the address."""
        whole = self.whole[self.piece]
        width = torch.where(self.step < whole, self.lanes, self.rest[self.piece] * self.rows)
        first = self.steps[self.piece] * self.rows * words + self.step * words * self.lanes + self.lane
        return first + which * width


def _lay_out(
    stream: _Stream, group: Group, shape: tuple[int, int], rows: int, segments: int, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    out, device, lanes = shape[0], stream.row.device, rows * segments
    lengths = (stream.lengths + group.entries - 1) // group.entries  # in groups
    slices = -(-out // rows)
    order = torch.full((slices * rows,), out, device=device)
    order[:out] = lengths.argsort(descending=True, stable=True)
    slot = torch.empty_like(lengths)
    slot[order[:out]] = torch.arange(out, device=device)
    longest = lengths[order[::rows]]
    steps = torch.cat([longest.new_zeros(1), longest.cumsum(0)])
    whole, rest = _split(longest, segments)
    piece = slot[stream.row] // rows
    number, entry = stream.place // group.entries, stream.place % group.entries
    segment, step = _segment_of(number, whole[piece], rest[piece])
    lane = segment * rows + slot[stream.row] % rows
    at = _Address(steps, whole, rest, rows, lanes, piece, lane, step)
    first = (step == 0) & (entry == 0)
    starts = torch.zeros(slices * lanes, dtype=torch.int32, device=device)
    starts[(piece * lanes + lane)[first]] = stream.column[first].int()
    words = int(steps[-1]) * rows
    gaps = torch.zeros(words * group.gap_words, dtype=torch.int32, device=device)
    shifted = torch.where(first, 0, stream.gap).int() << (entry % group.each * width).int()
    gaps.index_add_(0, at.words(entry // group.each, group.gap_words), shifted)  # bits that do not overlap
    a_word = group.entries // group.value_words
    values = torch.zeros(words * group.value_words, dtype=torch.int32, device=device).view(stream.bits.dtype)
    values[at.words(entry // a_word, group.value_words) * a_word + entry % a_word] = stream.bits
    narrow = starts if shape[1] > NARROW else starts.to(torch.int16)
    return values.view(torch.int32), gaps, narrow.view(slices, lanes), steps.int(), order.int()


def _split(groups: Tensor, segments: int) -> tuple[Tensor, Tensor]:
    """Groups of a row -> steps that every lane makes, and lanes of a row that make one more."""
    return groups // segments, groups % segments


def _segment_of(number: Tensor, whole: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """Which lane of its row has a group, and as its how-manieth: the first `rest` lanes have whole + 1 groups."""
    long = rest * (whole + 1)
    later, steps = number - long, whole.clamp(min=1)
    short = number >= long
    segment = torch.where(short, rest + later // steps, number // (whole + 1))
    return segment, torch.where(short, later % steps, number % (whole + 1))


def _runs(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Counts [n] -> for every item of n runs: its run, and its number in the run."""
    run = torch.repeat_interleave(counts)
    return run, torch.arange(run.shape[0], device=counts.device) - (counts.cumsum(0) - counts)[run]


def _cumulative(gap: Tensor, run: Tensor) -> Tensor:
    """Sum of the gaps of a run up to and with each item; `run` ascends."""
    total = gap.cumsum(0)
    begins = torch.ones_like(run, dtype=torch.bool)
    begins[1:] = run[1:] != run[:-1]
    before = (total - gap)[begins]
    return total - before[begins.cumsum(0) - 1]


def _gaps(row: Tensor, column: Tensor) -> Tensor:
    """Columns since the kept weight before in the row; 0 for the row's first."""
    gap = torch.zeros_like(column)
    gap[1:] = torch.where(row[1:] == row[:-1], column[1:] - column[:-1], 0)
    return gap


def _pads(gap: Tensor, largest: int) -> Tensor:
    """Pads that stand before an entry."""
    return ((gap - 1) // largest).clamp(min=0)


def _fewest_bytes(gap: Tensor, bits: int) -> int:
    def words(width: int) -> float:
        group = group_of(bits, width)
        entries = gap.shape[0] + int(_pads(gap, (1 << width) - 1).sum())
        return entries * (group.value_words + group.gap_words) / group.entries

    return min(GAP_BITS, key=words)


def _columns(starts: Tensor) -> Tensor:
    return starts.long() & 0xFFFF if starts.dtype == torch.int16 else starts.long()


def _checked_dtype(weight: Tensor, bits: int, dtype: torch.dtype | None, name: str) -> torch.dtype:
    """That of x and y."""
    if weight.ndim != 2 or weight.numel() == 0:
        raise InputError(f"{name}: a bitmask layout needs a matrix with rows and columns, got {list(weight.shape)}")
    if not weight.is_floating_point():
        raise InputError(f"{name}: a bitmask layout is made of floating-point weights, got {weight.dtype}")
    own = weight.dtype if weight.dtype in ACTIVATIONS else None
    if bits == 16 and (own is None or dtype not in (None, own)):
        raise InputError(f"{name}: 16-bit values keep their dtype, bfloat16 or float16; convert {weight.dtype} first")
    return dtype or own or torch.bfloat16
