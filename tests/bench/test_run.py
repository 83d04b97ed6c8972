"""`bench` on a fake engine over the real protocol: numbers, refusals, evidence, cautions."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tailcut import codec
from tailcut.bench import run as running
from tailcut.bench.lock import machine_lock
from tailcut.bench.run import bench
from tailcut.bench.sentinel import Reading
from tailcut.errors import InputError
from tailcut.results import BandwidthPoint, BenchResult, Stopping, Workload

WORK = Workload(prompt_tokens=4, new_tokens=8, context=32, threads=1, blocks=4, prefill_blocks=2)
pytestmark = pytest.mark.usefixtures("quiet")
FAST = {"dense": {"ms": 10.0}, "sparse": {"ms": 5.0, "zeros": 640_000}}


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Engines by name for this test; the bandwidth is a given."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(running.registry, "load", lambda name: found[name])
    monkeypatch.setattr(
        running, "measure_bandwidth", lambda threads, report: (BandwidthPoint(threads, 20.0, (19.0, 20.0)),)
    )
    return found


def test_a_pair_is_measured_block_by_block(
    engines: dict[str, Any], fake: Any, make_package: Any, tmp_path: Path
) -> None:
    engines["fake"] = fake(settings=FAST)
    seen: list[str] = []
    result = bench(
        make_package("dense"),
        make_package("sparse", 0.8, ("dequantised",)),
        engines=["fake"],
        workload=WORK,
        report=lambda stage, done, total, note="": seen.append(f"{stage} {done}/{total} {note}"),
    )
    (engine,) = result.engines
    assert (engine.status, engine.version) == ("measured", "9.9")
    assert engine.dense is not None
    assert engine.sparse is not None
    assert [len(block) for block in engine.dense.decode_ms] == [8] * 4
    assert [len(block) for block in engine.sparse.prefill_ms] == [2] * 2
    assert engine.decode_speedup is not None
    # 2 % noise a step, 32 steps a side: the median ratio is within a few per mille of 2
    assert abs(engine.decode_speedup.value - 2) < 0.1
    assert engine.engagement is not None
    assert engine.engagement.proven
    assert engine.sparse.roofline.weight_bytes == 4 * (1_000_000 - 100 * 64)  # the untied table is only looked up
    assert result.sparse.notes == ("dequantised",)
    assert result.sparse.sparsity == pytest.approx(0.8)
    assert result.sparse.whole_model_sparsity == pytest.approx(0.64)
    assert any("bench fake 4/4 decode" in line for line in seen)
    codec.save(result, tmp_path / "result.json")
    assert codec.load(BenchResult, tmp_path / "result.json") == result


def test_dense_and_sparse_take_turns_and_never_overlap(
    engines: dict[str, Any], fake: Any, make_package: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tailcut.bench.worker import Worker

    engines["fake"] = fake(settings=FAST)
    order: list[int] = []
    ask = Worker.ask

    def spy(self: Worker, command: str, *args: Any, **body: Any) -> Any:
        if command == "decode":
            order.append(self.pid)
        return ask(self, command, *args, **body)

    monkeypatch.setattr(Worker, "ask", spy)
    bench(make_package("dense"), make_package("sparse"), engines=["fake"], workload=WORK)
    dense, sparse = order[0], order[1]
    settling = len(order) - 16
    assert order[:settling] == [dense, sparse] * (settling // 2)
    assert order[settling:] == [dense, sparse, sparse, dense, sparse, dense, dense, sparse] * 2


def test_a_stopped_session_says_how_it_went(
    engines: dict[str, Any], fake: Any, make_package: Any, quiet: list[Reading]
) -> None:
    engines["fake"] = fake(settings=FAST)
    quiet += [Reading(1.0, 2.0)] * 2 + [Reading(9.0, 2.0)]  # in the first block
    work = replace(WORK, prefill_blocks=0, stopping=Stopping(at_least=1.5))
    result = bench(make_package("dense"), make_package("sparse"), engines=["fake"], workload=work)
    (engine,) = result.engines
    procedure = engine.procedure("decode")
    assert procedure is not None
    assert engine.procedure("prefill") is None
    assert engine.prefill_reason == "not asked for"
    assert "clear of 1.5" in procedure.ended
    assert [item.block for item in procedure.discarded] == [0]
    assert "1 of 5 decode blocks were discarded because the machine was disturbed" in engine.cautions
    assert engine.dense is not None
    assert len(engine.dense.decode_ms) == len(engine.dense.others_cpu_share) == 4
    assert engine.decode_speedup is not None
    assert engine.decode_speedup.confidence == 0.95
    assert codec.from_json(BenchResult, codec.to_json(result)) == result


def test_an_absent_engine_is_not_measured(engines: dict[str, Any], fake: Any, make_package: Any) -> None:
    engines["gone"] = fake(reason="its environment is not installed")
    engines["fake"] = fake(settings=FAST)
    result = bench(make_package("dense"), make_package("sparse"), engines=["gone", "fake"], workload=WORK)
    assert [engine.status for engine in result.engines] == ["not measured", "measured"]
    assert result.engines[0].reason == "its environment is not installed"
    assert result.engines[0].licence == "fake licence"


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"die": "open"}, "Assertion at"),
        ({"die": "decode"}, "SIGSEGV"),
        ({"fraction": 0.0}, "only part of the graph"),
        ({"nan": True}, "no usable decode times"),
        ({"offset": 0.01}, "logits differ from ONNX Runtime's by 1.0e-02"),
    ],
)
def test_a_failing_engine_is_not_measured_with_the_reason(
    engines: dict[str, Any], fake: Any, make_package: Any, broken: dict[str, Any], reason: str
) -> None:
    engines["onnxruntime"] = fake()  # the reference of the logits
    engines["fake"] = fake(settings={"sparse": broken}, TOLERANCE=1e-4)
    result = bench(make_package("dense"), make_package("sparse"), engines=["fake"], workload=WORK)
    assert result.engines[0].status == "not measured"
    assert reason in result.engines[0].reason
    assert result.engines[0].decode_speedup is None


def test_a_failing_prefill_graph_leaves_the_decode_measurement(
    engines: dict[str, Any], fake: Any, make_package: Any
) -> None:
    engines["fake"] = fake(settings={"sparse": {"die": "prefill"}}, SEPARATE_PHASES=True)
    (engine,) = bench(make_package("dense"), make_package("sparse"), engines=["fake"], workload=WORK).engines
    assert engine.status == "measured"
    assert engine.prefill_speedup is None
    assert "prefill graph does not compile" in engine.prefill_reason
    assert any(caution.startswith("prefill was not measured") for caution in engine.cautions)


def test_a_bandwidth_beyond_the_machines_is_refused(
    engines: dict[str, Any], fake: Any, make_package: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines["fake"] = fake(settings={"dense": {"ms": 0.01}, "sparse": {"ms": 0.01}})  # 4 MB in 10 us: 400 GB/s
    real = running.describe_machine
    monkeypatch.setattr(running, "describe_machine", lambda: replace(real(), l3_bytes=100_000))
    (engine,) = bench(make_package("dense"), make_package("sparse"), engines=["fake"], workload=WORK).engines
    assert engine.status == "not measured"
    assert "refused as a broken measurement" in engine.reason


def test_a_speedup_beyond_the_bytes_is_flagged(engines: dict[str, Any], fake: Any, make_package: Any) -> None:
    engines["fake"] = fake(settings={"dense": {"ms": 60.0}, "sparse": {"ms": 1.0}}, COMPRESSES=True)
    (engine,) = bench(make_package("dense"), make_package("sparse", 0.8), engines=["fake"], workload=WORK).engines
    assert engine.byte_ratio is not None
    assert 1 < engine.byte_ratio < 3
    assert any("above the byte ratio" in caution for caution in engine.cautions)
    assert engine.sparse is not None
    assert engine.sparse.roofline.estimate


def test_zeros_that_gain_nothing_are_flagged(engines: dict[str, Any], fake: Any, make_package: Any) -> None:
    engines["fake"] = fake(settings={"dense": {"ms": 20.0}, "sparse": {"ms": 20.0}}, COMPRESSES=True)
    (engine,) = bench(make_package("dense"), make_package("sparse", 0.8), engines=["fake"], workload=WORK).engines
    assert any("is not limited by memory" in caution for caution in engine.cautions)


def test_too_little_memory_is_not_measured(
    engines: dict[str, Any], fake: Any, make_package: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines["fake"] = fake(settings=FAST)
    memory = psutil.virtual_memory()._replace(available=1_000_000)
    monkeypatch.setattr("tailcut.bench.pair.psutil.virtual_memory", lambda: memory)
    (engine,) = bench(make_package("dense"), make_package("sparse"), engines=["fake"], workload=WORK).engines
    assert "need about" in engine.reason


def test_bad_requests_are_one_sentence(engines: dict[str, Any], fake: Any, make_package: Any) -> None:
    engines["fake"] = fake()
    dense, sparse = make_package("dense"), make_package("sparse")
    with pytest.raises(InputError, match="no engine"):
        bench(dense, sparse, engines=[], workload=WORK)
    with pytest.raises(InputError, match="threads 4096"):
        bench(dense, sparse, engines=["fake"], workload=replace(WORK, threads=4096))
    config = json.loads((sparse / "config.json").read_text())
    (sparse / "config.json").write_text(json.dumps(config | {"hidden_size": 128}))
    with pytest.raises(InputError, match="not the same model"):
        bench(dense, sparse, engines=["fake"], workload=WORK)
    with pytest.raises(InputError, match=r"no manifest\.json"):
        bench(dense.parent, sparse, engines=["fake"], workload=WORK)


@pytest.mark.parametrize(
    "bad",
    [{"blocks": 0}, {"context": 20, "prompt_tokens": 16, "new_tokens": 8}, {"confidence": 1.0}, {"threads": 0}],
)
def test_a_workload_that_cannot_be_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Workload(**bad)


def test_two_benches_on_one_machine_take_turns(tmp_path: Path) -> None:
    import subprocess
    import sys
    import time

    code = (
        "import time; from tailcut.bench.lock import machine_lock\n"
        "with machine_lock():\n    print('held', flush=True); time.sleep(0.8)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    said: list[str] = []
    began = time.monotonic()
    with machine_lock(lambda stage, done, total, note="": said.append(note)):
        waited = time.monotonic() - began
    other.wait()
    assert waited > 0.3  # the other holds it for 0.8 s after it says so
    assert "waiting for another" in said[0]


def test_onnxruntime_measures_a_real_pair(tiny_model: Any, tmp_path: Path) -> None:
    from tailcut.bench.engines import load
    from tailcut.export.run import export

    export(tiny_model("llama"), tmp_path / "dense", check=False)
    (result,) = bench(tmp_path / "dense", tmp_path / "dense", engines=["onnxruntime"], workload=WORK).engines
    assert result.status == "measured", result.reason
    assert result.engagement is not None
    assert not result.engagement.proven
    assert "nearly fit in cache" in " ".join(result.cautions)
    assert result.dense is not None
    assert result.dense.evidence["sparse_kernel"] is False
    launch = load("onnxruntime").launch(tmp_path / "dense", "decode", WORK)
    assert launch.settings["threads"] == 1
    assert np.all(np.asarray(result.dense.decode_ms) > 0)
