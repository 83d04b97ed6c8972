"""onnxruntime_worker.py with each decode step made longer by a known share: `open` gets `slowed`, 0.03 for 3 %.

After the step the worker spins for that share of the time the step took, inside what is timed. The true ratio of two
workers on one package is therefore known, whatever the step takes, and its noise is the noise of real steps.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tailcut.bench.workers import onnxruntime_worker as shared
    from tailcut.bench.workers import wire
    from tailcut.kernels.decoder import Decoder
else:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench" / "workers"))
    import onnxruntime_worker as shared
    import wire


def open_package(body: dict[str, Any], arrays: dict[str, Any]) -> wire.Frame:
    reply = shared.open_package({**body, "kernels": "auto"}, arrays)
    slow(shared._state["model"].decoder, float(body["slowed"]))
    return reply


def slow(decoder: Decoder, share: float) -> None:
    """Have every step of this decoder take `share` longer."""
    step = decoder.step

    def slowed(tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        began = time.perf_counter()
        logits: np.ndarray[Any, Any] = step(tokens)
        until = began + (1.0 + share) * (time.perf_counter() - began)
        while time.perf_counter() < until:
            pass
        return logits

    decoder.step = slowed  # type: ignore[method-assign]


if __name__ == "__main__":
    raise SystemExit(wire.serve({**shared.HANDLERS, "open": open_package}))
