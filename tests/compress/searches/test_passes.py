"""The precision of a search's products, and how its time is shared."""

from typing import Any, cast

import pytest
import torch
from torch import nn

from tailcut.compress.blocks import Stream
from tailcut.compress.recording import Tape
from tailcut.compress.searches import Effort, auto
from tailcut.compress.searches._measures import FINAL, PREPARE, Measures
from tailcut.compress.searches._passes import QuickStream
from tailcut.compress.searches._trace import Trace
from tailcut.compress.statistics import Accumulator, exact_float32


class Told(nn.Module):
    """A block that notes how products are made, with a hook on its input as calibration has."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.sums = Accumulator(4, "hessian")

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.sums.add(hidden, len(hidden))
        self.seen.append(torch.get_float32_matmul_precision())
        return hidden + 1.0


def ready_stream() -> Stream:
    tape = Tape()
    cast(Any, tape).calls = {2: [lambda block, hidden: block(hidden)]}
    return Stream([torch.zeros(2, 3, 4)], tape, torch.device("cpu"))


def test_blocks_run_with_quick_products_inside_of_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    summed: list[str] = []
    real = torch.Tensor.addmm_

    def noted(self: torch.Tensor, *given: Any, **options: Any) -> torch.Tensor:
        summed.append(torch.get_float32_matmul_precision())
        return real(self, *given, **options)

    monkeypatch.setattr(torch.Tensor, "addmm_", noted)
    block, stream = Told(), QuickStream.of(ready_stream())
    with exact_float32():
        again = stream.again()
        again.watch(0, block)
        again.advance(0, block)
        assert torch.get_float32_matmul_precision() == "highest"
    assert block.seen == ["high", "high"]
    assert summed == ["highest", "highest"]  # Hessians
    assert float(again.batches[0].sum()) == 24.0
    assert float(stream.batches[0].sum()) == 0.0  # where it stood


def measures_after(prepared: float, a_final: float, minutes: float) -> Measures:
    """As they stand behind the yardstick."""
    trace = Trace(spent={PREPARE: prepared, FINAL: a_final}, counts={PREPARE: 1, FINAL: 1})
    return Measures(Effort(minutes=minutes), trace, cast(Any, None), cast(Any, None), (1, 1, 1), cast(Any, None))


@pytest.mark.parametrize(
    ("a_final", "expected"),
    [
        (10.0, 4),  # all that were asked for: 40 s of the 540 that are left
        (50.0, 2),  # a quarter of 500 s is less than three, half would be five
        (250.0, 2),  # the refined plan and the best candidate are judged, whatever that takes
    ],
)
def test_finals_have_a_quarter_of_the_time_and_are_two_at_least(a_final: float, expected: int) -> None:
    measures = measures_after(50.0, a_final, 10.0)
    left = 600.0 - 50.0 - a_final
    shares = auto._shares(measures)
    quick = max(0.0, left - expected * a_final)
    assert shares.finals == expected
    assert shares.evolution == pytest.approx(50.0 + a_final + quick)
    assert shares.candidates == pytest.approx(50.0 + a_final + 0.3 * quick)
