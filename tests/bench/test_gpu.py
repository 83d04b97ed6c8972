"""`tailcut bench-gpu`: ratios, tables and files from a worker's answers, and what is said without a GPU."""

import subprocess
import sys
from pathlib import Path

import pytest

from tailcut import codec
from tailcut.bench import gpu
from tailcut.bench.gpu import GpuPlan, GpuResult, measure
from tailcut.bench.gpu_device import gpu_problem
from tailcut.bench.gpu_tables import geometric_mean, render
from tailcut.bench.worker import Launch
from tailcut.commands.bench_gpu import command
from tailcut.errors import InputError, MissingEnvironmentError

FAKE = Launch(sys.executable, Path(__file__).with_name("fake_gpu_worker.py"), {})
PLAN = GpuPlan(
    shapes=((4096, 4096), (64, 128)),
    rows=(1, 16),
    contenders=("dense", "2:4 bf16", "2:4 int4", "cusparselt 2:4"),
    decode_contenders=("dense", "dense compiled", "2:4 bf16", "int4"),
)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> GpuResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TAILCUT_BENCH_LOCK", str(tmp_path_factory.mktemp("lock") / "bench.lock"))
        return measure(PLAN, launched=FAKE)


def test_every_case_has_every_contender(result: GpuResult) -> None:
    assert len(result.products) == 2 * 2 * 4
    assert [found.contender for found in result.decodes] == list(PLAN.decode_contenders)
    assert codec.from_json(GpuResult, codec.to_json(result), "result") == result


def test_speedups_are_over_cublas_and_ceilings_are_bytes(result: GpuResult) -> None:
    found = result.product((64, 128), 16, "2:4 bf16")
    assert found is not None
    assert result.speedup(found) == pytest.approx(2.0)
    assert result.ceiling(found) == pytest.approx(32_016_000 / 18_016_000)
    assert found.gb_per_s == pytest.approx(18_016_000 / 10 / 1e3)
    missing = result.product((64, 128), 16, "cusparselt 2:4")
    assert missing is not None
    assert (result.speedup(missing), missing.reason) == (None, "ValueError: not here")


def test_decode_speedups_are_over_the_faster_dense_loop(result: GpuResult) -> None:
    ours = next(found for found in result.decodes if found.contender == "2:4 bf16")
    assert result.decode_speedup(ours) == pytest.approx(6.0 / 4.0)
    assert result.decode_ceiling(ours) == pytest.approx(17 / 10)


def test_tables_show_what_was_measured_and_why_not(result: GpuResult) -> None:
    text = render(result)
    assert "Fake GPU" in text
    assert "Copy bandwidth 3000 GB/s" in text
    assert "| 4096 x 4096 | 1 | 2:4 bf16 | gemv | 10.00 | 1800 | 60% | 2.00x | 1.78x | 50 |" in text
    assert "not measured: ValueError: not here" in text
    assert "2:4 bf16 2.00x (least 2.00x, 2 matrices)" in text
    assert "| 4096 x 4096 | 2:4 int4 | 2.50x (gemv) | 2.50x (gemv) |" in text
    assert "| llama-7b | 2:4 bf16 | 1 | 512 | 4.000 | 250 | 2500 | 83% | 1.50x | 1.70x |" in text
    assert "not measured: out of memory" in text


def test_geometric_mean() -> None:
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shapes": ((8, 6),)}, "multiple of 4 columns"),
        ({"rows": (0,)}, "at least 1"),
        ({"contenders": ("dense", "nosuch")}, "unknown contender 'nosuch'"),
        ({"rounds": 0}, "rounds must be at least 1"),
    ],
)
def test_wrong_plans_are_one_sentence(change: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        GpuPlan(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "said"), [(["--shapes", "4096"], "is not a shape like"), (["--rows", "1,x"], "is not a number of rows")]
)
def test_wrong_options_are_exit_2(words: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tailcut", "bench-gpu", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert said in done.stderr


def test_without_a_gpu_it_is_one_sentence_and_exit_4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "gpu_problem", lambda triton: "no NVIDIA driver; a GPU is needed")
    with pytest.raises(MissingEnvironmentError, match="a GPU is needed") as caught:
        command()
    assert caught.value.exit_code == 4


@pytest.mark.skipif(gpu_problem(triton=True) is None, reason="this machine has a GPU")
def test_the_command_on_this_machine() -> None:
    done = subprocess.run([sys.executable, "-m", "tailcut", "bench-gpu"], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.gpu
def test_a_small_session_on_the_gpu() -> None:
    """Every contender runs, and none is further from float64 than bfloat16's rounding of the result (eps 2^-8) explains."""
    plan = GpuPlan(shapes=((1024, 1024),), rows=(1, 16), models=(), rounds=3, pool_bytes=8_000_000)
    found = measure(plan).products
    assert [(item.contender, item.reason) for item in found if not item.us] == []
    assert min(item.sqnr_db or 0.0 for item in found) > 40
