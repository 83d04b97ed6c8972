# mypy: disable-error-code="untyped-decorator, no-untyped-def"
"""Triton kernels on TwoFour for more than one row of x, where the tile kernel (batch.py) cannot run, and for prefill.

Loaded only by `expand.py` and `batch_dot.py` when they launch.
"""

import triton
import triton.language as tl


@triton.jit
def _stored(
    values,
    row,
    slice_index,
    lane,
    live,
    scales,
    scale_stride,
    BITS: tl.constexpr,
    G8: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Both kept values of 8 or 4 bits of groups slice_index * G8 + lane of a row, as float32; 4 bits with their scales."""
    per_word: tl.constexpr = 16 // BITS
    words_at = values + (row * CHUNKS + slice_index // 8) * (8 // per_word) * G8
    word = tl.load(words_at + (slice_index % 8) // per_word * G8 + lane, mask=live, other=0)
    word = word >> (2 * BITS * (slice_index % per_word))
    top: tl.constexpr = (1 << BITS) - 1
    half: tl.constexpr = 1 << (BITS - 1)
    first = ((word & top) - half).to(tl.float32)
    second = (((word >> BITS) & top) - half).to(tl.float32)
    if BITS == 4:
        scale = tl.load(scales + row * scale_stride + (slice_index * G8 + lane) // 32, mask=live, other=0.0)
        first, second = first * scale.to(tl.float32), second * scale.to(tl.float32)
    return first, second


@triton.jit
def expand_kernel(
    values, meta, scales, out, groups, scale_stride, BITS: tl.constexpr, G8: tl.constexpr, CHUNKS: tl.constexpr
) -> None:
    """One row and chunk a program: out [rows, 4 groups], dense, in its own dtype."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    lane = tl.arange(0, G8)
    words = tl.load(meta + (row * CHUNKS + chunk) * G8 + lane)
    dtype: tl.constexpr = out.dtype.element_ty
    for j in tl.static_range(8):
        index = chunk * 8 + j
        group = index * G8 + lane
        live = group < groups
        if BITS == 16:
            pair = tl.load(values + row * groups + group, mask=live, other=0)
            first = (pair & 0xFFFF).to(tl.int16).to(dtype, bitcast=True)
            second = (pair >> 16).to(tl.int16).to(dtype, bitcast=True)
        else:
            wide0, wide1 = _stored(values, row, index, lane, live, scales, scale_stride, BITS, G8, CHUNKS)
            if BITS == 8:
                scale = tl.load(scales + row)
                wide0, wide1 = wide0 * scale, wide1 * scale
            first, second = wide0.to(dtype), wide1.to(dtype)
        nibble = words >> (4 * j)
        at0, at1 = nibble & 3, (nibble >> 2) & 3
        none = tl.zeros((G8,), dtype)
        even = tl.interleave(
            tl.where(at0 == 0, first, tl.where(at1 == 0, second, none)),
            tl.where(at0 == 2, first, tl.where(at1 == 2, second, none)),
        )
        odd = tl.interleave(
            tl.where(at0 == 1, first, tl.where(at1 == 1, second, none)),
            tl.where(at0 == 3, first, tl.where(at1 == 3, second, none)),
        )
        column = index * G8 * 4 + tl.arange(0, 4 * G8)
        tl.store(out + row * groups * 4 + column, tl.interleave(even, odd), mask=column < groups * 4)


@triton.jit
def _column(at0, at1, first, second, none, P: tl.constexpr):
    return tl.where(at0 == P, first, tl.where(at1 == P, second, none))


@triton.jit
def dot_kernel(
    x, values, meta, scales, out, m, n, groups, x_stride, scale_stride,
    BITS: tl.constexpr, G8: tl.constexpr, CHUNKS: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
) -> None:  # fmt: skip
    """BN rows of W a program: out [m, n] = x [m, 4 groups] W^T; a column of each group at a time goes to tl.dot."""
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = (rows < n)[:, None]
    row = rows.to(tl.int64)[:, None]
    lane = tl.arange(0, G8)
    xs = tl.arange(0, BM)
    dtype: tl.constexpr = x.dtype.element_ty
    sums = tl.zeros((BN, BM), tl.float32)
    for index in range(CHUNKS * 8):
        group = index * G8 + lane
        live = (group < groups)[None, :] & inside
        words = tl.load(meta + (row * CHUNKS + index // 8) * G8 + lane[None, :], mask=inside, other=0)
        if BITS == 16:
            pair = tl.load(values + row * groups + group[None, :], mask=live, other=0)
            first = (pair & 0xFFFF).to(tl.int16).to(dtype, bitcast=True)
            second = (pair >> 16).to(tl.int16).to(dtype, bitcast=True)
        else:
            wide0, wide1 = _stored(values, row, index, lane[None, :], live, scales, scale_stride, BITS, G8, CHUNKS)
            first, second = wide0.to(dtype), wide1.to(dtype)
        nibble = words >> (4 * (index % 8))
        at0, at1 = nibble & 3, (nibble >> 2) & 3
        none = tl.zeros((BN, G8), dtype)
        columns = index * G8 * 4 + tl.arange(0, 4 * G8)
        seen = (xs < m)[:, None] & (columns < 4 * groups)[None, :]
        block = tl.load(x + xs.to(tl.int64)[:, None] * x_stride + columns[None, :], mask=seen, other=0.0)
        even, odd = tl.split(tl.reshape(block, (BM, G8, 2, 2)))
        x0, x2 = tl.split(even)
        x1, x3 = tl.split(odd)
        sums = tl.dot(_column(at0, at1, first, second, none, 0), tl.trans(x0), sums)
        sums = tl.dot(_column(at0, at1, first, second, none, 1), tl.trans(x1), sums)
        sums = tl.dot(_column(at0, at1, first, second, none, 2), tl.trans(x2), sums)
        sums = tl.dot(_column(at0, at1, first, second, none, 3), tl.trans(x3), sums)
    if BITS == 8:
        sums *= tl.load(scales + rows, mask=rows < n, other=0.0)[:, None]
    tl.store(out + xs.to(tl.int64)[None, :] * n + rows[:, None], sums.to(dtype), mask=inside & (xs < m)[None, :])
