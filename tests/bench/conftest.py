"""A fake engine on the real protocol, and packages that only have what the bench reads."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from tailcut.allocation import LayerPlan, Unstructured
from tailcut.bench.engines import Phase
from tailcut.bench.sentinel import Reading
from tailcut.bench.worker import Launch
from tailcut.manifest import Manifest, RealisedLayer, file_entries, write_manifest
from tailcut.results import Engagement, Workload

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")
CONFIG = {
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}


@dataclass
class FakeEngine:
    """Satisfies `Engine`; `settings` go to the fake worker, by role of the package's directory name."""

    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    reason: str | None = None
    SEPARATE_PHASES: bool = False
    COMPRESSES: bool = False
    LICENCE: str = "fake licence"
    TOLERANCE: float = 0.0

    def available(self) -> str | None:
        return self.reason

    def where(self) -> str:
        return sys.executable

    def directory(self, package: Path) -> Path:
        return package

    def unfit(self, package: Path, workload: Workload) -> str | None:
        return None

    def launch(self, package: Path, phase: Phase, workload: Workload) -> Launch:
        settings = {"ms": 10.0, "phase": phase} | self.settings.get(package.name, {})
        return Launch(sys.executable, FAKE_WORKER, settings)

    def refuse(self, evidence: Mapping[str, Any]) -> str | None:
        return None if evidence["supported_fraction"] == 1.0 else "only part of the graph is supported"

    def engagement(self, evidence: Mapping[str, Any], zeros: int) -> Engagement:
        return Engagement(evidence["zeros_seen"] >= zeros > 0, f"{evidence['zeros_seen']} zeros seen")


@pytest.fixture
def fake() -> type[FakeEngine]:
    return FakeEngine


@pytest.fixture
def launch() -> Launch:
    return Launch(sys.executable, FAKE_WORKER, {"ms": 5.0})


MakePackage = Callable[..., Path]


@pytest.fixture
def make_package(tmp_path: Path) -> MakePackage:
    """make_package(name, sparsity) -> a package directory of a million parameters without a graph."""

    def make(name: str, sparsity: float = 0.0, notes: tuple[str, ...] = ()) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(CONFIG))
        (directory / "model.onnx.data").write_bytes(b"\1" * int(1000 * (1 - sparsity)))
        size = (1000, 800)
        layer = RealisedLayer(LayerPlan(Unstructured(sparsity)), size, int(size[0] * size[1] * sparsity))
        manifest = Manifest(
            kind="package",
            made_by="test",
            source={"name": name},
            layers={"model.layers.0.mlp.up_proj": layer},
            total_parameters=1_000_000,
            files=file_entries(directory),
            notes=notes,
        )
        write_manifest(manifest, directory)
        return directory

    return make


@pytest.fixture(autouse=True)
def _own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not wait for a benchmark that runs on this machine."""
    monkeypatch.setenv("TAILCUT_BENCH_LOCK", str(tmp_path / "bench.lock"))


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> list[Reading]:
    """The sentinel reads 1 ms, 2 ms, or what the test put into this list, in order; a test's machine is in use."""
    planned: list[Reading] = []

    class Quiet:
        def __init__(self, threads: int) -> None: ...

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...

        def calibrate(self) -> tuple[Reading, ...]:
            return (Reading(1.0, 2.0),) * 4

        def read(self) -> Reading:
            return planned.pop(0) if planned else Reading(1.0, 2.0)

    monkeypatch.setattr("tailcut.bench.turns.Watch", Quiet)
    return planned
