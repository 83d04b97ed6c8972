"""Cost tables: interpolation that never rises, what an unmeasured pattern costs, the file, and bad numbers."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailcut import codec
from tailcut.allocation import NM, Dense, Pattern, Unstructured
from tailcut.cost import Cost, CostTable, Curve, _falling
from tailcut.errors import InputError
from tailcut.results import Machine

MACHINE = Machine("cpu", (), 2, 2, 1, 1, None, "Linux", {}, None, "f00d")


def curve(costs: dict[Pattern, float]) -> Curve:
    entries = tuple(Cost((4, 8), pattern, "float32", ms) for pattern, ms in costs.items())
    return CostTable("tailcut", MACHINE, 1, entries).curve((4, 8), "float32")


COSTS: dict[Pattern, float] = {Dense(): 4.0, Unstructured(0.5): 3.0, Unstructured(0.9): 1.0}


@pytest.mark.parametrize(
    ("pattern", "ms"),
    [
        (Dense(), 4.0),
        (Unstructured(0.0), 4.0),
        (Unstructured(0.25), 3.5),
        (Unstructured(0.5), 3.0),
        (Unstructured(0.7), 2.0),
        (Unstructured(0.99), 1.0),  # nothing is gained beyond what was measured
        (NM(2, 4), 3.0),  # an engine of any zeros takes a pattern as such
    ],
)
def test_costs_between_the_measured_ones(pattern: Pattern, ms: float) -> None:
    assert curve(COSTS).ms(pattern) == pytest.approx(ms)


def test_a_measured_pattern_and_those_that_imply_it() -> None:
    only = curve({Dense(): 4.0, NM(2, 4): 2.0})
    assert only.ms(NM(2, 4)) == only.ms(NM(1, 4)) == only.ms(NM(2, 8)) == 2.0
    assert only.ms(NM(4, 8)) == only.ms(Unstructured(0.9)) == 4.0  # runs dense


def test_sparse_formats_may_cost_more_than_dense_at_first() -> None:
    slow = curve({Dense(): 2.0, Unstructured(0.5): 3.0, Unstructured(0.9): 1.0})
    assert slow.ms(Unstructured(0.3)) == 3.0
    assert slow.ms(Unstructured(0.7)) == pytest.approx(2.0)


@given(st.lists(st.floats(0.1, 10.0), max_size=12))
def test_pooled_costs_never_rise_and_keep_their_mean(values: list[float]) -> None:
    pooled = _falling(values)
    assert all(a >= b - 1e-12 for a, b in pairwise(pooled))
    assert sum(pooled) == pytest.approx(sum(values))
    if all(a >= b for a, b in pairwise(values)):
        assert pooled == pytest.approx(values)


def test_pooling_is_least_squares() -> None:
    assert _falling([3.0, 1.0, 2.0, 4.0]) == pytest.approx([3.0, 7 / 3, 7 / 3, 7 / 3])


def test_patterns_to_choose_from() -> None:
    found = curve({**COSTS, NM(2, 4): 2.5, NM(1, 3): 1.0}).patterns(8, 0.8, 0.1)
    assert found == (Dense(), *(Unstructured(s) for s in (0.5, 0.6, 0.7, 0.8)), NM(2, 4))  # 8 is no multiple of 3
    assert curve(COSTS).patterns(8, 0.4, 0.1) == (Dense(),)


def test_tables_round_trip(tmp_path: Path) -> None:
    entries = tuple(Cost((4, 8), pattern, "int8", ms, (ms, ms)) for pattern, ms in {**COSTS, NM(2, 4): 2.0}.items())
    table = CostTable("tailcut", MACHINE, 2, entries, {"int8": 1.5}, {"int8": (9.0, 9.5)}, "test")
    codec.save(table, tmp_path / "cost.json")
    assert codec.load(CostTable, tmp_path / "cost.json") == table
    assert table.precisions == ("int8",)


@pytest.mark.parametrize("ms", [0.0, -1.0, float("nan"), float("inf")])
def test_costs_that_cannot_be(ms: float) -> None:
    with pytest.raises(InputError, match=r"the cost of 4 x 8 dense is .* ms; measure again"):
        Cost((4, 8), Dense(), "float32", ms)
