"""DeepSparse itself, where its evaluation environment is installed: the whole pair on a tiny static package."""

from pathlib import Path
from typing import Any

import pytest

from tailcut.bench import run as running
from tailcut.bench.engines import deepsparse
from tailcut.bench.run import bench
from tailcut.results import BandwidthPoint, Workload

pytestmark = [
    pytest.mark.deepsparse,
    pytest.mark.skipif(deepsparse.available() is not None, reason=f"DeepSparse: {deepsparse.available()}"),
]
WORK = Workload(prompt_tokens=16, new_tokens=4, context=64, threads=1, blocks=1, prefill_blocks=1)


@pytest.fixture
def package(tiny_model: Any, tmp_path: Path) -> Path:
    from tailcut.export.run import export
    from tailcut.export.static import export_deepsparse

    export(tiny_model("llama"), tmp_path / "dense", check=False)
    export_deepsparse(tiny_model("llama"), tmp_path / "dense-deepsparse", context=64, prompt=16)
    return tmp_path / "dense"


@pytest.fixture(autouse=True)
def _given_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "measure_bandwidth", lambda threads, report: (BandwidthPoint(threads, 20.0, (20.0,)),))


def test_a_pair_is_measured_with_checked_logits_and_evidence(package: Path) -> None:
    (engine,) = bench(package, package, engines=["deepsparse"], workload=WORK).engines
    assert engine.status == "measured", engine.reason
    assert engine.prefill_reason == ""
    assert engine.sparse is not None
    assert engine.sparse.evidence["supported_fraction"] == 1.0
    assert str(engine.sparse.evidence["numpy"]).startswith("1.")
    assert engine.engagement is not None
    assert not engine.engagement.proven  # nothing was cut in this package
    assert "evaluation" in engine.licence


def test_another_context_than_the_exported_one_is_refused(package: Path) -> None:
    work = Workload(prompt_tokens=16, new_tokens=4, context=48, threads=1, blocks=1)
    (engine,) = bench(package, package, engines=["deepsparse"], workload=work).engines
    assert engine.status == "not measured"
    assert "exported for context 64, not 48" in engine.reason


def test_wrong_weights_are_caught_by_the_logits(package: Path) -> None:
    import numpy as np

    path = package.with_name("dense-deepsparse") / "model.onnx.data"
    data = np.fromfile(path, np.float32)
    data[: data.size // 2] *= 1.01
    data.tofile(path)
    (engine,) = bench(package, package, engines=["deepsparse"], workload=WORK).engines
    assert engine.status == "not measured"
    assert "logits differ from ONNX Runtime's" in engine.reason


def test_the_int8_variant_is_accelerated_and_is_the_model(package: Path) -> None:
    import numpy as np

    from tailcut.bench import variants
    from tailcut.bench.engines import deepsparse_int8
    from tailcut.bench.many import LIMITS, Row, reference, relative_l2
    from tailcut.bench.worker import Worker

    variants.prepare("deepsparse-int8", package)
    assert deepsparse_int8.unfit(package, WORK) is None
    launch = deepsparse_int8.launch(package, "decode", WORK)
    with Worker(launch) as worker:
        worker.ask("open", **launch.settings)
        evidence, _ = worker.ask("describe")
        tokens = np.random.default_rng(WORK.seed).integers(0, 258, (1, 8), np.int64)
        _, arrays = worker.ask("logits", {"tokens": tokens})
    assert deepsparse_int8.refuse(evidence) is None  # no part of the graph falls back
    assert 0 < evidence["zeros_seen"] < 10_000  # counted when written: int8 rounding makes some
    gap = relative_l2(arrays["logits"], reference(Row("onnxruntime", package, "float32"), WORK))
    assert 1e-3 < gap < LIMITS["int8"]
