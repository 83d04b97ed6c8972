"""A dense 2:4 matrix, a bitmask-packed one or a checkpoint's -> TwoFour, and back, exact.

A weight counts as zero when its bit pattern is zero, as in `tailcut.bitmask`, so that -0.0 and NaN survive.
8 and 4 bits round to nearest with the scales of the CPU packages (`export/quantise.py`): max |w| / 127 of a row,
max |w| / 7 of a row's 128 columns; the same q and the same float32 scales, computed where the weight lies.
"""

from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from tailcut.bitmask import Packed
from tailcut.bitmask import unpack as unpack_bitmask
from tailcut.checkpoint import Checkpoint
from tailcut.errors import InputError
from tailcut.kernels.gpu.layouts import ACTIVATIONS, GROUP8, SLICES, WORDS, TwoFour, choose_group8, chunks_of
from tailcut.quantised import GROUP
from tailcut.quantised import groups as scale_groups

_LARGEST: Final = {8: 127, 4: 7}
_EMPTY: Final = 0 | 1 << 2  # i0 = 0, i1 = 1
_INVALID: Final = 255


def _nibble(pattern: int) -> int:
    """The index nibble of a group whose non-zero columns are the bits of `pattern`; 255 where there are 3 or 4."""
    kept = [column for column in range(4) if pattern >> column & 1]
    if len(kept) > 2:
        return _INVALID
    free = [column for column in range(4) if column not in kept]
    first, second = sorted(kept + free[: 2 - len(kept)])
    return first | second << 2


_NIBBLES: Final = tuple(_nibble(pattern) for pattern in range(16))


def pack_two_four(
    weight: Tensor,
    bits: int = 16,
    dtype: torch.dtype | None = None,
    group8: int | None = None,
    scale_dtype: torch.dtype = torch.float32,
    name: str = "weight",
) -> TwoFour:
    """weight [out, in], 2:4 along `in` -> TwoFour on the same device.

    bits 16 keeps the weight's own dtype (bfloat16 or float16); 8 and 4 round any floating weight, and `dtype` is
    that of x and y (the weight's where it is bfloat16 or float16, else bfloat16).
    """
    dtype = _checked_dtype(weight, bits, dtype, name)
    nibbles = _nibbles(weight, name)
    chosen = choose_group8(weight.shape[1]) if group8 is None else group8
    if chosen not in GROUP8:
        raise InputError(f"{name}: groups a slice must be one of {GROUP8}, got {chosen}")
    out, columns = (int(size) for size in weight.shape)
    meta = _meta_words(nibbles, chunks_of(columns, chosen), chosen)
    if bits == 16:
        return TwoFour(_pairs(weight, nibbles), meta, None, (out, columns), bits, dtype)
    q, scales = _quantise(weight.float(), bits, name)
    scales = scales.to(scale_dtype)
    error = _relative_error(weight, q, scales)
    return TwoFour(_value_words(q, nibbles, bits, meta), meta, scales, (out, columns), bits, dtype, error)


def from_packed(packed: Packed, bits: int = 16, name: str = "weight", **options: object) -> TwoFour:
    """A bitmask-packed 2:4 matrix -> TwoFour on the CPU; `options` as in `pack_two_four`."""
    return pack_two_four(to_torch(unpack_bitmask(packed)), bits, name=name, **options)  # type: ignore[arg-type]


def from_checkpoint(source: Path | Checkpoint, name: str, bits: int = 16, **options: object) -> TwoFour:
    """The 2:4 matrix `name` of a checkpoint (plain or bitmask-packed) -> TwoFour on the CPU."""
    checkpoint = source if isinstance(source, Checkpoint) else Checkpoint(source)
    return pack_two_four(to_torch(checkpoint.read(name)), bits, name=name, **options)  # type: ignore[arg-type]


