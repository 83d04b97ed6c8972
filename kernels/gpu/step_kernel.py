"""The Triton kernels of a decode step that are not matrices. Loaded only by `step`, when a tensor is on a GPU.

Every kernel is launched with programmatic dependent launch on compute capability 9.0 and above (PDL): it lets the
next kernel start at once (`gdc_launch_dependents`: a matrix kernel then waits on the processors with its first
weights on the way), and waits for the one before (`gdc_wait`) before it reads anything that was computed.
What the loop never changes, norms and rotary tables, is read before that wait.

Sums are made in a fixed order, also where programs meet: the last one to arrive adds the others' parts by index.
"""

import triton
import triton.language as tl


@triton.jit
def _begin(PDL: tl.constexpr) -> None:
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def _norm(x, weight, out_at, live, width, eps) -> None:
    """Two roundings, as transformers makes them: the normed value, then its product with the weight."""
    wide = x.to(tl.float32)
    root = tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
    normed = (wide * root).to(x.dtype)
    tl.store(out_at, (weight.to(tl.float32) * normed.to(tl.float32)).to(x.dtype), mask=live)


@triton.jit
def embed_norm_kernel(
    table, tokens, tokens_stride, position, weight, residual, out, width, eps, BLOCK: tl.constexpr, PDL: tl.constexpr
) -> None:
    """One row a program: residual = table[tokens[row, position[row]]], out = its norm."""
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    live = i < width
    scale = tl.load(weight + i, mask=live, other=0.0)
    _begin(PDL)
    token = tl.load(tokens + row.to(tl.int64) * tokens_stride + tl.load(position + row))
    x = tl.load(table + token.to(tl.int64) * width + i, mask=live, other=0.0)
    tl.store(residual + row * width + i, x, mask=live)
    _norm(x, scale, out + row * width + i, live, width, eps)


@triton.jit
def add_norm_kernel(delta, residual, weight, out, width, eps, BLOCK: tl.constexpr, PDL: tl.constexpr) -> None:
    """One row a program: residual += delta, out = its norm."""
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    live = i < width
    scale = tl.load(weight + i, mask=live, other=0.0)
    _begin(PDL)
    before = tl.load(residual + row * width + i, mask=live, other=0.0)
    x = (before.to(tl.float32) + tl.load(delta + row * width + i, mask=live, other=0.0).to(tl.float32)).to(before.dtype)
    tl.store(residual + row * width + i, x, mask=live)
    _norm(x, scale, out + row * width + i, live, width, eps)


