"""The Triton kernel of `gemv`, loaded only when something is launched: y = W x for a TwoFour W and one row of x.

A tile is [ROWS, LANES]: a lane takes one group of every slice, LANES / G8 chunks at a time, and 128 lanes are one
warp's 16-byte reads. PAIR tiles of rows share each read of x. What it costs to decode decides the speed of 8 and 4
bits, so:

* a byte permute (`prmt`) picks both kept x of a group from its 64 bits; two of its selectors are made at a time;
* an integer becomes a float by placing it in the mantissa of a power of two and subtracting: no conversion;
* weights are asked for before waiting for the kernel that makes x (PDL: programmatic dependent launch).

ASM false writes the same in plain arithmetic for Triton's interpreter, which knows no PTX. Sums are float32.
"""

import triton
import triton.language as tl


@triton.jit
def select(selector, low, high, ASM: tl.constexpr):
    """Both x of a group whose four 16-bit x are the halves of `low` and `high`; `selector` as PTX `prmt` reads it."""
    if ASM:
        return tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [low, high, selector], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        first, second = (selector >> 1) & 3, (selector >> 9) & 3
        one = (tl.where(first < 2, low, high) >> ((first & 1) * 16)) & 0xFFFF
        two = tl.where(second < 2, low, high) >> ((second & 1) * 16)
        return one | (two << 16)


@triton.jit
def half(word, part: tl.constexpr, BF16: tl.constexpr):
    """The low (part 0) or high 16-bit float of a word as float32."""
    if BF16:
        return ((word << 16) if part == 0 else (word & -65536)).to(tl.float32, bitcast=True)
    else:
        return ((word >> 16) if part else word).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def whole(word, exponent, place: tl.constexpr, BITS: tl.constexpr, ASM: tl.constexpr):
    """Integer number `place` of a word, without its offset, as float32, exact; `exponent` is the bits of 2^23.

    8 bits: the byte below 0x4B0000 is 2^23 + u. 4 bits: u at bit b of the mantissa of 2^(23 - b) is 2^(23 - b) + u,
    so that one instruction does it and only nibbles that reach past bit 22 are moved first.
    """
    if BITS == 8:
        if ASM:
            bits = tl.inline_asm_elementwise(
                f"prmt.b32 $0, $1, $2, {0x7650 + place};",
                "=r,r,r",
                [word, exponent],
                dtype=tl.int32,
                is_pure=True,
                pack=1,
            )
        else:
            bits = ((word >> (8 * place)) & 255) | exponent
        return bits.to(tl.float32, bitcast=True) - (8388608.0 + 128.0)
    elif place < 5:
        bits = (word & (15 << (4 * place))) | (exponent - ((4 * place) << 23))
        return bits.to(tl.float32, bitcast=True) - ((1 << (23 - 4 * place)) + 8.0)
    else:
        bits = ((word >> 12) & (15 << (4 * place - 12))) | (exponent - ((4 * place - 12) << 23))
        return bits.to(tl.float32, bitcast=True) - ((1 << (35 - 4 * place)) + 8.0)


@triton.jit
def selectors(word, j: tl.constexpr):
    """The `prmt` selectors of slices j (low half) and j + 4 (high half): bytes 2 i0, 2 i0 + 1, 2 i1, 2 i1 + 1."""
    nibbles = (word >> (4 * j)) & 0x000F000F
    apart = (nibbles * 0x41) & 0x03030303
    return apart * 0x22 + 0x10101010


