"""The Triton kernel of `unstructured`, loaded only when something is launched.

A lane walks the groups of its row's segment: one word of gaps, a few words of values, all coalesced. Each entry moves
the lane's column on by its gap and multiplies one weight by one element of x. Lanes of a warp hold neighbouring rows
at about the same column, so their reads of x fall into a few lines of the L1 cache. Sums are float32.
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
def stored(word, part: tl.constexpr, KIND: tl.constexpr):
    """True where value `part` of a word is a weight, not a pad."""
    if KIND == "int8":
        return ((word >> (8 * part)) & 255) != 128
    elif part == 0:
        return (word & 0xFFFF) != 0
    else:
        return (word & -65536) != 0


@triton.jit
def read_group(values, gaps, width, live, GAP_WORDS: tl.constexpr, VALUE_WORDS: tl.constexpr, TAIL: tl.constexpr):
    """The words of one group of every lane: gap words, then value words. Words of a lane are `width` apart."""
    words = ()
    for n in tl.static_range(GAP_WORDS):
        words += (read_word(gaps + n * width, live, TAIL),)
    for n in tl.static_range(VALUE_WORDS):
        words += (read_word(values + n * width, live, TAIL),)
    return words


@triton.jit
def read_word(at, live, TAIL: tl.constexpr):
    if TAIL:
        return tl.load(at, mask=live, other=0, eviction_policy="evict_first")
    else:
        return tl.load(at, eviction_policy="evict_first")


@triton.jit
def walk_group(
    acc, offset, words, x, x_live,
    GAP_BITS: tl.constexpr, GAP_WORDS: tl.constexpr, KIND: tl.constexpr, GUARD: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """One group of every lane: acc [m, lanes] and offset [lanes], bytes from the beginning of x's row, after it."""
    each: tl.constexpr = 32 // GAP_BITS
    a_word: tl.constexpr = 4 if KIND == "int8" else 2
    largest: tl.constexpr = (2 << GAP_BITS) - 2
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
        at = (x + offset.to(tl.uint32, bitcast=True).to(tl.uint64)[None, :]).to(tl.pointer_type(HALF), bitcast=True)
        if GUARD:
            kept = stored(word, n % a_word, KIND)[None, :]
            element = tl.load(at, mask=kept if x_live is None else x_live & kept, other=0.0)
        else:
            element = tl.load(at, mask=x_live, other=None if x_live is None else 0.0)
        acc += weight_of(word, n % a_word, KIND)[None, :] * element.to(tl.float32)
    return acc, offset


@triton.jit
def fetch(begin, size, lane, WARPS: tl.constexpr):
    """Ask for `size` bytes from `begin` on into L2: one instruction a warp, which waits for nothing."""
    part = (size + WARPS * 16 - 1) // (WARPS * 16) * 16
    here = tl.where(lane % 32 == 0, tl.minimum(size - lane // 32 * part, part), 0)
    tl.inline_asm_elementwise(
        """{
        .reg .pred wanted;
        setp.gt.s32 wanted, $2, 0;
        @wanted cp.async.bulk.prefetch.L2.global [$1], $2;
        mov.u32 $0, 0;
        }""",
        "=r,l,r",
        [begin.to(tl.int64) + lane // 32 * part, here],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def gemv(
    x, values, gaps, starts, steps, order, scales, y, M, out, columns,
    MP: tl.constexpr, ROWS: tl.constexpr, SEGMENTS: tl.constexpr, GAP_BITS: tl.constexpr, GAP_WORDS: tl.constexpr,
    VALUE_WORDS: tl.constexpr, KIND: tl.constexpr, AHEAD: tl.constexpr, GUARD: tl.constexpr, FETCH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y [M, out] = x [M, columns] @ W.T, one slice of rows and MP rows of x a program."""
    lanes: tl.constexpr = ROWS * SEGMENTS
    warps: tl.constexpr = lanes // 32 if lanes >= 32 else 1
    piece = tl.program_id(0)
    lane = tl.arange(0, lanes)
    m = tl.program_id(1) * MP + tl.arange(0, MP)
    before = tl.load(steps + piece)
    groups = tl.load(steps + piece + 1) - before
    column = tl.load(starts + piece * lanes + lane).to(tl.int32)
    if starts.dtype.element_ty == tl.int16:
        column = column & 0xFFFF
    offset = column * 2
    row = tl.load(order + piece * ROWS + tl.arange(0, ROWS))
    values += before.to(tl.int64) * (ROWS * VALUE_WORDS)
    gaps += before.to(tl.int64) * (ROWS * GAP_WORDS)
    if FETCH:
        fetch(values, groups * (ROWS * VALUE_WORDS * 4), lane, warps)
        fetch(gaps, groups * (ROWS * GAP_WORDS * 4), lane, warps)
    values += lane
    gaps += lane
    x_row = (x + m.to(tl.int64)[:, None] * columns).to(tl.pointer_type(tl.int8), bitcast=True)
    x_live = None if MP == 1 else (m < M)[:, None]
    whole = groups // SEGMENTS
    rest = (groups % SEGMENTS) * ROWS
    acc = tl.zeros((MP, lanes), tl.float32)
    if AHEAD:
        words = read_group(values, gaps, lanes, lane < whole * lanes, GAP_WORDS, VALUE_WORDS, True)
    if PDL:  # matrices are constant, but x may be the result of the kernel before
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    for i in tl.range(0, whole):
        values += VALUE_WORDS * lanes
        gaps += GAP_WORDS * lanes
        if AHEAD:
            following = read_group(values, gaps, lanes, lane < (whole - 1 - i) * lanes, GAP_WORDS, VALUE_WORDS, True)
            acc, offset = walk_group(
                acc, offset, words, x_row, x_live, GAP_BITS, GAP_WORDS, KIND, GUARD, x.dtype.element_ty
            )
            words = following
        else:
            words = read_group(
                values - VALUE_WORDS * lanes, gaps - GAP_WORDS * lanes, lanes, None, GAP_WORDS, VALUE_WORDS, False
            )
            acc, offset = walk_group(
                acc, offset, words, x_row, x_live, GAP_BITS, GAP_WORDS, KIND, GUARD, x.dtype.element_ty
            )
    if rest > 0:
        words = read_group(values, gaps, rest, lane < rest, GAP_WORDS, VALUE_WORDS, True)
        acc, offset = walk_group(
            acc, offset, words, x_row, x_live, GAP_BITS, GAP_WORDS, KIND, GUARD, x.dtype.element_ty
        )
    total = tl.sum(tl.reshape(acc, (MP, SEGMENTS, ROWS)), 1)
    if KIND == "int8":
        total = total * tl.load(scales + row, mask=row < out, other=0.0)[None, :]
    at = y + m.to(tl.int64)[:, None] * out + row[None, :]
    tl.store(at, total.to(y.dtype.element_ty), mask=(m < M)[:, None] & (row < out)[None, :])
