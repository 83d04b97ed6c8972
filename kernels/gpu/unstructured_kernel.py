"""The Triton kernel of `unstructured`, loaded only when something is launched.

A lane walks the groups of its row's segment: a few words of gaps and of values, all coalesced, asked for one group ahead.
Each entry moves the lane's column on by its gap and multiplies one weight by one element of x. Lanes of a warp hold
neighbouring rows at about the same column, so their reads of x fall into a few lines of the L1 cache. Sums are float32.
"""

import triton
import triton.language as tl


@triton.jit
def weight_of(word, part: tl.constexpr, KIND: tl.constexpr):
    """Value `part` of a word -> float32. KIND is "bf16", "fp16" or "int8" (a word of int8 has its sign bits turned)."""
    if KIND == "int8":
        # byte q + 128 below the exponent of 2^23: one subtraction instead of a slow conversion
        return (((word >> (8 * part)) & 255) | 0x4B000000).to(tl.float32, bitcast=True) - 8388736.0
    elif KIND == "fp16":
        return (word >> (16 * part)).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    elif part == 0:
        return (word << 16).to(tl.float32, bitcast=True)
    else:
        return (word & -65536).to(tl.float32, bitcast=True)


@triton.jit
def read_group(values, gaps, width, live, GAP_WORDS: tl.constexpr, VALUE_WORDS: tl.constexpr):
    """The words of one group of every live lane, 0 elsewhere: gap words, then value words, `width` apart."""
    words = ()
    for n in tl.static_range(GAP_WORDS):
        words += (tl.load(gaps + n * width, mask=live, other=0, eviction_policy="evict_first"),)  # type: ignore[assignment]
    for n in tl.static_range(VALUE_WORDS):
        words += (tl.load(values + n * width, mask=live, other=0, eviction_policy="evict_first"),)  # type: ignore[assignment]
    return words


@triton.jit
def walk_group(acc, offset, words, x, GAP_BITS: tl.constexpr, GAP_WORDS: tl.constexpr, KIND: tl.constexpr):
    """One group of every lane: acc [lanes] and offset [lanes], bytes from the beginning of x's row, after it."""
    each: tl.constexpr = 32 // GAP_BITS
    a_word: tl.constexpr = 4 if KIND == "int8" else 2
    largest: tl.constexpr = (2 << GAP_BITS) - 2
    row = x.to(tl.pointer_type(tl.int8), bitcast=True)
    for n in tl.static_range(GAP_WORDS * each):
        gap_word = words[n // each]
        word = words[GAP_WORDS + n // a_word]
        if KIND == "int8":
            word = word ^ -2139062144  # 0x80808080
        # twice the gap: an element of x has two bytes
        if n % each == 0:
            offset += (gap_word << 1) & largest
        else:
            offset += (gap_word >> (GAP_BITS * (n % each) - 1)) & largest
        at = (row + offset.to(tl.uint32, bitcast=True).to(tl.uint64)).to(x.dtype, bitcast=True)
        acc += weight_of(word, n % a_word, KIND) * tl.load(at).to(tl.float32)
    return acc, offset


@triton.jit
def gemv(
    x, values, gaps, starts, steps, order, scales, y, M, out, columns,
    ROWS: tl.constexpr, SEGMENTS: tl.constexpr, GAP_BITS: tl.constexpr, GAP_WORDS: tl.constexpr,
    VALUE_WORDS: tl.constexpr, KIND: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y [M, out] = x [M, columns] @ W.T: one slice of W and one row of x a program, a slice's programs side by side."""
    lanes: tl.constexpr = ROWS * SEGMENTS
    piece = tl.program_id(0) // M
    m = (tl.program_id(0) % M).to(tl.int64)
    lane = tl.arange(0, lanes)
    before = tl.load(steps + piece)
    groups = tl.load(steps + piece + 1) - before
    column = tl.load(starts + piece * lanes + lane).to(tl.int32)
    if starts.dtype.element_ty == tl.int16:
        column = column & 0xFFFF
    offset = column * 2
    row = tl.load(order + piece * ROWS + tl.arange(0, ROWS))
    values += before.to(tl.int64) * (ROWS * VALUE_WORDS) + lane
    gaps += before.to(tl.int64) * (ROWS * GAP_WORDS) + lane
    x += m * columns
    whole = groups // SEGMENTS
    rest = (groups % SEGMENTS) * ROWS
    acc = tl.zeros((lanes,), tl.float32)
    words = read_group(values, gaps, lanes, lane < whole * lanes, GAP_WORDS, VALUE_WORDS)
    if PDL:  # matrices are constant, but x may be the result of the kernel before
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    for i in tl.range(0, whole):
        values += VALUE_WORDS * lanes
        gaps += GAP_WORDS * lanes
        following = read_group(values, gaps, lanes, lane < (whole - 1 - i) * lanes, GAP_WORDS, VALUE_WORDS)
        acc, offset = walk_group(acc, offset, words, x, GAP_BITS, GAP_WORDS, KIND)
        words = following
    if rest > 0:
        words = read_group(values, gaps, rest, lane < rest, GAP_WORDS, VALUE_WORDS)
        acc, offset = walk_group(acc, offset, words, x, GAP_BITS, GAP_WORDS, KIND)
    total = tl.sum(tl.reshape(acc, (SEGMENTS, ROWS)), 0)
    if KIND == "int8":
        total = total * tl.load(scales + row, mask=row < out, other=0.0)
    tl.store(y + m * out + row, total.to(y.dtype.element_ty), mask=row < out)