@triton.jit
def group_of(step, s, lane, G8: tl.constexpr, LANES: tl.constexpr):
    """The group that each lane takes of slice s of its chunk."""
    return ((step * (LANES // G8) + lane // G8) * 8 + s) * G8 + lane % G8


@triton.jit
def read_words(
    values, meta, scales, step, lane,
    LIVE: tl.constexpr, WHOLE: tl.constexpr, GROUPS: tl.constexpr, G8: tl.constexpr, ROWS: tl.constexpr,
    LANES: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """All that a step reads of W: the index word, the value words (8, 4 or 2), for 4 bits the scales of LIVE slices.

    WHOLE: no lane is past the matrix.
    """
    chunk = step * (LANES // G8) + lane // G8
    words = (read(meta + step * LANES + lane, chunk * 8 * G8 < GROUPS, WHOLE),)
    for h in tl.static_range(BITS // 2):
        group = group_of(step, h * 16 // BITS, lane, G8, LANES)
        at = values + (group if BITS == 16 else (chunk * (BITS // 2) + h) * G8 + lane % G8)
        if BITS < 16 or h < LIVE:  # the scales come after two value words
            words += (read(at, group < GROUPS, WHOLE),)  # type: ignore[assignment]
    if BITS == 4:
        for s in tl.static_range(LIVE):
            words += (read_scales(scales, step, s, WHOLE, GROUPS, G8, ROWS, LANES),)  # type: ignore[assignment]
    return words


@triton.jit
def read(at, live, WHOLE: tl.constexpr):
    if WHOLE:
        return tl.load(at, eviction_policy="evict_first")
    else:
        return tl.load(at, mask=live, other=0, eviction_policy="evict_first")


@triton.jit
def read_scales(
    scales, step, s: tl.constexpr,
    WHOLE: tl.constexpr, GROUPS: tl.constexpr, G8: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """float32 [ROWS, LANES]: the scale of every lane's group in slice s; four neighbours share one read."""
    group = group_of(step, s, tl.arange(0, LANES // 4)[None, :] * 4, G8, LANES)
    scale = read(scales + group // 32, group < GROUPS, WHOLE)
    wide = tl.broadcast_to(scale.to(tl.float32)[:, :, None], (ROWS, LANES // 4, 4))
    return tl.reshape(wide, (ROWS, LANES))


@triton.jit
def read_x(
    x, step, s: tl.constexpr, lane,
    WHOLE: tl.constexpr, GROUPS: tl.constexpr, G8: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """int32 [ROWS, LANES] twice: columns 0 and 1, and 2 and 3, of each lane's group of slice s."""
    # in the shape, and so in the layout, of the weights: nothing moves between threads
    group = tl.broadcast_to(group_of(step, s, lane, G8, LANES), (ROWS, LANES))
    if WHOLE:
        four = tl.load(x + group)
    else:
        four = tl.load(x + group, mask=group < GROUPS, other=0)
    return four.to(tl.int32), (four >> 32).to(tl.int32)


@triton.jit
def add_slice(
    acc, both, words, exponent, low, high, s: tl.constexpr, BITS: tl.constexpr, BF16: tl.constexpr, ASM: tl.constexpr
):  # fmt: skip
    """acc + the products of slice s, whose selector is the low (s < 4) or high half of `both`."""
    picked = select(both >> (16 * (s // 4)), low, high, ASM)
    x0, x1 = half(picked, 0, BF16), half(picked, 1, BF16)
    word = words[1 + s * BITS // 16]
    if BITS == 16:
        return acc + half(word, 0, BF16) * x0 + half(word, 1, BF16) * x1
    else:
        w0 = whole(word, exponent, 2 * (s % (16 // BITS)), BITS, ASM)
        w1 = whole(word, exponent, 2 * (s % (16 // BITS)) + 1, BITS, ASM)
        if BITS == 8:
            return acc + w0 * x0 + w1 * x1
        else:
            return acc + words[3 + s] * (w0 * x0 + w1 * x1)


@triton.jit
def take_step(
    acc0, acc1, x, values0, values1, meta0, meta1, scales0, scales1, exponent, step, lane,
    LIVE: tl.constexpr, WHOLE: tl.constexpr, WAIT: tl.constexpr, GROUPS: tl.constexpr, G8: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, PAIR: tl.constexpr, BITS: tl.constexpr, BF16: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """The sums of both tiles of rows after the first LIVE slices of one step's chunks, slices j and j + 4 together."""
    words0 = read_words(values0, meta0, scales0, step, lane, LIVE, WHOLE, GROUPS, G8, ROWS, LANES, BITS)
    words1 = words0
    if PAIR == 2:
        words1 = read_words(values1, meta1, scales1, step, lane, LIVE, WHOLE, GROUPS, G8, ROWS, LANES, BITS)
    if WAIT:
        tl.extra.cuda.gdc_wait()  # what follows reads x, which the kernel before may still be writing
    both0, both1 = selectors(words0[0], 0), selectors(words1[0], 0)
    for n in tl.static_range(8):
        if n % 2 == 0:
            both0, both1 = selectors(words0[0], n // 2), selectors(words1[0], n // 2)
        if n // 2 + 4 * (n % 2) < LIVE:
            low, high = read_x(x, step, n // 2 + 4 * (n % 2), lane, WHOLE, GROUPS, G8, ROWS, LANES)
            acc0 = add_slice(acc0, both0, words0, exponent, low, high, n // 2 + 4 * (n % 2), BITS, BF16, ASM)
            if PAIR == 2:
                acc1 = add_slice(acc1, both1, words1, exponent, low, high, n // 2 + 4 * (n % 2), BITS, BF16, ASM)
    return acc0, acc1


@triton.jit
def finish(y, row, out, residual, live, RESIDUAL: tl.constexpr):
    """Store y float32 [ROWS] (+ residual) in the dtype of out."""
    if RESIDUAL:
        y += tl.load(residual + row, mask=live, other=0.0).to(tl.float32)
    tl.store(out + row, y.to(out.dtype.element_ty), mask=live)


@triton.jit
def two_four_gemv_kernel(
    x, values, meta, scales, residual, factor, out, count, exponent,
    GROUPS: tl.constexpr, G8: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, PAIR: tl.constexpr,
    BITS: tl.constexpr, BF16: tl.constexpr, SILU: tl.constexpr, RESIDUAL: tl.constexpr, FACTOR: tl.constexpr,
    ASM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out [count] = W x with x as int64 [GROUPS]; SILU: silu(W x) * (W' x), W' the `count` rows below those of W."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    lane = tl.arange(0, LANES)[None, :]
    first = tl.program_id(0) * (ROWS if SILU else ROWS * PAIR) + tl.arange(0, ROWS)
    second = first + (count if SILU else ROWS)
    row0 = tl.minimum(first, count - 1).to(tl.int64)
    row1 = row0 + count if SILU else tl.minimum(second, count - 1).to(tl.int64)
    CHUNKS: tl.constexpr = (GROUPS + 8 * G8 - 1) // (8 * G8)
    STEPS: tl.constexpr = (GROUPS + 8 * LANES - 1) // (8 * LANES)
    WHOLE: tl.constexpr = GROUPS // (8 * LANES)  # steps in which no lane is past the matrix
    REST: tl.constexpr = GROUPS - 8 * LANES * (STEPS - 1)  # groups of the last step
    LIVE: tl.constexpr = 8 if REST > 8 * G8 else (REST + G8 - 1) // G8  # its slices
    WIDTH: tl.constexpr = GROUPS if BITS == 16 else CHUNKS * G8 * (BITS // 2)
    SCALES: tl.constexpr = (GROUPS + 31) // 32 if BITS == 4 else 0
    values0, meta0, scales0 = (
        values + row0[:, None] * WIDTH,
        meta + row0[:, None] * (CHUNKS * G8),
        scales + row0[:, None] * SCALES,
    )
    values1, meta1, scales1 = (
        values + row1[:, None] * WIDTH,
        meta + row1[:, None] * (CHUNKS * G8),
        scales + row1[:, None] * SCALES,
    )
    acc0 = tl.zeros((ROWS, LANES), tl.float32)
    acc1 = tl.zeros((ROWS, LANES), tl.float32)
    acc0, acc1 = take_step(
        acc0, acc1, x, values0, values1, meta0, meta1, scales0, scales1, exponent, 0, lane,
        8 if WHOLE > 0 else LIVE, WHOLE > 0, PDL, GROUPS, G8, ROWS, LANES, PAIR, BITS, BF16, ASM,
    )  # fmt: skip
    for step in range(1, WHOLE):
        acc0, acc1 = take_step(
            acc0, acc1, x, values0, values1, meta0, meta1, scales0, scales1, exponent, step, lane,
            8, True, False, GROUPS, G8, ROWS, LANES, PAIR, BITS, BF16, ASM,
        )  # fmt: skip
    if WHOLE > 0 and STEPS != WHOLE:
        acc0, acc1 = take_step(
            acc0, acc1, x, values0, values1, meta0, meta1, scales0, scales1, exponent, WHOLE, lane,
            LIVE, False, False, GROUPS, G8, ROWS, LANES, PAIR, BITS, BF16, ASM,
        )  # fmt: skip
    y0, y1 = tl.sum(acc0, 1), tl.sum(acc1, 1)
    if BITS == 8:
        y0, y1 = y0 * tl.load(scales + row0), y1 * tl.load(scales + row1)
    if FACTOR:
        by = tl.load(factor)
        y0, y1 = y0 * by, y1 * by
    if SILU:
        y0 = y0 / (1.0 + tl.exp(-y0)) * y1
    finish(y0, first, out, residual, first < count, RESIDUAL)
    if PAIR == 2 and not SILU:
        finish(y1, second, out, residual, second < count, RESIDUAL)
