"""fused.onnx: the same decoder over the same data file, in ONNX Runtime's own fused ops and with a cache kept in place.

Inputs   input_ids int64 [batch, sequence]
         seqlens_k int32 [batch]           each row's valid tokens after this run, minus 1
         total_sequence_length int32 []    the most of any row
         logits_from int64 [1]             logits are computed from this position of the sequence on
         past_key_values.{i}.key / .value float32 or float16 [batch, kv_heads, capacity, head_dim]
Outputs  logits float32 [batch, sequence - logits_from, vocab]
         present.{i}.key / .value, type and shape of the past: bind them to the same buffers and nothing is copied

Rows of different length are padded on the right; positions count from 0. After a prompt, runs of several tokens take one
row only (ONNX Runtime's rule). Attention is ONNX Runtime's GroupQueryAttention, as a function that tailcut's kernels
take over; it rotates with the tables stored here, at most MAX_POSITIONS rows of them. No weight is stored again: matrices
and norms are those of model.onnx.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx

from tailcut.export.attention import ATTENTION, MICROSOFT
from tailcut.export.blocks import Emitter
from tailcut.export.decoder import IR_VERSION
from tailcut.export.functions import SWIGLU
from tailcut.export.graph import Graph
from tailcut.export.layouts import Storage
from tailcut.export.spec import AttentionSpec, BlockSpec, DecoderSpec, MlpSpec, Rotary
from tailcut.kernels.stored import DOMAIN

MAX_POSITIONS: Final = 32768
_HEAD_MULTIPLE: Final = 16  # ONNX Runtime rotates heads of such widths only
_TABLE_MULTIPLE: Final = 8  # and half of the rotated channels must be a multiple of this
_END: Final = (1 << 63) - 1
Tables = Mapping[Rotary, tuple[str, str]]


def why_not(spec: DecoderSpec, storage: Storage) -> str | None:
    """Why a decoder has no fused graph; None if it has one."""
    rotaries = {block.attention.rotary for block in spec.blocks}
    reasons = {
        "the dense layout is for other runtimes": not storage.joins,
        "its target opens model.onnx alone": not storage.fused,
        "layer norms, not RMS norms": spec.norm.kind != "rms",
        "learned positions": spec.positions is not None,
        "branches in parallel or norms after the sum": any(b.parallel or b.norm_after_residual for b in spec.blocks),
        "no block norms": any(b.attention_norm is None or b.mlp_norm is None for b in spec.blocks),
        "no rotary embedding": None in rotaries,
        "LongRoPE switches its factors": any(r.long_frequencies for r in rotaries if r),
        f"head_dim {spec.head_dim} is no multiple of {_HEAD_MULTIPLE}": bool(spec.head_dim % _HEAD_MULTIPLE),
        f"rotated channels are no multiple of {2 * _TABLE_MULTIPLE}": any(
            r.channels % (2 * _TABLE_MULTIPLE) for r in rotaries if r
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def needs_onnxruntime(spec: DecoderSpec) -> str:
    """The first ONNX Runtime whose own operators run the graph rightly (each was tried on tiny models).

    Up to 1.23 GroupQueryAttention lets a query see one position more than its window, silently.
    """
    return "1.24" if any(block.attention.window is not None for block in spec.blocks) else "1.20"


def positions_held(spec: DecoderSpec) -> int:
    """Rows of the rotary tables: the longest sequence fused.onnx can run."""
    return min(spec.max_positions, MAX_POSITIONS)


def build_fused(emitter: Emitter) -> onnx.ModelProto:
    """The fused model for an emitter whose linears are written already."""
    graph, spec = emitter.graph, emitter.spec
    graph.scope = "inputs"
    ids = graph.input("input_ids", np.int64, ["batch", "sequence"])
    lengths = graph.input("seqlens_k", np.int32, ["batch"])
    total = graph.input("total_sequence_length", np.int32, [])
    logits_from = graph.input("logits_from", np.int64, [1])
    tables = _tables(emitter)
    x, branch = emitter.embed(ids, ""), ""
    for index, block in enumerate(spec.blocks):
        graph.scope = block.attention.out
        x, normed = _add_and_norm(emitter, x, branch, str(block.attention_norm))
        mixed = _attention(emitter, normed, index, tables, (lengths, total))
        branch = _rms(emitter, mixed, block.after_attention_norm)
        x, branch = _feed_forward(emitter, x, branch, block)
    graph.scope = "head"
    _, normed = _add_and_norm(emitter, x, branch, str(spec.final_norm))
    wanted = graph.op("Slice", normed, logits_from, graph.constant([_END]), graph.constant([1]))
    logits = emitter.softcap(emitter.vocabulary.logits(wanted), spec.final_softcap)
    graph.output("logits", logits, ["batch", "wanted", spec.vocab])
    graph.outputs.insert(0, graph.outputs.pop())
    return graph.model(f"{spec.family} fused decoder", IR_VERSION)


def _feed_forward(emitter: Emitter, x: str, branch: str, block: BlockSpec) -> tuple[str, str]:
    """The sum so far, and the feed-forward branch that is still to be added."""
    emitter.graph.scope = block.mlp.down
    x, normed = _add_and_norm(emitter, x, branch, str(block.mlp_norm))
    return x, _rms(emitter, _mlp(emitter, normed, block.mlp), block.after_mlp_norm)


def _mlp(emitter: Emitter, x: str, spec: MlpSpec) -> str:
    if not spec.gated or spec.activation not in ("silu", "swish"):
        return emitter.mlp(x, spec)
    inner = emitter.graph.op(SWIGLU, emitter.gate_up(x, spec), domain=DOMAIN)
    return emitter.linears.apply(inner, spec.down, emitter.spec.hidden, emitter.spec.width_of(spec))


def _add_and_norm(emitter: Emitter, x: str, branch: str, module: str) -> tuple[str, str]:
    """(x + branch, its norm); branch is empty before the first block."""
    if not branch:
        return x, _rms(emitter, x, module)
    weight = _norm_weight(emitter, module, emitter.spec.hidden)
    label = f"{emitter.graph.scope}/SkipNorm_{len(emitter.graph.nodes)}"
    normed, total = f"{label}:0", f"{label}:3"
    emitter.graph.node(
        "SkipSimplifiedLayerNormalization",
        [x, branch, weight],
        [normed, "", "", total],
        name=label,
        domain=MICROSOFT,
        epsilon=emitter.spec.norm.eps,
    )
    return total, normed


def _rms(emitter: Emitter, x: str, module: str | None, size: int | None = None) -> str:
    if module is None:
        return x
    weight = _norm_weight(emitter, module, size or emitter.spec.hidden)
    return emitter.graph.op(
        "SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=emitter.spec.norm.eps, stash_type=1
    )


def _norm_weight(emitter: Emitter, module: str, size: int) -> str:
    weight = emitter.weights.vector(module, "weight", size) + np.float32(emitter.spec.norm.offset)
    return emitter.graph.weight(f"{module}.weight", weight)


def _attention(emitter: Emitter, x: str, index: int, tables: Tables, lengths: tuple[str, str]) -> str:
    """Attention of block `index` over the cache that the caller keeps: [batch, sequence, hidden] -> same."""
    graph, dims = emitter.graph, emitter.spec
    spec = dims.blocks[index].attention
    heads, kv_heads = dims.heads_of(spec), dims.kv_heads_of(spec)
    shape: list[int | str] = ["batch", kv_heads, "capacity", dims.head_dim]
    kind = np.float16 if emitter.linears.storage.kv_cache == "float16" else np.float32
    past = [graph.input(f"past_key_values.{index}.{part}", kind, shape) for part in ("key", "value")]
    present = [graph.declare(f"present.{index}.{part}", shape, kind) for part in ("key", "value")]
    label = f"{graph.scope}/Attention"
    graph.node(
        ATTENTION,
        [_packed(emitter, x, spec), *past, *lengths, *tables[_rotary(spec)]],
        [f"{label}:0", *present],
        name=label,
        domain=DOMAIN,
        num_heads=heads,
        kv_num_heads=kv_heads,
        scale=spec.scale,
        local_window_size=spec.window or -1,
        softcap=spec.softcap or 0.0,
    )
    return emitter.linears.apply(f"{label}:0", spec.out, dims.hidden, heads * dims.head_dim)


def _packed(emitter: Emitter, x: str, spec: AttentionSpec) -> str:
    """Queries, keys and values side by side, their heads normalised where the family does so."""
    graph, width = emitter.graph, emitter.spec.head_dim
    packed = emitter.packed_qkv(x, spec)
    if spec.q_norm is None and spec.k_norm is None:
        return packed
    sizes = emitter.qkv_sizes(spec)
    q, k, v = graph.ops("Split", (packed, graph.constant(sizes)), 3, axis=-1)

    def normed(part: str, module: str | None, channels: int) -> str:
        heads = graph.op("Reshape", part, graph.constant([0, 0, -1, width]))
        return graph.op("Reshape", _rms(emitter, heads, module, width), graph.constant([0, 0, channels]))

    parts = normed(q, spec.q_norm, sizes[0]), normed(k, spec.k_norm, sizes[1]), v
    return graph.op("Concat", *parts, axis=-1)


def _rotary(spec: AttentionSpec) -> Rotary:
    if spec.rotary is None:
        raise ValueError(f"{spec.out}: no rotary embedding; why_not says so before anything is built")
    return spec.rotary


def _tables(emitter: Emitter) -> dict[Rotary, tuple[str, str]]:
    """cos and sin [positions, channels / 2] of each distinct rotary embedding."""
    kinds = dict.fromkeys(_rotary(block.attention) for block in emitter.spec.blocks)
    rows = positions_held(emitter.spec)
    return {rotary: _table(emitter.graph, f"rotary/{number}", rotary, rows) for number, rotary in enumerate(kinds)}


def _table(graph: Graph, name: str, rotary: Rotary, rows: int) -> tuple[str, str]:
    angles = np.arange(rows, dtype=np.float32)[:, None] * np.asarray(rotary.inverse_frequencies, np.float32)
    scale = np.float32(rotary.scale)

    def stored(part: str, table: npt.NDArray[np.float32]) -> str:
        return graph.weight(f"{name}/{part}", table * scale)

    return stored("cos", np.cos(angles)), stored("sin", np.sin(angles))
