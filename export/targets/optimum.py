"""optimum-onnx 0.1: `ORTModelForCausalLM.from_pretrained` on the package directory.

It opens the one file called model.onnx, takes every input with .key or .value in its name as the cache and hands the past in
that order. For the first run it makes an empty past whose shape it takes from config.json by rules of its own, stated in
`unfit`; a graph of another shape would be refused by ONNX Runtime at the first token. The layout is dense, for the reason
that the genai target gives.
"""

from pathlib import Path
from typing import Final

from tailcut.export.forms import Layout
from tailcut.export.layouts import Storage
from tailcut.export.spec import DecoderSpec
from tailcut.export.targets import Asked, Variant, settled
from tailcut.export.targets._json import read_json, write_json

SUMMARY: Final = "optimum's ORTModelForCausalLM, with the transformers 4 that it needs."
VARIANT: Final[Variant] = "onnx"
LAYOUTS: Final[tuple[Layout, ...]] = ("dense", "bitmask")
# model types whose config it asks for head_dim, and for num_key_value_heads; optimum-onnx 0.1.0, modeling_decoder.py
_OWN_HEAD_DIM: Final = frozenset({"gemma3_text"})
_OWN_KV_HEADS: Final = frozenset({"gemma3_text", "llama", "mistral", "qwen2", "qwen3"})


def settle(asked: Asked) -> Storage:
    return settled("optimum", asked, LAYOUTS)


def unfit(spec: DecoderSpec) -> str | None:
    if any(spec.kv_heads_of(block.attention) != spec.kv_heads for block in spec.blocks):
        return "its blocks have different numbers of key/value heads, and optimum makes one empty cache for all"
    if spec.family not in _OWN_HEAD_DIM and spec.head_dim * spec.heads != spec.hidden:
        return (
            f"optimum takes hidden / heads = {spec.hidden // spec.heads} for the head's width of {spec.family} models, "
            f"this one's is {spec.head_dim}; use --target onnxruntime or genai"
        )
    if spec.family not in _OWN_KV_HEADS and spec.kv_heads != spec.heads:
        return (
            f"optimum gives {spec.family} models as many key/value heads as heads, {spec.heads}, this one has "
            f"{spec.kv_heads}; use --target onnxruntime or genai"
        )
    return None


def finish(directory: Path, spec: DecoderSpec) -> None:
    """Where config.json switches the cache off, optimum would leave out the present outputs: it is switched on."""
    config = read_json(directory / "config.json")
    if config.get("use_cache") is False:
        write_json(directory / "config.json", config | {"use_cache": True})
