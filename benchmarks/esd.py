"""Cost of the eigenvalue densities of a model: seconds, peak memory, seconds a matrix, and what 7B would take.

    python benchmarks/esd.py MODEL --out benchmarks/results/alloc_esd.json

Measures MODEL with an empty cache, then again with the cache it left. Two extrapolations to LLaMA-7B are given:
a fit of t = a m^3 + b m^2 n (eigenvalues + Gram matrix, m <= n the matrix's sides) to this model's
matrices, and the measured time of one Gaussian matrix of each 7B shape times their count.
"""

import argparse
import json
import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tailcut.allocation import LayerScore
from tailcut.bench.machine import describe_machine
from tailcut.compress.measure import Measured, measure
from tailcut.compress.metrics import alpha_peak
from tailcut.compress.spectra import gram_eigenvalues, significant
from tailcut.files import write_file

LLAMA_7B = {(4096, 4096): 4 * 32, (4096, 11008): 3 * 32}  # (m, n) -> matrices


class AnonymousMemory(threading.Thread):
    """Samples this process's anonymous resident memory: what is allocated, without pages of mapped files."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.wait(0.01):
            self.peak_bytes = max(self.peak_bytes, anonymous_bytes())


def anonymous_bytes() -> int:
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024


def peak_rss_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Stopwatch:
    """A reporter that notes when each matrix begins."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        self.times.append(time.perf_counter())

    def seconds(self) -> list[float]:
        return np.diff(self.times).tolist()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    value = work()
    return time.perf_counter() - start, value


def sides(layer: LayerScore) -> tuple[int, int]:
    return min(layer.shape), max(layer.shape)


def fit_cost(measured: Measured, seconds: list[float]) -> npt.NDArray[np.float64]:
    """(a, b) of t = a m^3 + b m^2 n, least squares over the matrices, float64 [2]."""
    shapes = [sides(layer) for layer in measured.scores.layers]
    terms = np.array([[float(m) ** 3, float(m) ** 2 * n] for m, n in shapes])
    solution: npt.NDArray[np.float64] = np.linalg.lstsq(terms, np.array(seconds), rcond=None)[0]
    return solution


def time_shape(m: int, n: int) -> float:
    """Seconds for one Gaussian float16 matrix [m, n]: eigenvalues and the alpha_peak fit."""
    weight = np.random.default_rng(0).standard_normal((m, n), np.float32).astype(np.float16)
    return timed(lambda: alpha_peak.fit(significant(gram_eigenvalues(weight))))[0]


def run(model: Path) -> dict[str, Any]:
    memory = AnonymousMemory()
    before = {"rss_bytes": peak_rss_bytes(), "anonymous_bytes": anonymous_bytes()}
    memory.start()
    with tempfile.TemporaryDirectory() as cache:
        cold, warm = Stopwatch(), Stopwatch()
        cpu_start = time.process_time()
        cold_s, measured = timed(lambda: measure(model, device="cpu", cache=Path(cache), report=cold))
        cpu_s = time.process_time() - cpu_start
        peak = {"rss_bytes": peak_rss_bytes(), "anonymous_bytes": memory.peak_bytes}
        warm_s, again = timed(lambda: measure(model, device="cpu", cache=Path(cache), report=warm))
    memory.stop.set()
    assert again.scores == measured.scores
    layers = measured.scores.layers
    raw = [{"name": x.name, "shape": x.shape, "s": s} for x, s in zip(layers, cold.seconds(), strict=True)]
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    return {
        "model": {"parameters": measured.scores.total_parameters, "matrices": len(layers), "weights_bytes": size},
        "seconds": {
            "cold_cache": cold_s,
            "cold_cache_cpu": cpu_s,
            "matrices": sum(cold.seconds()),
            "warm_cache": warm_s,
        },
        "memory_before": before,
        "memory_peak": peak,
        "per_matrix": raw,
        "llama_7b": extrapolate(measured, cold.seconds()),
    }


def extrapolate(measured: Measured, seconds: list[float]) -> dict[str, Any]:
    cubic, gram = fit_cost(measured, seconds)
    fitted = sum(count * (cubic * m**3 + gram * m**2 * n) for (m, n), count in LLAMA_7B.items())
    direct = {shape: time_shape(*shape) for shape in LLAMA_7B}
    return {
        "assumption": "32 blocks of 4 matrices 4096x4096 and 3 of 4096x11008, same machine and threads",
        "fit_seconds_per_m3": cubic,
        "fit_seconds_per_m2n": gram,
        "from_fit_s": fitted,
        "one_matrix_s": {f"{m}x{n}": s for (m, n), s in direct.items()},
        "from_one_matrix_each_s": sum(LLAMA_7B[shape] * s for shape, s in direct.items()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a Hugging Face directory")
    parser.add_argument("--out", type=Path, required=True, help="where to write the JSON result")
    options = parser.parse_args()
    result = {"what": "cost of the eigenvalue densities", "command": f"python benchmarks/esd.py {options.model.name}"}
    result |= {"machine": asdict(describe_machine()), "load_average_at_start": os.getloadavg()} | run(options.model)
    write_file(options.out, (json.dumps(result, indent=1) + "\n").encode())
    summary = {key: result[key] for key in ("model", "seconds", "memory_before", "memory_peak", "llama_7b")}
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
