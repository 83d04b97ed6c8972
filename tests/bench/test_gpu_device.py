"""What is said of a machine's GPU and of the packages that use it, without importing torch."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tailcut.bench import gpu_device
from tailcut.bench.gpu_device import Gpu, gpu_problem, torch_has_cuda

H100 = Gpu("NVIDIA H100", (9, 0), 80 << 30, 50 << 20, 132, "13.0")


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The GPU and the packages that a machine has; change it before asking."""
    machine: dict[str, object] = {"gpu": H100, "packages": {"torch", "triton"}, "cuda": True}
    monkeypatch.setattr(gpu_device, "find_gpu", lambda: machine["gpu"])
    monkeypatch.setattr(gpu_device, "find_spec", lambda name: name in machine["packages"] or None)  # type: ignore[operator]
    monkeypatch.setattr(gpu_device, "torch_has_cuda", lambda: machine["cuda"])
    return machine


def test_a_machine_that_has_everything(found: dict[str, object]) -> None:
    assert gpu_problem(triton=True) is None
    assert gpu_device.describe_gpu()["capability"] == "9.0"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gpu": Gpu("NVIDIA V100", (7, 0), 1, 1, 80, "12.0")}, "NVIDIA V100 has compute capability 7.0, 8.0"),
        ({"packages": {"triton"}}, "torch is not installed"),
        ({"cuda": False}, "CPU build"),
        ({"packages": {"torch"}}, "triton is not installed"),
    ],
)
def test_what_is_missing_is_said(found: dict[str, object], change: dict[str, object], said: str) -> None:
    found |= change
    assert said in str(gpu_problem(triton=True))


def test_triton_only_counts_where_it_is_needed(found: dict[str, object]) -> None:
    found["packages"] = {"torch"}
    assert gpu_problem() is None


@pytest.mark.parametrize(("status", "said"), [((100, 0), "cuInit says 100"), ((0, 101), "cuDeviceGet says 101")])
def test_a_driver_without_a_gpu(monkeypatch: pytest.MonkeyPatch, status: tuple[int, int], said: str) -> None:
    driver = SimpleNamespace(cuInit=lambda flags: status[0], cuDeviceGet=lambda device, number: status[1])
    monkeypatch.setattr(gpu_device.ctypes, "CDLL", lambda name: driver)
    assert said in str(gpu_problem())


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(gpu_device.ctypes, "CDLL", absent)
    assert "no NVIDIA driver" in str(gpu_problem())


@pytest.mark.parametrize(
    ("line", "built"),
    [("cuda: Optional[str] = None", False), ("cuda: Optional[str] = '13.0'", True), ("cuda = '12.8'", True)],
)
def test_the_build_of_torch_is_read_from_its_version_file(
    line: str, built: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "version.py").write_text(f"__version__ = '9'\n__all__ = ['cuda']\n{line}\n")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(gpu_device, "find_spec", lambda name: spec)
    assert torch_has_cuda() is built
