"""The Triton kernel of `_columns`, loaded only when something is launched.

A program holds a few rows of W over all columns of a block, in registers, and walks the columns alone: rows of W never need
each other inside a block. One launch stands for the five a column that the plain walk takes.
"""

import triton
import triton.language as tl

# 1.5 * 2^23: adding it to |x| < 2^22 and taking it away leaves the nearest integer, ties to even
ROUND = tl.constexpr(12582912.0)


@triton.jit
def chosen(tile, index, place):
    """Row `place` of a tile [columns, rows] -> [rows]."""
    return tl.sum(tl.where(index == place, tile, 0.0), axis=0)


@triton.jit
def groups_lowest(scores, gone, index, first, KEEP: tl.constexpr, GROUP: tl.constexpr):
    """`gone` [columns, rows] with 1 at the lowest GROUP - KEEP scores of the group that begins at row `first`; ties: the earlier."""
    inside = (index >= first) & (index < first + GROUP)
    for n in tl.static_range(GROUP):
        score = chosen(scores, index, first + n)[None, :]
        before = (scores < score) | ((scores == score) & (index < first + n))
        rank = tl.sum((before & inside).to(tl.int32), axis=0)[None, :]
        gone = tl.where((index == first + n) & (rank < GROUP - KEEP), 1.0, gone)
    return gone


@triton.jit
def walk(
    weights, gone, factor, diagonal, dead, steps, lost, rows, columns, largest,
    KEEP: tl.constexpr, GROUP: tl.constexpr, ROUNDS: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """weights, gone, lost [columns, rows] contiguous; factor [columns, columns]: U with every row divided by its diagonal.

    GROUP > 0: N:M, `gone` then holds what goes beside it. ROUNDS: what is kept is rounded to integers, at most `largest`,
    times steps [rows].
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    index = column[:, None]
    here = (index < columns) & (row < rows)[None, :]
    at = index * rows + row[None, :]
    W = tl.load(weights + at, mask=here, other=0.0)
    G = tl.load(gone + at, mask=here, other=0).to(tl.float32)
    if GROUP > 0:
        price = tl.load(diagonal + column, mask=column < columns, other=1.0)[:, None]
        silent = tl.load(dead + column, mask=column < columns, other=0)[:, None] != 0
        held = G != 0.0
    if ROUNDS:
        step = tl.load(steps + row, mask=row < rows, other=1.0)
        divisor = tl.where(step > 0.0, step, 1.0)
    for j in range(columns):
        if GROUP > 0:
            if j % GROUP == 0:
                ratio = tl.div_rn(W, price + tl.zeros_like(W))
                scores = tl.where(held, -2.0, tl.where(silent, -1.0, ratio * ratio))
                G = groups_lowest(scores, G, index, j, KEEP, GROUP)
        now = chosen(W, index, j)
        kept = tl.where(chosen(G, index, j) > 0.0, 0.0, now)
        if ROUNDS:
            whole = tl.minimum(tl.maximum(tl.div_rn(kept, divisor), -largest), largest)
            kept = ((whole + ROUND) - ROUND) * step
        loss = now - kept
        tl.store(lost + j * rows + row, loss, mask=row < rows)
        share = tl.load(factor + j * columns + column, mask=column < columns, other=0.0)
        W = tl.where(index == j, kept[None, :], tl.where(index > j, W - share[:, None] * loss[None, :], W))
    tl.store(weights + at, W, mask=here)
