"""tailcut's own kernels on a package. Commands: open, greedy, close. Runs in tailcut's own interpreter."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List

import numpy as np

if TYPE_CHECKING:
    from tailcut.bench.workers import wire
else:
    import wire

_state: Dict[str, Any] = {}


def open_package(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    from tailcut.kernels.decoder import Decoder

    began = time.perf_counter()
    _state["decoder"] = Decoder(Path(body["directory"]), int(body["threads"]), kernels="require")
    return {"load_seconds": time.perf_counter() - began}, {}


def greedy(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """`prompt` [ids] and `count` -> the likeliest token after each, `count` of them, end tokens included."""
    from tailcut.kernels import library

    decoder, count = _state["decoder"], int(body["count"])
    before = library.counters()
    marks = [time.perf_counter()]
    logits = decoder.prefill(np.array([body["prompt"]]), last_only=True)[0, 0]
    tokens: List[int] = [int(logits.argmax())]
    marks.append(time.perf_counter())
    while len(tokens) < count:
        tokens.append(int(decoder.step(np.array(tokens[-1:]))[0].argmax()))
    marks.append(time.perf_counter())
    calls = {name: number - before.get(name, 0) for name, number in library.counters().items()}
    reply = {"tokens": tokens, "prefill_s": marks[1] - marks[0], "decode_s": marks[2] - marks[1]}
    return {**reply, "proof": _proof(calls), "versions": _versions()}, {}


def _proof(calls: Dict[str, int]) -> Dict[str, Any]:
    """Which of tailcut's kernels were called while these tokens were made, and how often."""
    from tailcut.kernels import library

    called = {name: number for name, number in calls.items() if number}
    return {
        "kernels": ", ".join(f"{number} calls of {name}" for name, number in sorted(called.items()))
        or "none: ONNX Runtime's dense products",
        "sparse_kernel": any(name.split()[1] != "dense" for name in called),
        "isa": library.best_isa(),
    }


def _versions() -> Dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("tailcut", "onnxruntime", "numpy")}


if __name__ == "__main__":
    raise SystemExit(wire.serve({"open": open_package, "greedy": greedy}))
