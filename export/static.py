"""The static-shape variant for DeepSparse 1.8: two graphs, decode.onnx and prefill.onnx, over one data file.

DeepSparse runs a graph on its sparse engine only if every shape is fixed, and hands back to plain ONNX Runtime whatever
it does not know, silently. So: opset 17, IR 8, batch 1, rotary embedding looked up in a table (it splits on Cos and Sin),
norms and GELU in basic ops, attention bias as an input, float32 dense weights (it finds the zeros itself).

    decode.onnx   input_ids, position_ids int64 [1, 1], attention_bias float32 [1, 1, 1, context],
                  past_key_values.{i}.key / .value [1, kv_heads, context - 1, head_dim]
                  -> logits [1, 1, vocab], new.{i}.key / .value [1, kv_heads, 1, head_dim]
    prefill.onnx  input_ids, position_ids [1, prompt], attention_bias [1, 1, prompt, prompt]
                  -> logits [1, prompt, vocab], new.{i}.key / .value [1, kv_heads, prompt, head_dim]

cached.onnx, where it is asked for, is decode.onnx for a cache that the engine keeps (static_cached.py).
The bias is 0 or a large negative number; decode's last column is the new token. New keys are already rotated, so the caller
may keep them in any slot of its cache.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx

from tailcut.errors import InputError
from tailcut.export.blocks import Emitter
from tailcut.export.graph import DataFile, Graph
from tailcut.export.layouts import Linears, Storage
from tailcut.export.run import (
    Details,
    Source,
    block_layers,
    check_structure,
    copy_side_files,
    open_source,
    package_manifest,
    write_model,
)
from tailcut.export.spec import DecoderSpec, Rotary
from tailcut.export.static_cached import CACHED_NAME, own_heads
from tailcut.export.static_check import check_static
from tailcut.files import new_directory
from tailcut.kernels.package import DATA_NAME
from tailcut.manifest import Manifest, RealisedLayer, write_manifest
from tailcut.progress import Reporter, silent

OPSET: Final = 17
IR_VERSION: Final = 8
DECODE_NAME: Final = "decode.onnx"
PREFILL_NAME: Final = "prefill.onnx"
ENGINE_MULTIPLE: Final = 16  # measured (AVX2, sparse weights): 48, 80, 112, 144 right; 40, 56, 72, 104, 120, 136 wrong
# measured on two models: 64, 128, 192, 256, 320, 384, 512 right to the last token; 33, 72, 80, 96, 100, 112, 144, 160 wrong or dead
CACHE_MULTIPLE: Final = 64
_STAGES: Final = ("build", "check structure", "compare with torch", "hash")


@dataclass(frozen=True, slots=True)
class Window:
    """The fixed sizes: `tokens` new ones in a run after `past` cached ones."""

    tokens: int
    past: int
    context: int  # rows of the rotary tables
    whole: bool = False  # the graph returns the joined cache, not only its new rows


def export_deepsparse(
    model_dir: Path,
    out: Path,
    *,
    context: int,
    prompt: int,
    engine_cache: bool = False,
    check: bool = True,
    overwrite: bool = False,
    report: Reporter = silent,
) -> Manifest:
    """Write the static variant `out`; InputError where DeepSparse or the sizes cannot take the model.

    engine_cache: also write cached.onnx, for a cache that the engine keeps (export.static_cached).
    """
    source = open_source(model_dir)
    check_sizes(source.spec, context, prompt)
    if engine_cache and context % CACHE_MULTIPLE:
        raise InputError(
            f"DeepSparse 1.8 keeps its own cache in steps of {CACHE_MULTIPLE} tokens: with a context of {context} its logits go "
            f"wrong, silently, or the process dies; choose a multiple of {CACHE_MULTIPLE}, or leave out --engine-cache"
        )
    with new_directory(out, overwrite=overwrite) as directory:
        report("export static", 0, len(_STAGES), _STAGES[0])
        realised = _write(source, directory, context, prompt, engine_cache)
        report("export static", 1, len(_STAGES), _STAGES[1])
        for name in graph_names(engine_cache):
            check_structure(directory / name)
        report("export static", 2, len(_STAGES), _STAGES[2])
        cached = directory / CACHED_NAME if engine_cache else None
        graphs = directory / PREFILL_NAME, directory / DECODE_NAME, cached
        parity = check_static(model_dir, *graphs).details() if check else {}
        report("export static", 3, len(_STAGES), _STAGES[3])
        copy_side_files(model_dir, directory)
        details: Details = {
            "variant": "deepsparse",
            "target": "deepsparse",
            "layout": "dense",
            "opset": OPSET,
            "context": context,
            "prompt": prompt,
            "engine_cache": engine_cache,
        }
        manifest = package_manifest(source, directory, realised, dict(details) | {"checked": check} | parity)
        write_manifest(manifest, directory)
    report("export static", len(_STAGES), len(_STAGES), str(out))
    return manifest


def check_sizes(spec: DecoderSpec, context: int, prompt: int) -> None:
    """InputError unless prompt < context <= what the model and fixed tables can express."""
    if not 1 <= prompt < context:
        raise InputError(f"the prompt must have at least 1 and fewer than context={context} tokens, got {prompt}")
    if context > spec.max_positions:
        raise InputError(f"a context of {context} tokens passes the model's {spec.max_positions} positions")
    blocks = [(spec.width_of(block.mlp), spec.heads_of(block.attention) * spec.head_dim) for block in spec.blocks]
    widths = (spec.hidden, *(width for pair in blocks for width in pair), spec.width)
    if odd := [width for width in widths if width % ENGINE_MULTIPLE]:
        raise InputError(
            f"DeepSparse 1.8 gives wrong results, silently, for matrices of {odd[0]} inputs; "
            f"this model's widths must be multiples of {ENGINE_MULTIPLE}"
        )
    windows = [block.attention.window for block in spec.blocks if block.attention.window is not None]
    if windows and min(windows) < context:
        raise InputError(
            f"the static variant has no sliding window: choose a context of at most {min(windows)} tokens, got {context}"
        )
    switches = [rotary.original_length for rotary in _rotaries(spec) if rotary.long_frequencies]
    if switches and min(switches) < context:
        raise InputError(
            f"the static variant cannot switch LongRoPE factors: choose a context of at most {min(switches)} tokens, "
            f"got {context}"
        )


def graph_names(engine_cache: bool) -> tuple[str, ...]:
    """The graphs of a variant."""
    return (DECODE_NAME, PREFILL_NAME, CACHED_NAME) if engine_cache else (DECODE_NAME, PREFILL_NAME)


def _write(source: Source, directory: Path, context: int, prompt: int, engine_cache: bool) -> dict[str, RealisedLayer]:
    with DataFile(directory / DATA_NAME) as data:
        linears = Linears(Graph(data, OPSET), source.weights, Storage("dense"), source.plans)
        for name, window in (
            (DECODE_NAME, Window(1, context - 1, context)),
            (PREFILL_NAME, Window(prompt, 0, context)),
        ):
            graph = Graph(data, OPSET)
            fixed = (window.tokens, window.past + window.tokens)
            emitter = Emitter(graph, source.weights, linears.over(graph), source.spec, primitive=True, fixed=fixed)
            write_model(build_static(emitter, window), directory / name)
        if engine_cache:
            _write_cached(source, linears, data, directory / CACHED_NAME, context)
    return block_layers(linears)


def _write_cached(source: Source, linears: Linears, data: DataFile, path: Path, context: int) -> None:
    """The graph for a cache that the engine keeps, from the same data and the projections it needs repeated."""
    graph = Graph(data, OPSET)
    weights, spec = own_heads(source.weights)
    wide = Linears(graph, weights, linears.storage, written=linears.written)
    emitter = Emitter(graph, weights, wide, spec, primitive=True, fixed=(1, context))
    write_model(build_static(emitter, Window(1, context - 1, context, whole=True)), path)


def build_static(emitter: Emitter, window: Window) -> onnx.ModelProto:
    """One graph of fixed shape."""
    graph, spec = emitter.graph, emitter.spec
    graph.scope = "inputs"
    ids = graph.input("input_ids", np.int64, [1, window.tokens])
    positions = graph.input("position_ids", np.int64, [1, window.tokens])
    bias = graph.input("attention_bias", np.float32, [1, 1, window.tokens, window.past + window.tokens])
    x = emitter.embed(ids, positions)
    biases = {block.attention.window: bias for block in spec.blocks}
    tables = {
        rotary: _tables(graph, f"rotary/{number}", rotary, positions, window.context)
        for number, rotary in enumerate(_rotaries(spec))
    }
    fresh: list[tuple[str, str]] = []

    def cache(index: int, key: str, value: str) -> tuple[str, str]:
        joined = key, value
        if window.past:
            joined = (
                _with_past(emitter, index, "key", key, window),
                _with_past(emitter, index, "value", value, window),
            )
        fresh.append(joined if window.whole else (key, value))
        return joined

    for index in range(len(spec.blocks)):
        x = emitter.block(x, index, biases, tables, cache)
    logits = emitter.softcap(_head(emitter, emitter.finish(x)), spec.final_softcap)
    graph.output("logits", logits, [1, window.tokens, spec.vocab])
    kept, rows = ("present", window.past + window.tokens) if window.whole else ("new", window.tokens)
    for index, pair in enumerate(fresh):
        for part, value in zip(("key", "value"), pair, strict=True):
            heads = spec.kv_heads_of(spec.blocks[index].attention)
            graph.output(f"{kept}.{index}.{part}", value, [1, heads, rows, spec.head_dim])
    return graph.model(f"{spec.family} static decoder", IR_VERSION)


def _with_past(emitter: Emitter, index: int, part: str, new: str, window: Window) -> str:
    spec = emitter.spec
    shape = [1, spec.kv_heads_of(spec.blocks[index].attention), window.past, spec.head_dim]
    past = emitter.graph.input(f"past_key_values.{index}.{part}", np.float32, shape)
    return emitter.graph.op("Concat", past, new, axis=2)


def _rotaries(spec: DecoderSpec) -> list[Rotary]:
    found = dict.fromkeys(block.attention.rotary for block in spec.blocks)
    return [rotary for rotary in found if rotary is not None]


def _tables(graph: Graph, name: str, rotary: Rotary, positions: str, rows: int) -> tuple[str, str]:
    """cos and signed sin of the positions, [1, tokens, 1, channels], gathered from tables of `rows` positions."""
    angles = np.arange(rows, dtype=np.float32)[:, None] * np.asarray(rotary.inverse_frequencies, np.float32)
    cos, sin = (function(angles) * np.float32(rotary.scale) for function in (np.cos, np.sin))
    made = (np.concatenate([cos, cos], 1), np.concatenate([-sin, sin], 1))
    return _looked_up(graph, f"{name}/cos", made[0], positions), _looked_up(graph, f"{name}/sin", made[1], positions)


def _looked_up(graph: Graph, name: str, table: npt.NDArray[np.float32], positions: str) -> str:
    rows = graph.op("Gather", graph.weight(name, table), positions, axis=0)
    return graph.op("Unsqueeze", rows, graph.constant([2]))


def _head(emitter: Emitter, x: str) -> str:
    """Logits; a tied head is written out, because the engine packs MatMul weights and not a shared embedding."""
    graph, spec = emitter.graph, emitter.spec
    name = f"{spec.head}.weight"
    if not spec.tied:
        return emitter.linears.apply(x, spec.head, spec.vocab, spec.width)
    if name in graph.data:
        graph.tensors[name] = graph.data.known(name)
        return graph.op("MatMul", x, name, name=spec.head)
    return graph.op(
        "MatMul", x, graph.weight(name, emitter.weights.table(spec.embedding, spec.width).T), name=spec.head
    )
