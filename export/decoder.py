"""The decoder graph with dynamic batch, sequence and past: one graph for prefill (past 0) and cached decode.

Inputs   input_ids int64 [batch, sequence], attention_mask int64 [batch, total], position_ids int64 [batch, sequence],
         past_key_values.{i}.key / .value float32 [batch, kv_heads, past, head_dim]
Outputs  logits float32 [batch, sequence, vocab], present.{i}.key / .value [batch, kv_heads, total, head_dim]

total = past + sequence. Left padding: the mask hides padded cache slots, position_ids count from each row's first
real token. A fully hidden row attends evenly and stays finite; its logits mean nothing.
"""

from typing import Final

import numpy as np
import onnx

from tailcut.export.blocks import Emitter
from tailcut.export.graph import Graph
from tailcut.export.spec import Rotary

OPSET: Final = 21
IR_VERSION: Final = 10
# most negative float32: added to a score it gives itself back, and exp of the difference to a real score is 0
HIDDEN: Final = float(np.finfo(np.float32).min)


def build_decoder(emitter: Emitter) -> onnx.ModelProto:
    """The model for an emitter over a fresh graph; weights stream into its data file on the way."""
    graph, spec = emitter.graph, emitter.spec
    graph.scope = "inputs"
    ids = graph.input("input_ids", np.int64, ["batch", "sequence"])
    mask = graph.input("attention_mask", np.int64, ["batch", "total"])
    positions = graph.input("position_ids", np.int64, ["batch", "sequence"])
    x = emitter.embed(ids, positions)
    biases = _biases(emitter, ids, mask)
    tables = _rotary_tables(emitter, positions)
    presents: list[tuple[str, str]] = []

    def cache(index: int, key: str, value: str) -> tuple[str, str]:
        whole = tuple(_with_past(emitter, index, part, new) for part, new in (("key", key), ("value", value)))
        presents.append((whole[0], whole[1]))
        return whole[0], whole[1]

    for index in range(len(spec.blocks)):
        x = emitter.block(x, index, biases, tables, cache)
    logits = emitter.softcap(emitter.vocabulary.logits(emitter.finish(x)), spec.final_softcap)
    graph.output("logits", logits, ["batch", "sequence", spec.vocab])
    for index, pair in enumerate(presents):
        heads = spec.kv_heads_of(spec.blocks[index].attention)
        for part, value in zip(("key", "value"), pair, strict=True):
            graph.output(f"present.{index}.{part}", value, ["batch", heads, "total", spec.head_dim])
    return graph.model(f"{spec.family} decoder", IR_VERSION)


def _with_past(emitter: Emitter, index: int, part: str, new: str) -> str:
    spec = emitter.spec
    shape: list[int | str] = ["batch", spec.kv_heads_of(spec.blocks[index].attention), "past", spec.head_dim]
    past = emitter.graph.input(f"past_key_values.{index}.{part}", np.float32, shape)
    return emitter.graph.op("Concat", past, new, axis=2)


def _biases(emitter: Emitter, ids: str, mask: str) -> dict[int | None, str]:
    """One additive bias per window in use: 0 where a query may look, float32's minimum elsewhere.

    Shape [batch, 1, group * sequence, total]; row r belongs to the query at sequence position r mod sequence.
    """
    graph, group = emitter.graph, emitter.spec.group
    op, integer = graph.op, graph.constant
    sequence = op("Squeeze", op("Shape", ids, start=1, end=2))
    total = op("Squeeze", op("Shape", mask, start=1, end=2))
    rows = op("Range", integer(0), op("Mul", sequence, integer(group)), integer(1))
    place = rows if group == 1 else op("Mod", rows, sequence)
    query = op("Unsqueeze", op("Add", place, op("Sub", total, sequence)), integer([1]))
    key = op("Range", integer(0), total, integer(1))
    real = op("Unsqueeze", op("Cast", mask, to=onnx.TensorProto.BOOL), integer([1, 2]))
    seen = op("And", op("LessOrEqual", key, query), real)
    made: dict[int | None, str] = {}
    for window in dict.fromkeys(block.attention.window for block in emitter.spec.blocks):
        allowed = seen
        if window is not None:
            allowed = op("And", seen, op("Greater", key, op("Sub", query, integer(window))))
        made[window] = op("Where", allowed, graph.real(0.0), graph.real(HIDDEN))
    return made


def _rotary_tables(emitter: Emitter, positions: str) -> dict[Rotary, tuple[str, str]]:
    """cos and signed sin of each distinct rotary embedding, [batch, sequence, 1, channels]."""
    graph = emitter.graph
    kinds = dict.fromkeys(block.attention.rotary for block in emitter.spec.blocks)
    if set(kinds) == {None}:
        return {}
    angle_base = graph.op("Cast", graph.op("Unsqueeze", positions, graph.constant([2, 3])), to=onnx.TensorProto.FLOAT)
    return {rotary: _table(graph, rotary, positions, angle_base) for rotary in kinds if rotary is not None}


def _table(graph: Graph, rotary: Rotary, positions: str, angle_base: str) -> tuple[str, str]:
    op = graph.op
    angles = op("Mul", angle_base, _frequencies(graph, rotary, positions))
    cos, sin = op("Cos", angles), op("Sin", angles)
    if rotary.scale != 1.0:
        cos, sin = (op("Mul", value, graph.real(rotary.scale)) for value in (cos, sin))
    return op("Concat", cos, cos, axis=-1), op("Concat", op("Neg", sin), sin, axis=-1)


def _frequencies(graph: Graph, rotary: Rotary, positions: str) -> str:
    short = graph.constant(rotary.inverse_frequencies, np.float32)
    if not rotary.long_frequencies:
        return short
    length = graph.op("Add", graph.op("ReduceMax", positions, keepdims=0), graph.constant(1))
    beyond = graph.op("Greater", length, graph.constant(rotary.original_length))
    return graph.op("Where", beyond, graph.constant(rotary.long_frequencies, np.float32), short)
