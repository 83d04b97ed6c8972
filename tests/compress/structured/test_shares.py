"""Ratios to numbers of units: targets are met to half a step, and nothing is emptied."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailcut.compress.structured._shares import NOTHING, Supply, Wanted, levels, share_equally, share_out
from tailcut.errors import InputError


def block(kv_heads: int, width: int, multiple: int, ratio: float) -> Wanted:
    """Llama's proportions at a hidden size of 64: a KV head of 16 channels with 3 queries, gated MLP."""
    heads = Supply(8 * 16 * 64, levels(kv_heads, 1))
    mlp = Supply(3 * 64, levels(width, multiple))
    return Wanted(heads, mlp, ratio * heads.removed(0), ratio * mlp.removed(0))


def weights(one: Wanted) -> int:
    return one.heads.removed(0) + one.mlp.removed(0)


def removed(one: Wanted, pair: tuple[int, int]) -> int:
    return one.heads.removed(pair[0]) + one.mlp.removed(pair[1])


def test_levels_are_multiples_below_the_whole() -> None:
    assert levels(1536, 64)[:3] == (1536, 1472, 1408)
    assert levels(100, 64) == (100, 64)
    assert levels(64, 64) == (64,)
    assert levels(3, 1) == (3, 2, 1)
    assert levels(1, 1) == (1,)


@given(st.integers(1, 8), st.integers(2, 40), st.floats(0.02, 0.8), st.integers(1, 12))
def test_equal_blocks_meet_their_target_to_half_a_step(kv_heads: int, steps: int, ratio: float, blocks: int) -> None:
    one = block(kv_heads, 64 * steps, 64, ratio)
    target = ratio * weights(one) * blocks
    most = removed(one, (1, 64)) * blocks
    if target > most + one.mlp.step * blocks / 2:
        with pytest.raises(InputError, match="smaller ratio"):
            share_equally(one, blocks, target)
        return
    heads, width = share_equally(one, blocks, target)
    assert 1 <= heads <= kv_heads
    assert width % 64 == 0
    # half a step of every block; or half a step of heads, where the MLP is used up or cannot give back
    slack = max(one.mlp.step, one.heads.step if width in (64, 64 * steps) else 0) / 2
    assert abs(removed(one, (heads, width)) - target / blocks) <= slack + 1e-6


@given(
    st.lists(st.tuples(st.integers(1, 6), st.floats(0.0, 0.9), st.booleans()), min_size=1, max_size=8),
    st.integers(2, 30),
)
def test_unequal_blocks_meet_their_target_to_half_a_step(asked: list[tuple[int, float, bool]], steps: int) -> None:
    blocks = [block(kv, 64 * steps, 64, ratio) for kv, ratio, _ in asked]
    target = sum(ratio * weights(one) for one, (_, ratio, _) in zip(blocks, asked, strict=True))
    most = sum(removed(one, (1, 64)) for one in blocks)
    if target > most + blocks[0].mlp.step / 2:
        with pytest.raises(InputError, match="smaller ratio"):
            share_out(blocks, target)
        return
    pairs = share_out(blocks, target)
    assert all(
        1 <= kv <= one.heads.levels[0] and w in one.mlp.levels for (kv, w), one in zip(pairs, blocks, strict=True)
    )
    total = sum(removed(one, pair) for one, pair in zip(blocks, pairs, strict=True))
    used_up = all(width == 64 for _, width in pairs)
    slack = max(
        blocks[0].mlp.step,
        blocks[0].heads.step if used_up else 0,
        max(one.heads.step for one in blocks) if used_up else 0,
    )
    assert abs(total - target) <= slack / 2 + 1e-6


def test_protected_blocks_give_nothing_and_the_others_more() -> None:
    whole = block(3, 1536, 64, 0.0)
    kept = Wanted(Supply(whole.heads.parameters, (3,)), Supply(whole.mlp.parameters, (1536,)), 0.0, 0.0)
    giving = block(3, 1536, 64, 0.5)
    pairs = share_out([kept, giving, giving, kept], 1.0 * weights(giving))
    assert pairs[0] == pairs[3] == (3, 1536)
    assert abs(removed(giving, pairs[1]) + removed(giving, pairs[2]) - weights(giving)) <= giving.mlp.step / 2


def test_heads_alone() -> None:
    one = block(4, 64, 64, 0.5)
    alone = Wanted(one.heads, NOTHING, one.from_heads, 0.0)
    assert share_equally(alone, 3, 3 * one.from_heads) == (2, 0)
    assert [kv for kv, _ in share_out([alone] * 3, 3 * one.from_heads)] == [2, 2, 2]


def test_numbers_that_a_family_refuses_are_left_out() -> None:
    """Llama wants heads to divide the hidden size: of 4 it may take 4, 2 or 1; the MLP makes up for it."""
    one = block(4, 6400, 64, 0.25)
    allowed = Wanted(Supply(one.heads.parameters, (4, 2, 1)), one.mlp, one.from_heads, one.from_mlp)
    heads, width = share_equally(allowed, 1, 0.25 * weights(one))
    assert heads == 4
    assert abs(allowed.mlp.removed(width) - 0.25 * weights(one)) <= allowed.mlp.step / 2
