"""The GPU workers' logic on a CPU: kernels in Triton's interpreter, a clock that counts in place of CUDA graphs."""

import importlib
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tailcut.kernels.gpu.llama import Architecture
from tailcut.kernels.gpu.weights import random_weights

WORKERS = Path(__file__).parents[3] / "bench" / "workers"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A worker's module as its own process sees it: its siblings are plain modules."""
    monkeypatch.setattr(sys, "path", [str(WORKERS), *sys.path])
    return importlib.import_module


class Counting:
    """In place of a graph: runs every launch once, then tells made-up times."""

    def __init__(self, launches: Sequence[Callable[[], object]]) -> None:
        self.results = [launch() for launch in launches]
        self.ticks = itertools.count(len(launches))

    def us(self) -> float:
        return float(next(self.ticks))


def test_in_turn_gives_each_its_samples_in_rounds(load: Callable[[str], Any]) -> None:
    timing = load("gpu_timing")
    order: list[str] = []

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def us(self) -> float:
            order.append(self.name)
            return 1.0

    assert timing.in_turn([Named("a"), Named("b"), Named("c")], 3) == [[1.0] * 3] * 3
    assert "".join(order) == "abcbcacab"


def test_sqnr_is_the_ratio_of_energies(load: Callable[[str], Any]) -> None:
    reference = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    found = load("gpu_timing").sqnr_db(reference.float() + 0.05, reference)
    assert found == pytest.approx(10 * torch.tensor(25 / 0.005).log10().item(), abs=1e-3)


def test_products_of_every_contender_that_runs_on_a_cpu(load: Callable[[str], ModuleType]) -> None:
    """Rounding alone keeps them from float64: float16 results (2^-11 of each) are 68 dB and more away."""
    pytest.importorskip("triton", reason="Triton is in the dev extra on Linux x86-64 only")
    worker: Any = load("gpu_worker")
    case = worker.Case([16, 128], 0, 300, "cpu", torch.float16, Counting)
    names = ["dense", "2:4 bf16", "2:4 int8", "2:4 int4", "unstructured 80% bf16", "unstructured 80% int8"]
    entries = worker.measure_products(case, names, [1, 2], 3)
    assert [(entry["contender"], entry["rows"]) for entry in entries] == [(name, m) for m in (1, 2) for name in names]
    assert [entry.get("reason") for entry in entries] == [None] * 12
    assert all(len(entry["us"]) == 3 for entry in entries)
    assert min(entry["sqnr_db"] for entry in entries) > 60
    single = {entry["contender"]: entry for entry in entries if entry["rows"] == 1}
    assert single["2:4 bf16"]["path"] == "gemv"
    assert single["2:4 bf16"]["moved_bytes"] == single["2:4 bf16"]["weight_bytes"] + 2 * 128 + 2 * 16
    # one scale a row of 127 steps, one of 7 steps a group
    assert 30 < single["2:4 int8"]["weights_sqnr_db"] < 50
    assert 12 < single["2:4 int4"]["weights_sqnr_db"] < 25


def test_a_contender_that_fails_keeps_its_place(load: Callable[[str], ModuleType]) -> None:
    worker: Any = load("gpu_worker")
    case = worker.Case([8, 48], 0, 1000, "cpu", torch.float16, Counting)
    dense, int4 = worker.measure_products(case, ["dense", "int4"], [1], 2)
    assert len(dense["us"]) == 2
    assert "us" not in int4
    assert "multiple of 8 rows and of 32 columns" in int4["reason"]


def test_copies_lie_elsewhere(load: Callable[[str], ModuleType]) -> None:
    contenders: Any = load("gpu_contenders")
    weight = torch.randn(32, 256, dtype=torch.float16)
    for name in ("dense", "2:4 bf16"):
        made = contenders.MAKERS[name](weight)
        again = made.again()
        assert torch.equal(made.stored(), again.stored())
        assert made.stored().data_ptr() != again.stored().data_ptr()


def test_int4_codes_are_the_nearest(load: Callable[[str], ModuleType]) -> None:
    contenders: Any = load("gpu_contenders")
    weight = torch.randn(4, 256)
    codes, scales, zeros = contenders.quantise_int4(weight, 128)
    back = ((codes.float() - 8).view(4, 2, 128) * scales[..., None] + zeros[..., None]).flatten(1)
    assert (int(codes.min()), int(codes.max())) == (0, 15)
    assert bool(((back - weight).abs().view(4, 2, 128) <= scales[..., None] * 0.501).all())


def ticking(decoder: Any, steps: int) -> list[float]:
    for _ in range(steps):
        decoder.step()
    return [2.0] * steps


def test_decode_steps_of_each_contender(load: Callable[[str], ModuleType]) -> None:
    decode: Any = load("gpu_loops")
    tiny = Architecture(64, 128, 2, 4, 2, 16, 96)
    weights = random_weights(tiny, "cpu", torch.float32, 0)
    body = {"contenders": ["dense", "nosuch"], "context": 8, "batch": 2, "steps": 10}
    dense, unknown = decode.run(weights, body, ticking)
    assert dense["ms"] == [2.0] * 10
    blocks = 2 * sum(rows * columns for rows, columns in tiny.block_shapes.values())
    assert dense["weight_bytes"] == 4 * (blocks + 96 * 64)
    assert dense["cache_bytes"] == 2 * 2 * 2 * 16 * 4 * 8.5 * 2
    assert dense["path"] == "cuBLAS 8"
    assert unknown == {"contender": "nosuch", "reason": "KeyError: 'nosuch'"}


def test_sparse_bytes_follow_the_path(load: Callable[[str], ModuleType]) -> None:
    contenders: Any = load("gpu_contenders")
    weight = torch.randn(32, 256, dtype=torch.float16)
    made = contenders.two_four(weight)
    few, many = torch.zeros(1, 256, dtype=torch.float16), torch.zeros(100, 256, dtype=torch.float16)
    assert made.bytes_for(few) == made.weight_bytes
    assert (made.path(many), made.bytes_for(many)) == ("dense", 2 * weight.numel())


def test_the_better_dense_product_is_chosen_by_time(
    load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    package: Any = load("gpu_package")
    best = package.BestDense(1, capture=lambda launches: Counting(launches[:1]))
    weight = torch.randn(8, 16)
    monkeypatch.setattr(package.contenders, "compiled", package.contenders.dense)
    assert best._compiled_is_faster(weight) is False  # equal times: the plain one stays
    assert torch.equal(best(weight).apply(torch.ones(1, 16)), torch.ones(1, 16) @ weight.T)


def test_two_four_is_recognised(load: Callable[[str], ModuleType]) -> None:
    package: Any = load("gpu_package")
    weight: Tensor = torch.tensor([[1.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 3.0]])
    assert package.is_two_four(weight)
    weight[0, 1] = 1.0
    assert not package.is_two_four(weight)
    assert not package.is_two_four(torch.zeros(2, 6))
