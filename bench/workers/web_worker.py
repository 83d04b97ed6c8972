"""onnxruntime-web under Node, behind the bench's frames: starts web_client.mjs and hands requests on as JSON lines.

Commands: open, greedy, close. Runs in tailcut's own interpreter, which also reads from model.onnx which of its nodes are
tailcut's: onnxruntime-web has no such kernels, so what runs them is their function bodies.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any, Dict

if TYPE_CHECKING:
    from tailcut.bench.workers import wire
else:
    import wire

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "web_client.mjs")
DATA = "model.onnx.data"
_state: Dict[str, Any] = {}


def ask(request: Dict[str, Any]) -> Dict[str, Any]:
    """One request to Node and its answer; RuntimeError with the library's own message."""
    node = _state["node"]
    node.stdin.write(json.dumps(request) + "\n")
    node.stdin.flush()
    while True:
        line = node.stdout.readline()
        if not line:
            raise RuntimeError(f"node ended with exit code {node.wait(timeout=10)} before it answered")
        if line.startswith("{"):
            break
    answer: Dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise RuntimeError(str(answer["error"]))
    return answer


def open_package(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    argv = [body["node"], SCRIPT, body["environment"]]
    pipes: Dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    _state["node"] = subprocess.Popen(argv, **pipes)
    directory = body["directory"]
    data = DATA if os.path.isfile(os.path.join(directory, DATA)) else None
    found = ask({"open": {"directory": directory, "data": data, "threads": int(body["threads"])}})
    _state["bodies"] = _bodies(os.path.join(directory, "model.onnx"))
    return found, {}


def greedy(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    answer = ask({"greedy": {"prompt": body["prompt"], "count": int(body["count"])}})
    answer["proof"].update(_state["bodies"], sparse_kernel=False, kernels="WebAssembly's dense products")
    return answer, {}


def _bodies(path: str) -> Dict[str, Any]:
    """How many nodes of the graph are model-local functions, and which."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    local = {(function.domain, function.name) for function in model.functions}
    used = [node.op_type for node in model.graph.node if (node.domain, node.op_type) in local]
    return {"function_body_nodes": len(used), "functions": ", ".join(sorted(set(used)))}


if __name__ == "__main__":
    raise SystemExit(wire.serve({"open": open_package, "greedy": greedy}))
