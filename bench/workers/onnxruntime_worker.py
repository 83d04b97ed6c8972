"""ONNX Runtime in its own process, on a package directory. Runs in tailcut's own interpreter.

Commands: open, describe, prefill (time whole prompts), decode (time steps from a filled cache), serve (concurrent
sequences), logits, score (perplexity windows), close. What is timed is `tailcut.kernels.Decoder`, the loop a deployer gets;
`open` says whether with tailcut's kernels ("require", from tailcut_worker.py) or, as the baseline, without them ("off").
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List

import numpy as np

if TYPE_CHECKING:
    from tailcut.bench.workers import serving, wire
    from tailcut.kernels.decoder import Decoder
    from tailcut.kernels.session import Kernels
else:
    import serving
    import wire

_state: Dict[str, Model] = {}


class Model:
    """An open package, its decoder, and where a filled cache of some length ended."""

    def __init__(self, package: Path, make: Callable[[], Decoder]) -> None:
        began = time.perf_counter()
        self.decoder = make()
        self.load_seconds = time.perf_counter() - began
        self.package = package
        self.marks: Dict[int, Any] = {}

    def at(self, tokens: np.ndarray[Any, Any], past: int) -> Decoder:
        """The decoder after `past` tokens [batch, >= past]: noise where the cache is in place, else a real prefill."""
        if past not in self.marks:
            if not self.fresh().pretend(tokens.shape[0], past):
                self.decoder.prefill(tokens[:, :past], last_only=True)
            self.marks = {past: self.decoder.mark()}
        self.decoder.rewind(self.marks[past])
        return self.decoder

    def fresh(self) -> Decoder:
        """The decoder, about to start a new sequence."""
        self.marks = {}
        return self.decoder


def open_package(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    from tailcut.kernels.decoder import Decoder

    package, cpus = Path(body["package"]), body["cpus"]
    kernels: Kernels = body.get("kernels", "off")
    return hold(package, cpus, lambda: Decoder(package, body["threads"], kernels=kernels, cpus=cpus))


def hold(package: Path, cpus: List[int], make: Callable[[], Decoder]) -> wire.Frame:
    """Open what the other commands work on, its threads pinned one a CPU."""
    wire.pin(cpus)
    _state["model"] = Model(package, make)
    wire.pin(cpus[:1])  # the other threads have their own by now
    return {"load_seconds": _state["model"].load_seconds}, {}


def describe(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    import onnxruntime

    return {
        "version": onnxruntime.__version__,
        "provider": ", ".join(_state["model"].decoder.session.get_providers()),
        "kernels": "dense kernels: ONNX Runtime folds zeros to dense",
        "sparse_kernel": False,
        "zeros_seen": _zeros(_state["model"].package),
        "thread_cpus": " ".join(wire.thread_cpus()),
    }, {}


def _zeros(package: Path) -> int:
    """Zero weights in the package's matrices, packed or written out."""
    from tailcut.kernels.package import open_package as open_files
    from tailcut.kernels.stored import stored_matrices

    files = open_files(package)
    packed = sum(matrix.zeros for matrix in stored_matrices(files))
    # data_location 1 is external: the weights, as against the graph's small constants
    outside = (files.array(t) for t in files.model.graph.initializer if t.data_location == 1 and len(t.dims) == 2)
    return packed + sum(int(np.count_nonzero(array == 0)) for array in outside if array.dtype == np.float32)


def prefill(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """Time `repeats` prompts [batch, prompt] up to the logits of the next token, after `warmup` discarded ones."""
    decoder, times = _state["model"].fresh(), []
    for _ in range(body["warmup"] + body["repeats"]):
        began = time.perf_counter()
        decoder.prefill(arrays["tokens"], last_only=True)
        times.append(1e3 * (time.perf_counter() - began))
    return {}, {"ms": np.asarray(times[body["warmup"] :])}


def decode(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """Time `steps` steps that end at `context` cached positions, after `warmup` discarded ones."""
    tokens = arrays["tokens"]
    total = body["warmup"] + body["steps"]
    decoder, times = _state["model"].at(tokens, body["context"] - total), []
    for step in range(total):
        began = time.perf_counter()
        decoder.step(tokens[:, step])
        times.append(1e3 * (time.perf_counter() - began))
    return {}, {"ms": np.asarray(times[body["warmup"] :])}


def logits(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """Logits float32 [batch, n, vocab] of tokens [batch, n]."""
    return {}, {"logits": _state["model"].fresh().prefill(arrays["tokens"])}


def serve(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """Concurrent sequences: see serving.py."""
    return serving.serve(_state["model"].decoder, body)


def score(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """Nats summed over all positions but the first: tokens [windows, context] -> [windows] float64."""
    decoder = _state["model"].fresh()
    return {}, {"nll": np.asarray([_window_nll(decoder, window) for window in arrays["tokens"]], np.float64)}


def _window_nll(decoder: Decoder, window: np.ndarray[Any, Any]) -> float:
    scores = decoder.prefill(window[None])[0, :-1].astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    chosen = np.take_along_axis(scores, window[1:, None], axis=1)[:, 0]
    return float((np.log(np.exp(scores).sum(axis=1)) - chosen).sum())


HANDLERS: Dict[str, wire.Handler] = {
    "open": open_package,
    "describe": describe,
    "prefill": prefill,
    "decode": decode,
    "logits": logits,
    "serve": serve,
    "score": score,
}

if __name__ == "__main__":
    raise SystemExit(wire.serve(HANDLERS))
