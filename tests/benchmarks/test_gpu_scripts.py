"""The GPU benchmarks' scripts: what they ask for, what they write and show; no GPU and no timing is judged."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tailcut import codec
from tailcut.bench import gpu
from tailcut.bench.gpu import Decode, GpuPlan, GpuResult, Product
from tailcut.bench.machine import describe_machine

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.setattr(sys, "path", [str(FOLDER), str(SCRIPTS), *sys.path])
    return importlib.import_module


def measured(plan: GpuPlan, *_: object) -> GpuResult:
    products = [
        Product(shape, rows, name, (4.0, 2.0, 3.0), 100, 200, "gemv", 50.0)
        for shape in plan.shapes
        for rows in plan.rows
        for name in plan.contenders
    ]
    decodes = [
        Decode(model, name, plan.batch, plan.context, (5.0, 6.0), 100, 10, 200)
        for model in plan.models
        for name in plan.decode_contenders
    ]
    gpu = {"name": "Fake GPU", "versions": {}}
    return GpuResult(describe_machine(), gpu, (3000.0,), tuple(products), tuple(decodes), "test")


def test_kernels_of_the_issue_s_shapes_and_rows(
    load: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script: Any = load("gpu_kernels")
    monkeypatch.setattr(script, "measure", measured)
    script.main(["run", "-o", str(tmp_path / "k.json")])
    found = codec.load(GpuResult, tmp_path / "k.json")
    assert {item.shape for item in found.products} == set(gpu.SHAPES)
    assert {item.rows for item in found.products} == {1, 2, 4, 8, 16, 32, 64, 256, 2048}
    assert found.decodes == ()
    script.main(["table", str(tmp_path / "k.json")])
    assert "| 4096 x 4096 | 1 | 2:4 bf16 | gemv | 3.00 |" in capsys.readouterr().out


def test_decode_steps_of_several_batches_are_one_result(
    load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script: Any = load("gpu_decode")
    monkeypatch.setattr(script, "measure", measured)
    script.main(["run", "--batches", "1,8", "--contenders", "dense,2:4 bf16", "-o", str(tmp_path / "d.json")])
    found = codec.load(GpuResult, tmp_path / "d.json")
    assert [(item.batch, item.contender) for item in found.decodes] == [
        (1, "dense"), (1, "2:4 bf16"), (8, "dense"), (8, "2:4 bf16"),
    ]  # fmt: skip
    assert len(found.copy_gb_per_s) == 2


def test_compression_is_timed_stage_by_stage(load: Callable[[str], ModuleType], tmp_path: Path) -> None:
    script: Any = load("gpu_compress")
    out, work = tmp_path / "c.json", tmp_path / "work"
    work.mkdir()
    small = ["--like", "tiny", "--samples", "2", "--seqlen", "16", "--device", "cpu", "--work", str(work)]
    script.main(["run", "--blocks", "2", *small, "-o", str(out)])
    content = json.loads(out.read_bytes())
    assert list(work.iterdir()) == []
    assert len(content["spectra"]["per_matrix_s"]) == len(content["spectra"]["shapes"]) == 14
    for entry in content["pruners"]:
        assert entry["sparsity"] == pytest.approx(0.5)
        assert len(entry["stages_s"]["cut a block"]) == 2
        assert entry["peak"]["rss"] > 0
    assert "extrapolated from 2 of 32 blocks" in script.render(content)


def test_the_whole_is_what_is_done_once_and_the_mean_block(load: Callable[[str], ModuleType]) -> None:
    script: Any = load("gpu_compress")
    stages = {
        "skeleton": [1.0],
        "open the stream": [2.0],
        "cut a block": [100.0, 10.0, 12.0],  # the first compiles and allocates
        "store a block": [1.0, 1.0, 1.0],
        "advance the stream": [3.0, 3.0, 3.0],
    }
    # the stream need not advance past the last block
    assert script.whole({"stages_s": stages}, 3) == pytest.approx(3 + 32 * (11 + 1 + 3) - 3)
    assert script.whole({"seconds": 6.0}, 2) == pytest.approx(96.0)


def test_outcomes_of_tests_are_their_worst_phase(load: Callable[[str], ModuleType]) -> None:
    script: Any = load("test_gpu")
    outcomes = script.Outcomes()

    def report(name: str, outcome: str, text: Any = None) -> None:
        fields = {"nodeid": name, "outcome": outcome, "duration": 0.5, "longrepr": text}
        outcomes.pytest_runtest_logreport(type("Report", (), fields)())

    for outcome in ("passed", "failed", "passed"):
        report("a", outcome, "first line\nlast line" if outcome == "failed" else None)
    report("b", "skipped", ("file", 1, "Skipped: no such card"))
    content = script.record(outcomes, 1, 2.0) if gpu.gpu_problem() is None else None
    assert outcomes.tests["a"] == {"outcome": "failed", "seconds": 1.5, "reason": "last line"}
    assert outcomes.tests["b"]["reason"] == "Skipped: no such card"
    assert content is None or content["counts"] == {"failed": 1, "skipped": 1}


def test_shares_of_the_gpu_suite_are_all_of_it(load: Callable[[str], ModuleType]) -> None:
    script: Any = load("test_gpu")
    names = [f"test {number}" for number in range(7)]
    shares = [names[script.Outcomes(part, 3).share] for part in range(3)]
    assert sorted(name for share in shares for name in share) == names


def test_the_gpu_suite_covers_its_folder_and_every_marked_file(load: Callable[[str], ModuleType]) -> None:
    files = load("test_gpu").marked_files()
    assert files[0] == "tests/kernels/gpu"
    assert "tests/bench/test_torch_cuda_engines.py" in files


@pytest.mark.skipif(gpu.gpu_problem(triton=True) is None, reason="this machine has a GPU")
def test_without_a_gpu_the_suite_is_exit_4(
    load: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load("test_gpu").main(["-o", str(tmp_path / "t.json")]) == 4
    assert not (tmp_path / "t.json").exists()
    assert capsys.readouterr().err.startswith("test_gpu: ")
