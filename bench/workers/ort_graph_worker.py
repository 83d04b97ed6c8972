"""ONNX Runtime alone on one graph file, without tailcut's kernels: the peers int8 and int4, and float32 at its best.

onnxruntime_worker.py on any graph file: the same decoder drives it, so that peers and tailcut are timed over the same loop
(a fused graph's cache is written in place, a standard one's grows by concatenation).
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict

import numpy as np

if TYPE_CHECKING:
    from tailcut.bench.workers import onnxruntime_worker as shared
    from tailcut.bench.workers import wire
    from tailcut.kernels.decoder import Decoder
else:
    import onnxruntime_worker as shared
    import wire


def open_graph(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    import onnxruntime

    from tailcut.kernels.decoder import Decoder
    from tailcut.kernels.session import session_options

    def make() -> Decoder:
        options = session_options(threads=body["threads"], cpus=body["cpus"])
        session = onnxruntime.InferenceSession(body["graph"], options, providers=["CPUExecutionProvider"])
        return Decoder(None, session=session)

    return shared.hold(Path(body["graph"]), body["cpus"], make)


def describe(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    import onnx
    import onnxruntime

    model = shared._state["model"]
    path = model.package
    nodes = Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)
    kinds = ("MatMul", "MatMulNBits", "DynamicQuantizeMatMul", "GroupQueryAttention")
    noted = path.with_name("variant.json")
    weights = json.loads(noted.read_bytes()).get("weights") if noted.is_file() else "float32"
    return {
        "version": onnxruntime.__version__,
        "graph": path.name,
        "kernels": ", ".join(f"{nodes[kind]} {kind}" for kind in kinds if nodes[kind]),
        "weights": weights,
        "cache": f"{model.decoder.cache_type}, {model.decoder.cache}",
        "sparse_kernel": False,
        "thread_cpus": " ".join(wire.thread_cpus()),
    }, {}


def logits(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """Logits float32 [batch, n, vocab] of tokens [batch, n]: half by a prefill, the rest by steps."""
    decoder, tokens = shared._state["model"].fresh(), arrays["tokens"]
    half = (tokens.shape[1] + 1) // 2
    rows = [decoder.prefill(tokens[:, :half])]
    rows += [decoder.step(tokens[:, at])[:, None] for at in range(half, tokens.shape[1])]
    return {}, {"logits": np.concatenate(rows, axis=1)}


if __name__ == "__main__":
    own = {"open": open_graph, "describe": describe, "logits": logits}
    raise SystemExit(wire.serve({**shared.HANDLERS, **own}))
