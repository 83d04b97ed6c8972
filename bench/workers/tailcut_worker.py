"""tailcut's own kernels inside ONNX Runtime, on a package directory: onnxruntime_worker.py with the kernels required.

`describe` runs one token and reports how often which kernel was called for it: the proof of what is timed. It also holds
single matrices of the package to float arithmetic (`matrix_gap`, at most 1): that check does not depend on the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict

import numpy as np

if TYPE_CHECKING:
    from tailcut.bench.workers import onnxruntime_worker as shared
    from tailcut.bench.workers import wire
else:
    import onnxruntime_worker as shared
    import wire


def open_package(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    return shared.open_package({**body, "kernels": "require"}, arrays)


def describe(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    from tailcut.kernels import library
    from tailcut.kernels.package import open_package as open_files
    from tailcut.kernels.parity import worst
    from tailcut.kernels.stored import stored_matrices

    known, _ = shared.describe(body, arrays)
    gap = worst(stored_matrices(open_files(shared._state["model"].package)))
    model = shared._state["model"]
    before = library.counters()
    model.fresh().prefill(np.zeros((1, 1), np.int64))
    calls = {name: count - before.get(name, 0) for name, count in library.counters().items()}
    calls = {name: count for name, count in calls.items() if count}
    return {
        **known,
        "kernels": ", ".join(f"{name} {count} times a token" for name, count in calls.items()) or "none of tailcut's",
        "calls_a_token": sum(calls.values()),
        "sparse_kernel": any(name.split()[1] != "dense" for name in calls),
        "isa": library.best_isa(),
        "matrix_gap": gap,
        "cache": f"{model.decoder.cache_type}, {model.decoder.cache}",
        "weight_bytes": library.packed_bytes() + _plain_bytes(model.package, model.decoder.cache == "in place"),
    }, {}


def _plain_bytes(package: Path, fused: bool) -> int:
    """Bytes of the matrices that ONNX Runtime multiplies with itself."""
    from tailcut.kernels.package import FUSED_NAME, MODEL_NAME, read_model

    graph = read_model(package / (FUSED_NAME if fused else MODEL_NAME)).graph
    used = {name for node in graph.node if node.op_type in ("MatMul", "Gemm") for name in node.input}
    lengths = [{entry.key: entry.value for entry in t.external_data} for t in graph.initializer if t.name in used]
    return sum(int(entries.get("length", 0)) for entries in lengths)


if __name__ == "__main__":
    raise SystemExit(wire.serve({**shared.HANDLERS, "open": open_package, "describe": describe}))
