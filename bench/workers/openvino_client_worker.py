"""OpenVINO's CPU plugin on a package's own model.onnx. Commands: open, greedy, close.

Without `sparse_rate` the graph runs as it is, in float32: no bfloat16, no activations quantised at run time. With it, the
activations of every matrix are quantised statically (per tensor, 256 levels, over what they are on the prompt) and the
matrices are int8 with a scale a row, which is what the plugin's sparse weight decompression takes; the rate is set and
the compiled model is asked what it runs.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Dict, List

import numpy as np

if TYPE_CHECKING:
    from tailcut.bench.workers import wire
    from tailcut.bench.workers.openvino_worker import int8_rows
else:
    import wire
    from openvino_worker import int8_rows

PAST = "past_key_values."
RATE = "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"
SIDE = 64  # the plugin compresses matrices whose sides are multiples of it
_state: Dict[str, Any] = {"static": []}


def open_package(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": int(body["threads"]),
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }
    began = time.perf_counter()
    core = openvino.Core()
    path = os.path.join(body["directory"], "model.onnx")
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    _state.update(core=core, path=path, settings=settings, compiled=compiled, rate=body["sparse_rate"])
    return {"load_seconds": time.perf_counter() - began}, {}


def greedy(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """`prompt` [ids] and `count` -> the likeliest token after each, `count` of them, end tokens included."""
    if _state["rate"] is not None and not _state["static"]:
        made = static(list(body["prompt"]))
        _state.update(static=made["shares"], compiled=made["compiled"])
    request = _state["compiled"].create_infer_request()
    cache = _empty(_state["compiled"])
    ids, length = list(body["prompt"]), 0
    tokens: List[int] = []
    marks = [time.perf_counter()]
    while len(tokens) < int(body["count"]):
        length += len(ids)
        found = request.infer({**_feeds(ids, length), **cache})
        tokens.append(int(np.argmax(found["logits"][0, -1])))
        cache = {name: np.array(found[name.replace(PAST, "present.")]) for name in cache}
        ids = tokens[-1:]
        marks.append(time.perf_counter())
    reply = {"tokens": tokens, "prefill_s": marks[1] - marks[0], "decode_s": marks[-1] - marks[1]}
    return {**reply, "proof": _proof(), "versions": _versions()}, {}


def _empty(model: Any) -> Dict[str, Any]:  # noqa: ANN401 openvino has no types
    inputs = (value for value in model.inputs if value.get_any_name().startswith(PAST))
    shapes = {value.get_any_name(): value.get_partial_shape() for value in inputs}
    return {
        name: np.zeros((1, shape[1].get_length(), 0, shape[3].get_length()), np.float32)
        for name, shape in shapes.items()
    }


def _feeds(ids: Any, length: int) -> Dict[str, Any]:  # noqa: ANN401
    return {
        "input_ids": np.array([ids], np.int64),
        "attention_mask": np.ones((1, length), np.int64),
        "position_ids": np.arange(length - len(ids), length, dtype=np.int64)[None],
    }


def static(prompt: List[int]) -> Dict[str, Any]:
    """The model with static activation scales and int8 matrices, compiled with the rate; facts about its matrices."""
    from openvino import passes

    core = _state["core"]
    model = core.read_model(_state["path"])
    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())  # integer matrices become what they stand for
    manager.run_passes(model)
    nodes = [node for node in model.get_ordered_ops() if _is_matrix(node)]
    shares = []
    for node, (low, high) in zip(nodes, _ranges(model, nodes, prompt)):
        shares.append(_quantise(node, low, high))
    settings = {name: value for name, value in _state["settings"].items() if not name.startswith("DYNAMIC")}
    compiled = core.compile_model(model, "CPU", {**settings, RATE: float(_state["rate"])})
    return {"compiled": compiled, "shares": shares}


def _is_matrix(node: Any) -> bool:  # noqa: ANN401
    if node.get_type_name() != "MatMul" or node.get_attributes()["transpose_a"]:
        return False
    weight = node.input_value(1).get_node()
    return weight.get_type_name() == "Constant" and len(weight.get_output_shape(0)) == 2


def _ranges(model: Any, nodes: List[Any], prompt: List[int]) -> List[Any]:  # noqa: ANN401
    """Least and greatest activation of each matrix on the prompt; the model gets outputs for them and loses them again."""
    made = [model.add_outputs(node.input_value(0))[0] for node in nodes]
    names = len(model.outputs)
    compiled = _state["core"].compile_model(model, "CPU", _state["settings"])
    found = compiled.create_infer_request().infer({**_feeds(prompt, len(prompt)), **_empty(compiled)})
    places = range(names - len(made), names)
    ranges = [(float(found[at].min()), float(found[at].max())) for at in places]
    for output in made:
        model.remove_result(output.get_node())
    return ranges


def _quantise(node: Any, low: float, high: float) -> Dict[str, Any]:  # noqa: ANN401
    """FakeQuantize before a MatMul and an int8 matrix with a scale a row in it; shape and share of zeros."""
    import openvino
    from openvino import opset13 as ops

    data = node.input_value(1).get_node().get_data()
    rows = np.ascontiguousarray(data if node.get_attributes()["transpose_b"] else data.T, np.float32)
    codes, scales = int8_rows(rows)
    matrix = ops.multiply(ops.convert(openvino.op.Constant(codes), "f32"), openvino.op.Constant(scales))
    most = max(abs(low), abs(high), 1e-6)  # symmetric: what int8 activations without a zero point hold
    ends = [np.float32(end) for end in (-most * 128 / 127, most, -most * 128 / 127, most)]
    rounded = ops.fake_quantize(node.input_value(0), *ends, levels=256)
    made = ops.matmul(rounded, matrix, False, True)
    made.set_friendly_name(node.get_friendly_name())
    node.output(0).replace(made.output(0))
    return {"sides": all(side % SIDE == 0 for side in codes.shape), "zeros": float((codes == 0).mean())}


def _proof() -> Dict[str, Any]:
    """Execution types of the compiled model, and for the sparse form every condition of the plugin."""
    kinds: Dict[str, int] = {}
    for node in _state["compiled"].get_runtime_model().get_ordered_ops():
        info = {name: str(node.get_rt_info()[name].astype(str)) for name in ("layerType", "primitiveType")}
        if info["layerType"] in ("FullyConnected", "MatMul"):
            kind = f"{info['layerType']} {info['primitiveType']}"
            kinds[kind] = kinds.get(kind, 0) + 1
    sparse = any("sparse" in kind for kind in kinds)
    proof: Dict[str, Any] = {
        "execution_types": kinds,
        "kernels": ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())),
        "precision": str(_state["compiled"].get_property("INFERENCE_PRECISION_HINT")),
        "device": str(_state["core"].get_property("CPU", "FULL_DEVICE_NAME")),
        "sparse_kernel": sparse,
    }
    if _state["static"]:
        proof.update(_conditions(kinds, sparse))
    return proof


def _conditions(kinds: Dict[str, int], sparse: bool) -> Dict[str, Any]:
    shares, rate = _state["static"], float(_state["compiled"].get_property(RATE))
    fit = sum(share["sides"] and share["zeros"] >= rate for share in shares)
    amx = has_amx()
    integer = sum(count for kind, count in kinds.items() if kind.lower().endswith(("_i8", "_u8")))
    missing = [
        sentence
        for sentence, wrong in (
            ("this processor has no AMX, which OpenVINO's sparse decompression needs", not amx),
            (f"no matrix has sides of multiples of {SIDE} and {rate:.0%} zeros", fit == 0),
            ("no matrix product runs on int8 activations", integer == 0),
        )
        if wrong
    ]
    why = "" if sparse else "; ".join(missing) or "the plugin did not choose it"
    return {"rate": rate, "matrices": len(shares), "fit": fit, "int8_products": integer, "amx": amx, "why_not": why}


def has_amx() -> bool:
    """Whether the processor has int8 tiles."""
    with open("/proc/cpuinfo") as stream:
        return any("amx_int8" in line.split() for line in stream if line.startswith("flags"))


def _versions() -> Dict[str, str]:
    import openvino

    return {"openvino": openvino.__version__, "numpy": np.__version__}


if __name__ == "__main__":
    raise SystemExit(wire.serve({"open": open_package, "greedy": greedy}))
