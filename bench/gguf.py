"""A dense package of the llama family as a GGUF file with Q8_0 or Q4_0 matrices, for llama.cpp.

GGUF: magic, version 3, counts, key-value pairs, tensor table, then tensor data at multiples of 32 bytes. Dimensions are
listed fastest first. llama.cpp rotates neighbouring pairs of a head where Hugging Face rotates its halves, so the rows
of the query and key matrices are reordered. Every matrix is quantised, the output matrix and the embedding table
included (llama.cpp's own recipe for Q4_0 keeps the output matrix at 6 bits; here all engines follow one rule). No
tokenizer is written: tokens go in and logits come out as numbers.
"""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np
import numpy.typing as npt

from tailcut.bench.package_weights import projection_rows
from tailcut.bench.quantise import BLOCK, Codes, Floats, q4_0, q8_0
from tailcut.bench.stored import StoredGraph, open_graph
from tailcut.errors import InputError
from tailcut.manifest import verify
from tailcut.shapes import differs

Bits = Literal[8, 4]
FILE_NAME: Final = "model.gguf"
_ALIGNMENT: Final = 32
_F32, _Q4_0, _Q8_0 = 0, 2, 8  # tensor types
_FILE_TYPE: Final = {8: 7, 4: 2}  # general.file_type: mostly Q8_0, mostly Q4_0
_UINT32, _FLOAT32, _STRING = 4, 6, 8  # value types
_LAYER: Final = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of the table; `rows` gives float32 [out, in] (or [n]) when it is time to write it."""

    name: str
    shape: tuple[int, ...]
    kind: int
    rows: Callable[[], Floats]

    @property
    def size_bytes(self) -> int:
        count = int(np.prod(self.shape))
        return {_F32: 4 * count, _Q8_0: count // BLOCK * 34, _Q4_0: count // BLOCK * 18}[self.kind]


def unfit(config: Mapping[str, Any]) -> str | None:
    """None if a model of this config can be written, else why not."""
    if config.get("model_type") != "llama":
        return f"only the llama family is written as GGUF here, this is {config.get('model_type')!r}"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" or config.get("attention_bias") or config.get("mlp_bias"):
        return "only plain rotary positions and matrices without bias are written as GGUF here"
    if differs(config):
        return "blocks of different shapes are not written as GGUF here"
    if config["hidden_size"] % BLOCK or config["intermediate_size"] % BLOCK:
        return f"llama.cpp's blocks need matrices of a multiple of {BLOCK} inputs"
    return None


def convert(package: Path, out: Path, bits: Bits) -> dict[str, Any]:
    """Write `out`/model.gguf from a dense package; facts about it."""
    config = json.loads((package / "config.json").read_bytes())
    if reason := unfit(config):
        raise InputError(f"{package}: {reason}")
    verify(package, hashes=False)
    tensors = list(_tensors(open_graph(package / "model.onnx"), config, bits))
    with (out / FILE_NAME).open("wb") as stream:
        write(stream, _metadata(config, bits), tensors)
    return {"weights": f"Q{bits}_0 in every matrix, the output matrix included", "tensors": len(tensors)}


def write(stream: BinaryIO, metadata: Mapping[str, str | int | float], tensors: list[Tensor]) -> None:
    """The whole file."""
    stream.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    stream.writelines(_text(key) + _value(value) for key, value in metadata.items())
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        stream.write(_text(tensor.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
        stream.write(struct.pack("<IQ", tensor.kind, offset))
        offset += -(-tensor.size_bytes // _ALIGNMENT) * _ALIGNMENT
    for tensor in tensors:
        stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
        stream.writelines(np.ascontiguousarray(part).data for part in _encoded(tensor))
    stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))


def _encoded(tensor: Tensor) -> Iterator[npt.NDArray[Any]]:
    """The tensor's bytes, a few thousand rows at a time."""
    rows = tensor.rows()
    encode: Callable[[Floats], Codes] | None = {_Q8_0: q8_0, _Q4_0: q4_0}.get(tensor.kind)
    if encode is None:
        yield rows
        return
    for start in range(0, len(rows), 4096):
        yield encode(rows[start : start + 4096])


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: str | float) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    return struct.pack("<If", _FLOAT32, value) if isinstance(value, float) else struct.pack("<II", _UINT32, value)


def _metadata(config: Mapping[str, Any], bits: Bits) -> dict[str, str | int | float]:
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    return {
        "general.architecture": "llama",
        "general.quantization_version": 2,
        "general.file_type": _FILE_TYPE[bits],
        "llama.vocab_size": config["vocab_size"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.block_count": config["num_hidden_layers"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": config.get("num_key_value_heads") or heads,
        "llama.attention.key_length": width,
        "llama.attention.value_length": width,
        "llama.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "llama.rope.dimension_count": width,
        "llama.rope.freq_base": float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
        "tokenizer.ggml.model": "no_vocab",
    }


def _tensors(graph: StoredGraph, config: Mapping[str, Any], bits: Bits) -> Iterator[Tensor]:
    heads = config["num_attention_heads"]
    groups = {"attn_q": heads, "attn_k": config.get("num_key_value_heads") or heads}

    def read(name: str) -> Floats:
        found = graph.array(name) if name in graph.tensors else _part(graph, name, config)
        if found is None or found.dtype != np.float32:
            raise InputError(f"{graph.path}: no float32 {name}; the GGUF file is made from a dense float32 package")
        return found

    def vector(name: str, source: str) -> Tensor:
        return Tensor(name, read(source).shape, _F32, lambda: read(source))

    def matrix(name: str, source: str, *, flipped: bool = True, heads: int = 0) -> Tensor:
        def rows() -> Floats:
            found = read(source).T if flipped else read(source)
            return _neighbours(found, heads) if heads else found

        shape = read(source).shape[::-1] if flipped else read(source).shape
        return Tensor(name, shape, _Q8_0 if bits == 8 else _Q4_0, rows)

    yield matrix("token_embd.weight", "model.embed_tokens.weight", flipped=False)
    for index in range(config["num_hidden_layers"]):
        for source, name in _LAYER.items():
            place = (f"blk.{index}.{name}.weight", f"model.layers.{index}.{source}.weight")
            yield vector(*place) if name.endswith("norm") else matrix(*place, heads=groups.get(name, 0))
    yield vector("output_norm.weight", "model.norm.weight")
    if not config.get("tie_word_embeddings"):
        yield matrix("output.weight", "lm_head.weight")


def _part(graph: StoredGraph, name: str, config: Mapping[str, Any]) -> Floats | None:
    """One projection [in, out] of a matrix that joins several: `a.q_proj+k_proj+v_proj.weight` holds `a.k_proj.weight`."""
    scope, _, last = name.removesuffix(".weight").rpartition(".")
    for stored in graph.tensors:
        parts = stored.removeprefix(f"{scope}.").removesuffix(".weight").split("+")
        if stored.startswith(f"{scope}.") and len(parts) > 1 and last in parts:
            ends = np.cumsum([projection_rows(config)[part] for part in parts])
            index = parts.index(last)
            return graph.array(stored)[:, ends[index] - projection_rows(config)[last] : ends[index]]
    return None


def _neighbours(rows: Floats, heads: int) -> Floats:
    """Rows [heads * width, in] of a rotated projection: halves of a head become neighbouring pairs."""
    width = rows.shape[0] // heads
    return rows.reshape(heads, 2, width // 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
