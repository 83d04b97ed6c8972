"""ONNX Runtime in its own process, on a package directory. Runs in tailcut's own interpreter.

Commands: open, describe, prefill (time whole prompts), decode (time steps from a filled cache), logits, score
(perplexity windows), close. The session is the one a deployer gets from `tailcut.kernels`; the cache is handed
back and forth as OrtValues, so a step copies no more than the graph itself does.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict

import numpy as np

if TYPE_CHECKING:
    from onnxruntime import InferenceSession as Session

    from tailcut.bench.workers import wire
else:
    import wire

_state: Dict[str, Model] = {}


class Model:
    """A session, the names of its inputs, and one filled cache to decode from."""

    def __init__(self, session: Session, load_seconds: float) -> None:
        self.session = session
        self.load_seconds = load_seconds
        self.outputs = [output.name for output in session.get_outputs()]
        self.pasts = [item for item in session.get_inputs() if item.name.startswith("past_key_values.")]
        self.filled: Dict[str, Any] = {}

    def run(self, tokens: np.ndarray[Any, Any], cache: Dict[str, Any], past: int) -> Dict[str, Any]:
        """tokens int64 [batch, n] after `past` cached positions -> outputs by name, as OrtValues."""
        import onnxruntime

        batch, length = tokens.shape
        positions = np.broadcast_to(np.arange(past, past + length, dtype=np.int64), (batch, length))
        feeds = {
            "input_ids": tokens,
            "attention_mask": np.ones((batch, past + length), np.int64),
            "position_ids": np.ascontiguousarray(positions),
        }
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
        return dict(zip(self.outputs, self.session.run_with_ort_values(self.outputs, {**values, **cache})))

    def empty(self, batch: int) -> Dict[str, Any]:
        """A cache of past length 0: each entry float32 [batch, heads, 0, head_dim]."""
        import onnxruntime

        shapes = {item.name: (batch, int(item.shape[1]), 0, int(item.shape[3])) for item in self.pasts}
        return {n: onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(s, np.float32)) for n, s in shapes.items()}

    def carried(self, outputs: Dict[str, Any]) -> Dict[str, Any]:
        return {item.name: outputs[item.name.replace("past_key_values.", "present.", 1)] for item in self.pasts}


def open_package(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    wire.pin(body["cpus"])
    from tailcut.kernels.session import load_session

    began = time.perf_counter()
    session = load_session(Path(body["package"]), threads=body["threads"])
    _state["model"] = Model(session, time.perf_counter() - began)
    return {"load_seconds": _state["model"].load_seconds}, {}


def describe(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    import onnxruntime

    return {
        "version": onnxruntime.__version__,
        "provider": ", ".join(_state["model"].session.get_providers()),
        "kernels": "dense kernels: ONNX Runtime folds zeros to dense",
        "sparse_kernel": False,
        "thread_cpus": " ".join(wire.thread_cpus()),
    }, {}


def prefill(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """Time `repeats` prefills of tokens [batch, prompt] from an empty cache, after `warmup` discarded ones."""
    model, tokens = _state["model"], arrays["tokens"]
    empty = model.empty(len(tokens))
    times = []
    for _ in range(body["warmup"] + body["repeats"]):
        began = time.perf_counter()
        model.run(tokens, empty, 0)
        times.append(1e3 * (time.perf_counter() - began))
    return {}, {"ms": np.asarray(times[body["warmup"] :])}


def decode(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """Time `steps` steps that end at `context` cached positions, after `warmup` discarded ones.

    tokens [batch, at least context - steps - warmup] fill the cache by a real prefill, the first time.
    """
    model, tokens = _state["model"], arrays["tokens"]
    total = body["warmup"] + body["steps"]
    past = body["context"] - total
    if not model.filled:
        model.filled = model.carried(model.run(tokens[:, :past], model.empty(len(tokens)), 0))
    cache, times = model.filled, []
    for step in range(total):
        began = time.perf_counter()
        cache = model.carried(model.run(tokens[:, step : step + 1], cache, past + step))
        times.append(1e3 * (time.perf_counter() - began))
    return {}, {"ms": np.asarray(times[body["warmup"] :])}


def logits(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """Logits float32 [batch, n, vocab] of tokens [batch, n]."""
    model, tokens = _state["model"], arrays["tokens"]
    return {}, {"logits": model.run(tokens, model.empty(len(tokens)), 0)["logits"].numpy()}


def score(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """Negative log-likelihood in nats, summed over all positions but the first: tokens [windows, context] -> [windows]."""
    model = _state["model"]
    sums = [_window_nll(model, window[None]) for window in arrays["tokens"]]
    return {}, {"nll": np.asarray(sums, np.float64)}


def _window_nll(model: Model, window: np.ndarray[Any, Any]) -> float:
    scores = model.run(window, model.empty(1), 0)["logits"].numpy()[0, :-1].astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    chosen = np.take_along_axis(scores, window[0, 1:, None], axis=1)[:, 0]
    return float((np.log(np.exp(scores).sum(axis=1)) - chosen).sum())


if __name__ == "__main__":
    raise SystemExit(
        wire.serve(
            {
                "open": open_package,
                "describe": describe,
                "prefill": prefill,
                "decode": decode,
                "logits": logits,
                "score": score,
            }
        )
    )
