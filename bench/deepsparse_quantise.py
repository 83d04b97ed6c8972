"""DeepSparse's best int8 form of a static variant: QuantizeLinear -> MatMulInteger -> Cast -> Mul around each matrix.

The other patterns are slower or end its process (DynamicQuantizeLinear aborts, QDQ stays unfused). Weights are int8
with one symmetric scale an output column; activations uint8 around 128 with one scale a tensor, from the
largest magnitude that ONNX Runtime sees in the float32 graph on a prompt of seeded random tokens: enough to time
and to check the graph, not a calibration to judge quality by. Both graphs share one data file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from tailcut.bench.quantise import int8_columns
from tailcut.bench.stored import StoredGraph, TensorFile, is_linear, open_graph, rewritten, weight_of
from tailcut.kernels.package import DATA_NAME
from tailcut.kernels.session import session_options
from tailcut.manifest import verify

GRAPHS: Final = ("decode.onnx", "prefill.onnx")
_MIDDLE: Final = 128
_MASKED: Final = -1e9
Ranges = Mapping[str, float]


def quantise(static: Path, out: Path) -> dict[str, Any]:
    """Write both graphs of a static variant with int8 matrices into `out`; facts about them."""
    verify(static, hashes=False)
    ranges = calibrate(open_graph(static / "prefill.onnx"))
    with (out / DATA_NAME).open("wb") as stream:
        file = TensorFile(stream)
        for name in GRAPHS:
            graph = open_graph(static / name)
            model = _quantised(graph, file, ranges)
            (out / name).write_bytes(model.SerializeToString(deterministic=True))
    zeros = sum(_zeros(tensor, out) for name, tensor in file.stored.items() if name.endswith(".int8"))
    weights = "int8 a column, activations uint8 with one static scale a tensor"
    return {"matrices": len(ranges), "weights": weights, "zeros": zeros}


def calibrate(graph: StoredGraph) -> dict[str, float]:
    """The largest |x| before every matrix, by the matrix's name, on a prompt of seeded random tokens."""
    linears = [node for node in graph.model.graph.node if is_linear(node, graph)]
    inputs = list(dict.fromkeys(node.input[0] for node in linears))
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for index, name in enumerate(inputs):
        model.graph.node.append(helper.make_node("Abs", [name], [f"calibrate/{index}/abs"]))
        model.graph.node.append(
            helper.make_node("ReduceMax", [f"calibrate/{index}/abs"], [f"calibrate/{index}"], keepdims=0)
        )
        model.graph.output.append(helper.make_tensor_value_info(f"calibrate/{index}", TensorProto.FLOAT, []))
    options = session_options(threads=None)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.path.parent))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [f"calibrate/{index}" for index in range(len(inputs))]
    found = dict(zip(inputs, map(float, session.run(names, _prompt(graph))), strict=True))
    return {node.input[1]: found[node.input[0]] for node in linears}


def _prompt(graph: StoredGraph) -> dict[str, np.ndarray[Any, Any]]:
    """The static prefill's inputs: random tokens, causal mask."""
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.model.graph.input}
    length = shapes["input_ids"][1]
    vocabulary = next(graph.tensors[n.input[0]].dims[0] for n in graph.model.graph.node if "input_ids" in n.input)
    return {
        "input_ids": np.random.default_rng(0).integers(0, vocabulary, (1, length), np.int64),
        "position_ids": np.arange(length, dtype=np.int64)[None],
        "attention_bias": np.triu(np.full((length, length), _MASKED, np.float32), 1)[None, None],
    }


def _zeros(tensor: TensorProto, out: Path) -> int:
    """Zero codes of a matrix as they lie in the written file."""
    graph = StoredGraph(out / GRAPHS[0], onnx.ModelProto(), {tensor.name: tensor})
    array = graph.array(tensor.name)
    return int(array.size - np.count_nonzero(array))


def _quantised(graph: StoredGraph, file: TensorFile, ranges: Ranges) -> onnx.ModelProto:
    nodes: list[onnx.NodeProto] = []
    for node in graph.model.graph.node:
        if is_linear(node, graph):
            nodes += _linear(node, graph, file, ranges[node.input[1]])
        else:
            nodes.append(node)
    return rewritten(graph, nodes, file)


def _linear(node: onnx.NodeProto, graph: StoredGraph, file: TensorFile, largest: float) -> list[onnx.NodeProto]:
    x, name = node.input
    scale = np.float32((largest or 1.0) / (_MIDDLE - 1))
    if f"{name}.int8" not in file.stored:  # the second graph uses the first one's matrices
        codes, scales = int8_columns(np.asarray(weight_of(node, graph)))
        file.store(f"{name}.int8", codes)
        file.store(f"{name}.scales", scales * scale)
    step, middle = file.store(f"{name}.step", np.asarray(scale)), file.store("middle", np.asarray(_MIDDLE, np.uint8))
    zero = file.store("zero", np.asarray(0, np.int8))  # DeepSparse ends its process when it is left out
    codes_of_x, sums, floats = (f"{node.name}/{part}" for part in ("codes", "sums", "floats"))
    return [
        helper.make_node("QuantizeLinear", [x, step, middle], [codes_of_x], name=codes_of_x),
        helper.make_node("MatMulInteger", [codes_of_x, f"{name}.int8", middle, zero], [sums], name=node.name),
        helper.make_node("Cast", [sums], [floats], name=floats, to=TensorProto.FLOAT),
        helper.make_node("Mul", [floats, f"{name}.scales"], list(node.output), name=f"{node.name}/scaled"),
    ]
