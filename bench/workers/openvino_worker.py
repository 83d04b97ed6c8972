"""OpenVINO in its own process. Commands: convert, open, describe, prefill, decode, logits, close.

`convert` reads a package's standard graph, stores its matrices as integers and keeps the cache as state of the model:

    int8   codes int8 [out, in], one scale a row
    int4   codes int4 [out, in], one scale a group of 128 inputs of a row (64 or 32 where 128 does not divide)

followed by Convert and Multiply, the form that OpenVINO's CPU plugin multiplies without expanding (weights compressed,
activations float32 or, with VNNI, quantised at run time as it decides). Before timed steps the state holds noise.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Dict, Tuple

import numpy as np

if TYPE_CHECKING:
    from tailcut.bench.workers import wire
else:
    import wire

GROUPS = (128, 64, 32)
_PAST = "past_key_values."
_state: Dict[str, Model] = {}


def int8_rows(rows: np.ndarray[Any, Any]) -> Tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """rows float32 [out, in] -> codes int8 [out, in] and scales float32 [out, 1]; rows ~ codes * scales."""
    scales = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
    scales[scales == 0] = 1
    return np.rint(rows / scales).astype(np.int8), scales


def int4_groups(rows: np.ndarray[Any, Any]) -> Tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """rows float32 [out, in] -> codes uint8 [out, in / 2], two's complement nibbles, and scales [out, groups, 1].

    The value of largest magnitude of a group becomes -8.
    """
    size = next((size for size in GROUPS if rows.shape[1] % size == 0), 0)
    if not size:
        raise ValueError(f"int4 needs a multiple of {GROUPS[-1]} inputs, got {rows.shape[1]}")
    groups = rows.reshape(rows.shape[0], -1, size)
    high, low = groups.max(axis=2, keepdims=True), groups.min(axis=2, keepdims=True)
    scales = (np.where(high > -low, high, low) / np.float32(-8)).astype(np.float32)
    scales[scales == 0] = 1
    codes = np.clip(np.rint(groups / scales), -8, 7).astype(np.int8).reshape(rows.shape[0], -1).view(np.uint8) & 15
    return codes[:, 0::2] | (codes[:, 1::2] << 4), scales


def convert(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """Write body["out"]/model.xml and .bin from the graph body["source"] with matrices of body["bits"] bits."""
    import openvino
    from openvino._offline_transformations import apply_make_stateful_transformation

    model = openvino.Core().read_model(body["source"])
    count = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul" and node.input_value(1).get_node().get_type_name() in (
            "Constant",
            "Gather",
        ):
            count += _compress(node, body["bits"])
    pairs = {value.get_any_name(): "" for value in model.inputs if value.get_any_name().startswith(_PAST)}
    apply_make_stateful_transformation(model, {name: name.replace(_PAST, "present.") for name in pairs})
    openvino.save_model(model, body["out"] + "/model.xml", compress_to_fp16=False)
    return {"matrices": count}, {}


def _compress(node: Any, bits: int) -> int:  # noqa: ANN401 openvino has no types
    """Put a compressed matrix in the place of a MatMul's constant; 0 if it is not a matrix."""
    from openvino import opset13 as ops

    weight = node.input_value(1).get_node()
    if weight.get_type_name() != "Constant" or len(weight.get_output_shape(0)) != 2:
        return 0
    attributes = node.get_attributes()
    data = weight.get_data()
    rows = np.ascontiguousarray(data if attributes["transpose_b"] else data.T, np.float32)
    matrix = _int8(rows) if bits == 8 else _int4(rows)
    made = ops.matmul(node.input_value(0), matrix, attributes["transpose_a"], True)
    made.set_friendly_name(node.get_friendly_name())
    node.output(0).replace(made.output(0))
    return 1


def _int8(rows: np.ndarray[Any, Any]) -> Any:  # noqa: ANN401
    import openvino
    from openvino import opset13 as ops

    codes, scales = int8_rows(rows)
    return ops.multiply(ops.convert(openvino.op.Constant(codes), "f32"), openvino.op.Constant(scales))


