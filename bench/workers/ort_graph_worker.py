"""ONNX Runtime alone on one graph file, without tailcut's kernels: the peers int8 and int4, and float32 at its best.

Commands: open, describe, prefill, decode, logits, close. Two kinds of graph are driven: the fused one, whose cache is
written in place (IO binding over buffers of the whole context), and the standard one, whose cache grows by
concatenation. Threads are pinned one a CPU. Before timed decode steps the cache holds seeded noise: latency does not
depend on its values, and filling it for real would cost a prefill a visit.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List

import numpy as np

if TYPE_CHECKING:
    from tailcut.bench.workers import wire
else:
    import wire

_PAST = "past_key_values."
_state: Dict[str, Graph] = {}


class Graph:
    """An open session and its cache: float32 [batch, kv heads, capacity, head_dim] a layer, keys and values."""

    def __init__(self, path: str, threads: int, cpus: List[int]) -> None:
        import onnxruntime

        from tailcut.kernels.session import session_options

        options = session_options(threads=threads)
        if threads > 1 and len(cpus) == threads:  # the calling thread is the first; CPUs are counted from 1 here
            entry = ";".join(str(cpu + 1) for cpu in cpus[1:])
            options.add_session_config_entry("session.intra_op_thread_affinities", entry)
        began = time.perf_counter()
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.load_seconds = time.perf_counter() - began
        wire.pin(cpus[:1])
        self.value = onnxruntime.OrtValue.ortvalue_from_numpy
        self.path = path
        shapes = {value.name: value.shape for value in self.session.get_inputs()}
        self.past = {name: (int(shape[1]), int(shape[3])) for name, shape in shapes.items() if name.startswith(_PAST)}
        self.outputs = [value.name for value in self.session.get_outputs()]
        self.fused = "seqlens_k" in shapes
        self.cache: Dict[str, Any] = {}
        self.length = 0  # cached tokens

    def start(self, batch: int, capacity: int, past: int = 0, seed: int = 0) -> None:
        """An empty cache for `capacity` tokens, or one that holds `past` tokens of noise."""
        rng = np.random.default_rng(seed)
        slots = capacity if self.fused else past
        self.cache = {}
        for name, (heads, width) in self.past.items():
            array = np.zeros((batch, heads, slots, width), np.float32)
            array[:, :, :past] = rng.standard_normal((batch, heads, past, width), np.float32)
            self.cache[name] = self.value(array)
        self.length = past

    def run(self, tokens: np.ndarray[Any, Any], every: bool = False) -> np.ndarray[Any, Any]:
        """Append tokens int64 [batch, n] -> logits [batch, n or 1, vocab]; `every` asks for all positions."""
        ids = np.ascontiguousarray(tokens, np.int64)
        found = self._in_place(ids, every) if self.fused else self._growing(ids)
        self.length += ids.shape[1]
        return found

    def _in_place(self, ids: np.ndarray[Any, Any], every: bool) -> np.ndarray[Any, Any]:
        batch, count = ids.shape
        total = self.length + count
        feeds = {
            "input_ids": ids,
            "seqlens_k": np.full(batch, total - 1, np.int32),
            "total_sequence_length": np.asarray(total, np.int32),
            "logits_from": np.asarray([0 if every else count - 1], np.int64),
        }
        binding = self.session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, self.value(array))
        for name, held in self.cache.items():
            binding.bind_ortvalue_input(name, held)
            binding.bind_ortvalue_output(name.replace(_PAST, "present."), held)
        binding.bind_output("logits")
        self.session.run_with_iobinding(binding)
        # the logits are the one output of three dimensions; the others are the cache
        return next(np.asarray(value.numpy()) for value in binding.get_outputs() if len(value.shape()) == 3)

    def _growing(self, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        batch, count = ids.shape
        positions = np.broadcast_to(np.arange(self.length, self.length + count, dtype=np.int64), ids.shape)
        feeds = {
            "input_ids": self.value(ids),
            "attention_mask": self.value(np.ones((batch, self.length + count), np.int64)),
            "position_ids": self.value(np.ascontiguousarray(positions)),
        }
        found = dict(zip(self.outputs, self.session.run_with_ort_values(self.outputs, {**feeds, **self.cache})))
        self.cache = {name: found[name.replace(_PAST, "present.")] for name in self.past}
        return np.asarray(found["logits"].numpy())


def open_package(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    wire.pin(body["cpus"])
    _state["graph"] = Graph(body["graph"], body["threads"], body["cpus"])
    return {"load_seconds": _state["graph"].load_seconds}, {}


def describe(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    import onnx
    import onnxruntime

    path = Path(_state["graph"].path)
    nodes = Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)
    kinds = ("MatMul", "MatMulNBits", "DynamicQuantizeMatMul", "GroupQueryAttention")
    noted = path.with_name("variant.json")
    weights = json.loads(noted.read_bytes()).get("weights") if noted.is_file() else "float32"
    return {
        "version": onnxruntime.__version__,
        "graph": path.name,
        "kernels": ", ".join(f"{nodes[kind]} {kind}" for kind in kinds if nodes[kind]),
        "weights": weights,
        "cache": "float32, " + ("in place" if _state["graph"].fused else "concatenated"),
        "sparse_kernel": False,
        "thread_cpus": " ".join(wire.thread_cpus()),
    }, {}


def prefill(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """Time `repeats` prefills of tokens [batch, prompt] from an empty cache, after `warmup` discarded ones."""
    graph, tokens, times = _state["graph"], arrays["tokens"], []
    for _ in range(body["warmup"] + body["repeats"]):
        graph.start(tokens.shape[0], tokens.shape[1])
        began = time.perf_counter()
        graph.run(tokens)
        times.append(1e3 * (time.perf_counter() - began))
    return {}, {"ms": np.asarray(times[body["warmup"] :])}


def decode(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """Time `steps` steps that end at `context` cached positions, after `warmup` discarded ones."""
    graph, tokens, times = _state["graph"], arrays["tokens"], []
    total = body["warmup"] + body["steps"]
    graph.start(tokens.shape[0], body["context"], body["context"] - total, body["seed"])
    for step in range(total):
        began = time.perf_counter()
        graph.run(tokens[:, step : step + 1])
        times.append(1e3 * (time.perf_counter() - began))
    return {}, {"ms": np.asarray(times[body["warmup"] :])}


def logits(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """Logits float32 [batch, n, vocab] of tokens [batch, n]: half by a prefill, the rest by steps."""
    graph, tokens = _state["graph"], arrays["tokens"]
    count = tokens.shape[1]
    half = (count + 1) // 2
    graph.start(tokens.shape[0], count)
    rows = [graph.run(tokens[:, :half], every=True)]
    rows += [graph.run(tokens[:, at : at + 1]) for at in range(half, count)]
    return {}, {"logits": np.concatenate(rows, axis=1)}


if __name__ == "__main__":
    raise SystemExit(
        wire.serve({"open": open_package, "describe": describe, "prefill": prefill, "decode": decode, "logits": logits})
    )
