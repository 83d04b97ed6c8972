"""DeepSparse 1.8 in its own process, on the static-shape variant of a package. Python 3.8 to 3.11.

Commands: open, describe, prefill, decode, logits, close. One graph a process: decode.onnx or prefill.onnx.
The KV cache stays here as plain arrays; a step returns only its new rows, which are written in place into the
slot of their position. (The engine's own cache gives other logits when it is full, and aborts with grouped
query attention.) Its asserts end the process; the bench reports that.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Dict, List

import numpy as np

if TYPE_CHECKING:
    from tailcut.bench.workers import wire
else:
    import wire

MASKED = -1e9  # added to a score: exp() of it is exactly 0 in float32, and no sum with it overflows
_state: Dict[str, Graph] = {}


class Graph:
    """A compiled static graph: inputs by name, cache arrays float32 [1, kv heads, slots, head_dim] for decode."""

    def __init__(self, engine: Any, load_seconds: float, body: Dict[str, Any]) -> None:  # noqa: ANN401
        self.engine = engine
        self.load_seconds = load_seconds
        self.data = os.path.join(body["package"], "model.onnx.data")
        self.zeros = body.get("zeros")  # known from the making of an int8 variant, else counted in the file
        self.shapes = {name: tuple(shape) for name, shape in zip(engine.input_names, engine.input_shapes)}
        self.outputs: List[str] = list(engine.output_names)
        caches = [name for name in engine.input_names if name.startswith("past_key_values.")]
        self.cache = {name: np.zeros(self.shapes[name], np.float32) for name in caches}

    @property
    def window(self) -> int:
        """Columns of the attention bias: the context of decode.onnx, the prompt of prefill.onnx."""
        return int(self.shapes["attention_bias"][-1])

    def run(self, feeds: Dict[str, Any]) -> Dict[str, Any]:
        inputs = [self.cache[name] if name in self.cache else feeds[name] for name in self.shapes]
        return dict(zip(self.outputs, self.engine.run(inputs, False)))

    def whole(self, tokens: np.ndarray[Any, Any]) -> Dict[str, Any]:
        """Prefill of exactly the exported prompt: tokens int64 [1, prompt]."""
        length = tokens.shape[1]
        bias = np.triu(np.full((length, length), MASKED, np.float32), 1)[None, None]
        positions = np.arange(length, dtype=np.int64)[None]
        return self.run({"input_ids": tokens, "position_ids": positions, "attention_bias": bias})

    def step(self, token: int, position: int) -> np.ndarray[Any, Any]:
        """One token after `position` cached ones -> logits [vocab]; its rows go into the cache."""
        bias = np.full((1, 1, 1, self.window), MASKED, np.float32)
        bias[..., :position] = 0.0
        bias[..., -1] = 0.0  # the last column is the new token itself
        at = np.array([[position]], np.int64)
        outputs = self.run({"input_ids": np.array([[token]], np.int64), "position_ids": at, "attention_bias": bias})
        if position < self.window - 1:
            for name, slots in self.cache.items():
                rows = outputs[name.replace("past_key_values.", "new.", 1)]
                slots[:, :, position] = rows[:, :, 0]
        row: np.ndarray[Any, Any] = outputs["logits"][0, 0]
        return row


def open_package(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    if int(np.__version__.split(".")[0]) >= 2:
        raise RuntimeError(f"numpy {np.__version__} gives silently wrong results with DeepSparse; it needs numpy < 2")
    wire.pin(body["cpus"])
    from deepsparse import Engine

    path = os.path.join(body["package"], body["phase"] + ".onnx")
    began = time.perf_counter()
    engine = Engine(model=path, batch_size=1, num_cores=body["threads"])
    graph = Graph(engine, time.perf_counter() - began, body)
    if graph.window != body["window"]:
        wanted = "context" if body["phase"] == "decode" else "prompt"
        raise RuntimeError(f"the static package was exported for {wanted} {graph.window}, not {body['window']}")
    _state["graph"] = graph
    return {"load_seconds": graph.load_seconds}, {}


def describe(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    import deepsparse

    graph = _state["graph"]
    engine = graph.engine
    return {
        "version": deepsparse.__version__,
        "numpy": np.__version__,
        "supported_fraction": float(engine.fraction_of_supported_ops),
        "zeros_seen": _zeros(graph.data) if graph.zeros is None else graph.zeros,
        "isa": engine.cpu_avx_type + (" vnni" if engine.cpu_vnni else ""),
        "num_cores": int(engine.num_cores),
        "cache": "external, written in place",
        "kernels": "DeepSparse compiles weights with zeros to sparse kernels",
        "thread_cpus": " ".join(wire.thread_cpus()),
    }, {}


def _zeros(path: str) -> int:
    """Zero float32 words of the weight file that the engine read."""
    words = np.memmap(path, np.float32, "r", shape=(os.path.getsize(path) // 4,))
    chunk = 1 << 24
    return sum(int(np.count_nonzero(words[at : at + chunk] == 0)) for at in range(0, len(words), chunk))


def prefill(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """Time `repeats` prefills of tokens [1, prompt], after `warmup` discarded ones."""
    graph, times = _state["graph"], []
    for _ in range(body["warmup"] + body["repeats"]):
        began = time.perf_counter()
        graph.whole(arrays["tokens"])
        times.append(1e3 * (time.perf_counter() - began))
    return {}, {"ms": np.asarray(times[body["warmup"] :])}


def decode(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """Time `steps` steps that end at `context` cached positions, after `warmup` discarded ones.

    Slots before the first step hold seeded noise: latency does not depend on their values, and the engine
    always computes over the whole static window.
    """
    graph, tokens = _state["graph"], arrays["tokens"][0]
    total = body["warmup"] + body["steps"]
    first = body["context"] - total
    rng = np.random.default_rng(body["seed"])
    for slots in graph.cache.values():
        slots[...] = rng.standard_normal(slots.shape, np.float32)
    times = []
    for step in range(total):
        began = time.perf_counter()
        graph.step(int(tokens[step]), first + step)
        times.append(1e3 * (time.perf_counter() - began))
    return {}, {"ms": np.asarray(times[body["warmup"] :])}


def logits(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """Logits float32 [1, n, vocab] of the first tokens [1, n]: from an empty cache, or by a padded prefill."""
    graph, tokens = _state["graph"], arrays["tokens"]
    count = tokens.shape[1]
    if graph.cache:
        rows = [graph.step(int(token), position) for position, token in enumerate(tokens[0])]
        return {}, {"logits": np.stack(rows)[None]}
    padded = np.zeros((1, graph.window), np.int64)  # causal: what follows cannot reach the first rows
    padded[:, :count] = tokens
    return {}, {"logits": np.asarray(graph.whole(padded)["logits"])[:, :count]}


if __name__ == "__main__":
    raise SystemExit(
        wire.serve({"open": open_package, "describe": describe, "prefill": prefill, "decode": decode, "logits": logits})
    )