def _int4(rows: np.ndarray[Any, Any]) -> Any:  # noqa: ANN401
    import openvino
    from openvino import opset13 as ops

    codes, scales = int4_groups(rows)
    groups = scales.shape[1]
    shape = [rows.shape[0], groups, rows.shape[1] // groups]
    # a tensor around numpy's memory would not keep it alive inside the constant
    tensor = openvino.Tensor(openvino.Type.i4, openvino.Shape(shape))
    tensor.data.reshape(-1).view(np.uint8)[:] = codes.reshape(-1)
    wide = ops.convert(openvino.op.Constant(tensor), "f32")
    return ops.reshape(ops.multiply(wide, openvino.op.Constant(scales)), np.array(rows.shape, np.int64), False)


class Model:
    """A compiled model and its one request; the cache is state inside it."""

    def __init__(self, body: Dict[str, Any]) -> None:
        import openvino

        self.api: Any = openvino
        settings = {
            "INFERENCE_NUM_THREADS": body["threads"],
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": True,
            "ENABLE_HYPER_THREADING": True,
        }
        began = time.perf_counter()
        self.compiled = openvino.Core().compile_model(body["file"], "CPU", settings)
        self.load_seconds = time.perf_counter() - began
        self.request = self.compiled.create_infer_request()
        self.length = 0

    def start(self, batch: int, past: int = 0, seed: int = 0) -> None:
        """A cache of `past` tokens of noise, or an empty one."""
        self.request.reset_state()
        rng = np.random.default_rng(seed)
        for state in self.request.query_state():
            shape = state.state.get_shape()
            noise = rng.standard_normal((batch, shape[1], past, shape[3]), np.float32)
            state.state = self.api.Tensor(noise)
        self.length = past

    def run(self, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Append tokens int64 [batch, n] -> logits [batch, n, vocab]."""
        count = tokens.shape[1]
        positions = np.arange(self.length, self.length + count, dtype=np.int64)
        self.length += count
        feeds = {
            "input_ids": np.ascontiguousarray(tokens),
            "attention_mask": np.ones((tokens.shape[0], self.length), np.int64),
            "position_ids": np.ascontiguousarray(np.broadcast_to(positions, tokens.shape)),
        }
        found = self.request.infer(feeds, share_inputs=True, share_outputs=True)
        return np.asarray(found["logits"])


def open_package(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    wire.pin(body["cpus"])
    _state["model"] = Model(body)
    return {"load_seconds": _state["model"].load_seconds}, {}


def describe(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    model = _state["model"]
    kinds: Dict[str, int] = {}
    for node in model.compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        if str(info["layerType"].astype(str)) in ("FullyConnected", "MatMul"):
            kind = f"{info['layerType'].astype(str)} {info['primitiveType'].astype(str)}"
            kinds[kind] = kinds.get(kind, 0) + 1
    return {
        "version": model.api.__version__.split("-")[0],
        "kernels": ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())),
        "precision": str(model.compiled.get_property("INFERENCE_PRECISION_HINT")),
        "cache": "state of the model, float32",
        "sparse_kernel": any("sparse" in kind for kind in kinds),
        "thread_cpus": " ".join(wire.thread_cpus()),
    }, {}


def prefill(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """Time `repeats` prefills of tokens [batch, prompt] from an empty cache, after `warmup` discarded ones."""
    model, tokens, times = _state["model"], arrays["tokens"], []
    for _ in range(body["warmup"] + body["repeats"]):
        model.start(tokens.shape[0])
        began = time.perf_counter()
        model.run(tokens)
        times.append(1e3 * (time.perf_counter() - began))
    return {}, {"ms": np.asarray(times[body["warmup"] :])}


def decode(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """Time `steps` steps that end at `context` cached positions, after `warmup` discarded ones."""
    model, tokens, times = _state["model"], arrays["tokens"], []
    total = body["warmup"] + body["steps"]
    model.start(tokens.shape[0], body["context"] - total, body["seed"])
    for step in range(total):
        began = time.perf_counter()
        model.run(tokens[:, step : step + 1])
        times.append(1e3 * (time.perf_counter() - began))
    return {}, {"ms": np.asarray(times[body["warmup"] :])}


def logits(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """Logits float32 [batch, n, vocab] of tokens [batch, n]: half by a prefill, the rest by steps."""
    model, tokens = _state["model"], arrays["tokens"]
    half = (tokens.shape[1] + 1) // 2
    model.start(tokens.shape[0])
    rows = [model.run(tokens[:, :half]).copy()]
    rows += [model.run(tokens[:, at : at + 1]).copy() for at in range(half, tokens.shape[1])]
    return {}, {"logits": np.concatenate(rows, axis=1).astype(np.float32)}


if __name__ == "__main__":
    commands = {"convert": convert, "open": open_package, "describe": describe}
    raise SystemExit(wire.serve({**commands, "prefill": prefill, "decode": decode, "logits": logits}))
