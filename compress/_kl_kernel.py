"""The Triton kernels of `kl`, loaded only when something is launched. A program holds one position; it reads both logits once.

Over chunks of the vocabulary, with w the reference's logits and o the others':

    top = max w,  total = sum exp(w - top),  apart = sum exp(w - top) (w - o);  sums so far are rescaled when top rises
    KL = apart / total - log_sum(w) + log_sum(o),  log_sum = top + log total
"""

import triton
import triton.language as tl


@triton.jit
def finite(value):
    """Zero in the place of -inf: the largest of a chunk of which nothing has a probability."""
    return tl.where(value == -float("inf"), 0.0, value)


@triton.jit
def rows_kl(theirs, ours, kl, sums, log_sums, width, BLOCK: tl.constexpr):
    """theirs, ours [rows, width] contiguous -> kl, sums (of theirs), log_sums (of ours) [rows] float32."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    low = -float("inf")
    top, total, apart = low, 0.0, 0.0
    top_o, total_o = low, 0.0
    for start in range(0, width, BLOCK):
        here = start + column < width
        w = tl.load(theirs + row * width + start + column, mask=here, other=low).to(tl.float32)
        o = tl.load(ours + row * width + start + column, mask=here, other=low).to(tl.float32)
        higher, higher_o = tl.maximum(top, tl.max(w, axis=0)), tl.maximum(top_o, tl.max(o, axis=0))
        share = tl.exp(w - finite(higher))
        before, before_o = tl.exp(top - finite(higher)), tl.exp(top_o - finite(higher_o))
        total = total * before + tl.sum(share, axis=0)
        live = share > 0.0  # what has no share costs nothing, whatever the others give it
        apart = apart * before + tl.sum(share * (tl.where(live, w, 0.0) - tl.where(live, o, 0.0)), axis=0)
        total_o = total_o * before_o + tl.sum(tl.exp(o - finite(higher_o)), axis=0)
        top, top_o = higher, higher_o
    first, second = top + tl.log(total), top_o + tl.log(total_o)
    tl.store(kl + row, apart / total - first + second)
    tl.store(sums + row, first)
    tl.store(log_sums + row, second)


@triton.jit
def rows_gradient(theirs, ours, sums, log_sums, factor, gradient, width, BLOCK: tl.constexpr):
    """gradient [rows, width] = factor[0] * (softmax(ours) - softmax(theirs)), given what `rows_kl` found."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = at < width
    w = tl.load(theirs + row * width + at, mask=here, other=0.0).to(tl.float32)
    o = tl.load(ours + row * width + at, mask=here, other=0.0).to(tl.float32)
    more = tl.exp(o - tl.load(log_sums + row)) - tl.exp(w - tl.load(sums + row))
    tl.store(gradient + row * width + at, (tl.load(factor) * more).to(gradient.dtype.element_ty), mask=here)
