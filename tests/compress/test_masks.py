"""Selection is exact: the counts the plan names, whatever ties there are."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tailcut.allocation import NM, Dense, Unstructured
from tailcut.compress.masks import count_removed, lowest, ranks, removal_mask, require_divisible, require_plan
from tailcut.errors import InputError


@given(st.integers(1, 40), st.data())
def test_lowest_is_a_stable_sort(size: int, data: st.DataObject) -> None:
    """Few levels, so that ties are everywhere; numpy's stable argsort is the reference."""
    levels = data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    count = data.draw(st.integers(0, size))
    expected = np.zeros(size, bool)
    expected[np.argsort(levels, kind="stable")[:count]] = True
    assert lowest(torch.tensor(levels, dtype=torch.float32), count).tolist() == expected.tolist()


@given(st.lists(st.lists(st.integers(0, 3), min_size=8, max_size=8), min_size=1, max_size=5))
def test_ranks_are_the_places_of_a_stable_sort(rows: list[list[int]]) -> None:
    order = np.argsort(rows, axis=-1, kind="stable")
    assert ranks(torch.tensor(rows, dtype=torch.float32)).tolist() == np.argsort(order, axis=-1).tolist()


def test_count_is_immune_to_floating_point_dust() -> None:
    assert 100 * 0.29 < 29  # what a plain floor would trip over
    assert count_removed(100, 0.29) == 29
    assert count_removed(10, 0.25) == 2
    assert count_removed(7, 1.0) == 7


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.999, 1.0])
def test_unstructured_counts_are_exact_with_all_scores_equal(sparsity: float) -> None:
    score = torch.ones(7, 30)
    whole = removal_mask(score, Unstructured(sparsity), per_row=False)
    rows = removal_mask(score, Unstructured(sparsity), per_row=True)
    assert int(whole.sum()) == count_removed(210, sparsity)
    assert rows.sum(1).tolist() == [count_removed(30, sparsity)] * 7


@pytest.mark.parametrize(("keep", "block"), [(2, 4), (4, 8), (1, 2), (3, 5), (4, 4)])
def test_nm_keeps_exactly_keep_per_block(keep: int, block: int) -> None:
    score = torch.randint(0, 3, (6, 4 * block), generator=torch.Generator().manual_seed(0)).float()
    mask = removal_mask(score, NM(keep, block), per_row=True)
    assert ((~mask).reshape(6, 4, block).sum(-1) == keep).all()
    kept = score.masked_fill(mask, torch.inf).reshape(6, 4, block).amin(-1)
    gone = score.masked_fill(~mask, -torch.inf).reshape(6, 4, block).amax(-1)
    assert (gone <= kept).all()


def test_dense_removes_nothing() -> None:
    assert not removal_mask(torch.ones(2, 3), Dense(), per_row=True).any()


def test_divisibility_error_names_the_layer() -> None:
    with pytest.raises(InputError, match=r"model\.layers\.0\.fc: 2:4 needs .* divisible by 4, got 30"):
        require_divisible("model.layers.0.fc", 30, NM(2, 4))
    with pytest.raises(InputError, match="divisible by 4"):
        removal_mask(torch.ones(2, 30), NM(2, 4), per_row=False)


def test_a_matrix_that_misses_its_plan_is_caught() -> None:
    before = torch.arange(1.0, 33.0).reshape(4, 8)
    half = before.masked_fill(removal_mask(before, Unstructured(0.5), per_row=True), 0.0)
    require_plan("fc", before, half, Unstructured(0.5))
    with pytest.raises(InputError, match=r"fc: 16 zeros of 32 weights, the plan 0\.7500 asks for 24"):
        require_plan("fc", before, half, Unstructured(0.75))
    with pytest.raises(InputError, match="fc: 16 zeros"):
        require_plan("fc", before, half, Unstructured(0.25))
    with pytest.raises(InputError, match="fc: a group keeps 4 weights, 2:4 allows 2"):
        require_plan("fc", before, half, NM(2, 4))


@pytest.mark.gpu
@pytest.mark.parametrize("pattern", [Unstructured(0.37), NM(2, 4), NM(3, 8), NM(5, 16)])
@pytest.mark.parametrize("per_row", [True, False])
def test_a_gpu_chooses_as_a_cpu_does(pattern: Unstructured | NM, per_row: bool) -> None:
    """Other selections are used there; few levels, so that ties are everywhere."""
    score = torch.randint(0, 4, (33, 96), generator=torch.Generator().manual_seed(0)).float()
    expected = removal_mask(score, pattern, per_row=per_row)
    assert removal_mask(score.cuda(), pattern, per_row=per_row).cpu().equal(expected)
