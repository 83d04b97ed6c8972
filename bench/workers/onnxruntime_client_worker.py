"""model.onnx in a plain ONNX Runtime: nothing of tailcut's is imported, no operator library is registered.

Commands: open, greedy, close.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Dict, List

import numpy as np

if TYPE_CHECKING:
    from tailcut.bench.workers import wire
else:
    import wire

PAST = "past_key_values."
_state: Dict[str, Any] = {}


def open_package(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(body["threads"])
    options.log_severity_level = 4  # what goes wrong comes as an exception
    began = time.perf_counter()
    path = os.path.join(body["directory"], "model.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    _state.update(session=session, path=path)
    return {"load_seconds": time.perf_counter() - began}, {}


def greedy(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """`prompt` [ids] and `count` -> the likeliest token after each, `count` of them, end tokens included.

    Returns also top2 float32 [count, 2]: the two largest logits of every step, so that a difference can be judged.
    """
    session = _state["session"]
    wanted = [value.name for value in session.get_outputs()]
    cache = {value.name: _empty(value) for value in session.get_inputs() if value.name.startswith(PAST)}
    ids, length, best = list(body["prompt"]), 0, []
    tokens: List[int] = []
    marks = [time.perf_counter()]
    while len(tokens) < int(body["count"]):
        length += len(ids)
        found = dict(zip(wanted, session.run(wanted, {**_feeds(ids, length), **cache})))
        logits = found["logits"][0, -1]
        tokens.append(int(logits.argmax()))
        best.append(np.sort(np.partition(logits, -2)[-2:])[::-1])
        cache = {name: found[name.replace(PAST, "present.")] for name in cache}
        ids = tokens[-1:]
        marks.append(time.perf_counter())
    reply = {"tokens": tokens, "prefill_s": marks[1] - marks[0], "decode_s": marks[-1] - marks[1]}
    return {**reply, "proof": _proof(), "versions": _versions()}, {"top2": np.array(best, np.float32)}


def _empty(value: Any) -> Any:  # noqa: ANN401 onnxruntime has no types
    _, heads, _, width = value.shape
    return np.zeros((1, heads, 0, width), np.float32)


def _feeds(ids: Any, length: int) -> Dict[str, Any]:  # noqa: ANN401
    return {
        "input_ids": np.array([ids], np.int64),
        "attention_mask": np.ones((1, length), np.int64),
        "position_ids": np.arange(length - len(ids), length, dtype=np.int64)[None],
    }


def _proof() -> Dict[str, Any]:
    import onnx

    model = onnx.load(_state["path"], load_external_data=False)
    local = {(function.domain, function.name) for function in model.functions}
    used = Counter(node.op_type for node in model.graph.node if (node.domain, node.op_type) in local)
    return {
        "providers": ", ".join(_state["session"].get_providers()),
        "function_body_nodes": sum(used.values()),
        "functions": ", ".join(f"{count} {name}" for name, count in sorted(used.items())),
        "sparse_kernel": False,
        "kernels": "ONNX Runtime's dense products; function bodies were folded at load",
    }


def _versions() -> Dict[str, str]:
    import onnxruntime

    return {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__}


if __name__ == "__main__":
    raise SystemExit(wire.serve({"open": open_package, "greedy": greedy}))