def unpack_two_four(layout: TwoFour) -> Tensor:
    """TwoFour -> dense [out, in]: 16 bits in the layout's dtype, exact; 8 and 4 bits float32, q * scale."""
    out, columns = layout.shape
    nibbles = unpack_nibbles(layout).long()
    pair = torch.stack([nibbles & 3, nibbles >> 2 & 3], dim=-1)  # [out, G, 2]
    kept = unpack_pairs(layout)
    dense = torch.zeros(out, columns // 4, 4, dtype=kept.dtype, device=kept.device).scatter_(-1, pair, kept)
    dense = dense.view(out, columns)
    if layout.scales is None:
        return dense.view(layout.dtype)
    return dense.float() * spread_scales(layout.scales, columns)


def spread_scales(scales: Tensor, columns: int) -> Tensor:
    """Scales [out] or [out, ceil(in / 128)] -> float32 that multiplies [out, in]."""
    if scales.ndim == 1:
        return scales.float()[:, None]
    return scales.float().repeat_interleave(GROUP, dim=1)[:, :columns]


def to_torch(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Tensor:
    """A NumPy array, bfloat16 included, as a torch tensor of its own."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def _checked_dtype(weight: Tensor, bits: int, dtype: torch.dtype | None, name: str) -> torch.dtype:
    if weight.ndim != 2 or weight.numel() == 0:
        raise InputError(f"{name}: a 2:4 layout needs a matrix with rows and columns, got shape {list(weight.shape)}")
    if weight.shape[1] % 4:
        raise InputError(f"{name}: 2:4 groups need in % 4 == 0, got in = {weight.shape[1]}; keep this layer dense")
    if bits not in (16, 8, 4):
        raise InputError(f"{name}: a 2:4 layout has 16, 8 or 4 bits a value, not {bits}")
    if not weight.dtype.is_floating_point or weight.dtype.itemsize not in (2, 4, 8):
        raise InputError(f"{name}: weights must be bfloat16, float16 or float32, got {weight.dtype}")
    own = weight.dtype if weight.dtype in ACTIVATIONS else None
    if bits == 16 and own is None:
        raise InputError(f"{name}: 16-bit 2:4 values are bfloat16 or float16, got {weight.dtype}; convert it first")
    if bits == 16 and dtype not in (None, own):
        raise InputError(f"{name}: weights are {own}, x is to be {dtype}; convert the weights first")
    return dtype or own or torch.bfloat16


def _nibbles(weight: Tensor, name: str) -> Tensor:
    """uint8 [out, in / 4], i0 | i1 << 2; InputError where a group has 3 or 4 non-zeros."""
    out, columns = weight.shape
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.dtype.itemsize]
    nonzero = (weight.contiguous().view(integer) != 0).view(out, columns // 4, 4)
    powers = torch.tensor([1, 2, 4, 8], dtype=torch.uint8, device=weight.device)
    patterns = (nonzero * powers).sum(-1, dtype=torch.uint8)
    found = torch.tensor(_NIBBLES, dtype=torch.uint8, device=weight.device)[patterns.long()]
    bad = found == _INVALID
    if bool(bad.any()):
        row, group = (int(index) for index in bad.nonzero()[0])
        count = int(nonzero[row, group].sum())
        raise InputError(
            f"{name}: not 2:4, {count} non-zeros in row {row}, columns {4 * group} to {4 * group + 3} (2 are allowed; "
            f"{int(bad.sum())} such groups); prune it with pattern 2:4 or keep this layer dense"
        )
    return found


def _gather(matrix: Tensor, nibbles: Tensor) -> Tensor:
    """The kept values of matrix [out, in] -> [out, in / 4, 2]."""
    out, columns = matrix.shape
    pair = torch.stack([nibbles & 3, nibbles >> 2], dim=-1).long()
    return matrix.reshape(out, columns // 4, 4).gather(-1, pair)


def _pairs(weight: Tensor, nibbles: Tensor) -> Tensor:
    """int32 [out, in / 4]: the bits of both kept 16-bit values."""
    return _gather(weight.contiguous().view(torch.int16), nibbles).contiguous().view(torch.int32).squeeze(-1)


def _slices(groups: Tensor, chunks: int, group8: int, fill: int) -> Tensor:
    """[out, G] -> int32 [out, chunks, 8, G8], padded with `fill`."""
    out, count = groups.shape
    padded = torch.full((out, chunks * SLICES * group8), fill, dtype=torch.int32, device=groups.device)
    padded[:, :count] = groups
    return padded.view(out, chunks, SLICES, group8)


def _meta_words(nibbles: Tensor, chunks: int, group8: int) -> Tensor:
    sliced = _slices(nibbles, chunks, group8, _EMPTY)
    words = torch.zeros_like(sliced[:, :, 0]).contiguous()
    for index in range(SLICES):
        words |= sliced[:, :, index] << 4 * index
    return words


def _value_words(q: Tensor, nibbles: Tensor, bits: int, meta: Tensor) -> Tensor:
    """q int8 [out, in] -> int32 [out, chunks, words, G8], the kept values as q + 2^(bits-1)."""
    out, chunks, group8 = meta.shape
    half = 1 << bits - 1
    kept = _gather(q, nibbles).int() + half
    sliced = _slices(kept[..., 0] | kept[..., 1] << bits, chunks, group8, half | half << bits)
    per_word = SLICES // WORDS[bits]
    words = torch.zeros(out, chunks, WORDS[bits], group8, dtype=torch.int32, device=q.device)
    for index in range(SLICES):
        words[:, :, index // per_word] |= sliced[:, :, index] << 2 * bits * (index % per_word)
    return words


def unpack_nibbles(layout: TwoFour) -> Tensor:
    """int32 [out, in / 4]."""
    out, columns = layout.shape
    shifts = 4 * torch.arange(SLICES, dtype=torch.int32, device=layout.device)[:, None]
    return (layout.meta[:, :, None] >> shifts & 15).reshape(out, -1)[:, : columns // 4]


def unpack_pairs(layout: TwoFour) -> Tensor:
    """The kept values [out, in / 4, 2]: int16 bits of 16-bit values, or q int8."""
    out, columns = layout.shape
    if layout.bits == 16:
        return layout.values[..., None].view(torch.int16)
    bits, per_word = layout.bits, SLICES // WORDS[layout.bits]
    shifts = bits * torch.arange(2 * per_word, dtype=torch.int32, device=layout.device)
    parts = (layout.values[..., None] >> shifts & (1 << bits) - 1) - (1 << bits - 1)
    parts = parts.view(out, layout.chunks, WORDS[bits], layout.group8, per_word, 2).transpose(3, 4)
    return parts.reshape(out, -1, 2)[:, : columns // 4].to(torch.int8)


def _quantise(weight: Tensor, bits: int, name: str) -> tuple[Tensor, Tensor]:
    """weight float32 [out, in] -> q int8 [out, in], scales float32 [out] (8 bits) or [out, ceil(in / 128)] (4 bits)."""
    if not bool(torch.isfinite(weight).all()):
        raise InputError(f"{name}: NaN and infinite weights cannot be rounded to {bits} bits; repair the checkpoint")
    largest = _LARGEST[bits]
    size, columns = weight.abs(), weight.shape[1]
    if bits == 4:
        size = torch.nn.functional.pad(size, (0, scale_groups(columns) * GROUP - columns))
    scales = (size.amax(1) if bits == 8 else size.reshape(len(size), -1, GROUP).amax(2)) / largest
    scales = torch.where(scales >= torch.finfo(torch.float32).tiny, scales, 0.0)  # a subnormal divisor overflows
    steps = spread_scales(torch.where(scales > 0, scales, 1.0), columns)
    return (weight / steps).round().clamp(-largest, largest).to(torch.int8), scales


def _relative_error(weight: Tensor, q: Tensor, scales: Tensor) -> float:
    """||stored - W|| / ||W||, 0 for a matrix of zeros."""
    size = float(weight.double().norm())
    stored = q.float() * spread_scales(scales, weight.shape[1])
    return float((stored.double() - weight.double()).norm()) / size if size else 0.0