@triton.jit
def swiglu_kernel(gate_up, out, width, BLOCK: tl.constexpr, PDL: tl.constexpr) -> None:
    """Program (block of columns, row): out [row, width] = silu(gate) * up."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(1).to(tl.int64)
    live = i < width
    _begin(PDL)
    at = gate_up + row * 2 * width + i
    gate = tl.load(at, mask=live, other=0.0).to(tl.float32)
    up = tl.load(at + width, mask=live, other=0.0).to(tl.float32)
    product = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * width + i, product.to(out.dtype.element_ty), mask=live)


@triton.jit
def _turned(at, offsets, partner, cos, sin, mask):
    """Values at `at + offsets` turned by their angles; `sin` carries the sign of the half."""
    own = tl.load(at + offsets, mask=mask, other=0.0).to(tl.float32)
    other = tl.load(at + partner, mask=mask, other=0.0).to(tl.float32)
    return own * cos + other * sin


@triton.jit
def attend_kernel(
    qkv, keys, values, rotary, position, sums, tops, arrived, out, kv_heads, capacity, positions, pairs, scale,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
    SPLITS: tl.constexpr, PDL: tl.constexpr,
) -> None:  # fmt: skip
    """Program (row and key head, range of positions): turn, write the new key and value, attend, merge if last.

    GROUP query heads (GROUPS with padding) share the key head. `scale` includes log2(e), because exp2 is the
    instruction. The new position is taken from registers, so that no program waits for the one that writes it.
    """
    pair = tl.program_id(0)
    split = tl.program_id(1)
    row = pair // kv_heads
    head = pair % kv_heads
    d = tl.arange(0, WIDE)
    g = tl.arange(0, GROUPS)
    half: tl.constexpr = D // 2
    live = d < D
    partner = tl.where(d < half, d + half, d - half)
    own_base = pair.to(tl.int64) * capacity * D
    _begin(PDL)
    now = tl.load(position + row)
    cos = tl.load(rotary + now * half + d % half, mask=live, other=0.0)
    sin = tl.load(rotary + (positions + now) * half + d % half, mask=live, other=0.0)
    sin = tl.where(d < half, -sin, sin)
    start = qkv + row.to(tl.int64) * (GROUP + 2) * kv_heads * D
    q_at = start + (head * GROUP + g)[:, None] * D
    q = _turned(q_at, d[None, :], partner[None, :], cos[None, :], sin[None, :], (g < GROUP)[:, None] & live[None, :])
    q = q * scale
    k_now = _turned(start + (GROUP * kv_heads + head) * D, d, partner, cos, sin, live).to(keys.dtype.element_ty)
    v_now = tl.load(start + ((GROUP + 1) * kv_heads + head) * D + d, mask=live, other=0.0)
    v_now = v_now.to(values.dtype.element_ty)
    if split == 0:
        tl.store(keys + own_base + now * D + d, k_now, mask=live)
        tl.store(values + own_base + now * D + d, v_now, mask=live)

    share = tl.cdiv(tl.cdiv(now + 1, SPLITS), BLOCK) * BLOCK
    stop = tl.minimum(split * share + share, now + 1)
    top = tl.full((GROUPS,), float("-inf"), tl.float32)
    weight = tl.zeros((GROUPS,), tl.float32)
    total = tl.zeros((GROUPS, WIDE), tl.float32)
    for at in range(split * share, stop, BLOCK):
        p = at + tl.arange(0, BLOCK)
        old = (p < now)[:, None] & live[None, :]
        where = own_base + p[:, None] * D + d[None, :]
        k = tl.load(keys + where, mask=old, other=0.0)
        v = tl.load(values + where, mask=old, other=0.0)
        new = (p == now)[:, None]
        k = tl.where(new, k_now[None, :], k).to(tl.float32)
        v = tl.where(new, v_now[None, :], v).to(tl.float32)
        score = tl.sum(q[:, None, :] * k[None, :, :], 2)
        score = tl.where((p <= now)[None, :], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        e = tl.exp2(score - higher[:, None])
        fade = tl.exp2(top - higher)
        weight = weight * fade + tl.sum(e, 1)
        total = total * fade[:, None] + tl.sum(e[:, :, None] * v[None, :, :], 1)
        top = higher

    inside = (g < GROUP)[:, None] & live[None, :]
    out_at = out + (pair * GROUP + g)[:, None] * D + d[None, :]
    if SPLITS == 1:
        tl.store(out_at, (total / weight[:, None]).to(out.dtype.element_ty), mask=inside)
    else:
        part = (pair * SPLITS + split) * GROUP + g
        tl.store(sums + part[:, None] * D + d[None, :], total, mask=inside)
        tl.store(tops + part, top, mask=g < GROUP)
        tl.store(tops + pairs * SPLITS * GROUP + part, weight, mask=g < GROUP)
        if _is_last(arrived + pair, SPLITS):
            merged = _merge(sums, tops, pair, g, d, live, pairs, GROUP, GROUPS, D, WIDE, SPLITS)
            tl.store(out_at, merged.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _is_last(counter, PROGRAMS: tl.constexpr):
    """Whether all other programs of this counter have come past here; their stores can then be read. Resets it."""
    tl.debug_barrier()  # every thread's stores come before the one thread that counts
    last = tl.atomic_add(counter, 1, sem="acq_rel") == PROGRAMS - 1
    if last:
        tl.store(counter, 0)
    return last


@triton.jit
def _merge(
    sums, tops, pair, g, d, live, pairs,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """The splits' softmaxes as one, in the order of positions -> [GROUPS, WIDE]. Empty ranges have top -inf."""
    s = tl.arange(0, SPLITS)
    part = (pair * SPLITS + s)[:, None] * GROUP + g[None, :]
    inside = (g < GROUP)[None, :]
    top = tl.load(tops + part, mask=inside, other=0.0, cache_modifier=".cg")
    weight = tl.load(tops + pairs * SPLITS * GROUP + part, mask=inside, other=1.0, cache_modifier=".cg")
    highest = tl.max(top, 0)
    weights = tl.sum(weight * tl.exp2(top - highest[None, :]), 0)
    merged = tl.zeros((GROUPS, WIDE), tl.float32)
    for i in tl.static_range(SPLITS):
        one = (pair * SPLITS + i) * GROUP + g
        fade = tl.exp2(tl.load(tops + one, mask=g < GROUP, other=0.0, cache_modifier=".cg") - highest)
        mask = (g < GROUP)[:, None] & live[None, :]
        sum_at = sums + one[:, None] * D + d[None, :]
        merged += fade[:, None] * tl.load(sum_at, mask=mask, other=0.0, cache_modifier=".cg")
    return merged / weights[:, None]


@triton.jit
def choose_kernel(
    logits, tokens, tokens_stride, position, best, where, arrived, vocabulary,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr, PADDED: tl.constexpr, PDL: tl.constexpr,
) -> None:  # fmt: skip
    """Program (row, chunk of the vocabulary): its largest logit; the row's last program chooses and moves on."""
    row = tl.program_id(0)
    chunk = tl.program_id(1)
    i = chunk * CHUNK + tl.arange(0, CHUNK)
    _begin(PDL)
    x = tl.load(logits + row.to(tl.int64) * vocabulary + i, mask=i < vocabulary, other=float("-inf")).to(tl.float32)
    value, index = tl.max(x, 0, return_indices=True)
    tl.store(best + row * CHUNKS + chunk, value)
    tl.store(where + row * CHUNKS + chunk, chunk * CHUNK + index)
    if _is_last(arrived + row, CHUNKS):
        c = tl.arange(0, PADDED)
        found = tl.load(best + row * CHUNKS + c, mask=c < CHUNKS, other=float("-inf"), cache_modifier=".cg")
        _, first = tl.max(found, 0, return_indices=True)
        token = tl.load(where + row * CHUNKS + first, cache_modifier=".cg")
        after = tl.load(position + row) + 1
        tl.store(tokens + row.to(tl.int64) * tokens_stride + after, token)
        tl.store(position + row, after)
