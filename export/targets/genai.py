"""onnxruntime-genai: genai_config.json beside model.onnx, and a cache that grows by concatenation.

What its loop needs: the names of inputs and outputs, the cache's shape (one for all blocks), the ids that end a text, and
`past_present_share_buffer` off: with it on, genai would hand in a cache of full length whose tail model.onnx takes for text.
Sliding windows are in the graph's own mask, so genai is told of none.

The layout is dense: ONNX Runtime maps such a file, but unpacks a bitmask one at every start (SmolLM2-135M at 50 %: seconds
against half a minute, 0.8 against 4.8 GB; docs/targets.md).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tailcut.errors import InputError
from tailcut.export.forms import Layout
from tailcut.export.layouts import Storage
from tailcut.export.spec import DecoderSpec
from tailcut.export.targets import Asked, Variant, settled
from tailcut.export.targets._json import read_json, write_json
from tailcut.kernels.package import MODEL_NAME

SUMMARY: Final = "onnxruntime-genai: genai_config.json for its own search loop and tokenizer."
VARIANT: Final[Variant] = "onnx"
LAYOUTS: Final[tuple[Layout, ...]] = ("dense", "bitmask")
CONFIG_NAME: Final = "genai_config.json"
# model types that genai 0.18 has a name for and runs as one plain decoder; `decoder` serves every other family. Its phi3 would
# run a prompt anew where LongRoPE changes factors, which the graph does itself; its gpt2 wants another cache.
TYPES: Final = frozenset({"gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3"})
_OTHER: Final = "decoder"
_TOKENS: Final = ("bos_token_id", "eos_token_id", "pad_token_id")


def settle(asked: Asked) -> Storage:
    return settled("genai", asked, LAYOUTS)


def unfit(spec: DecoderSpec) -> str | None:
    if any(spec.kv_heads_of(block.attention) != spec.kv_heads for block in spec.blocks):
        return "its blocks have different numbers of key/value heads, and genai_config.json states one for all"
    return None


def finish(directory: Path, spec: DecoderSpec) -> None:
    """Write genai_config.json."""
    tokens = read_json(directory / "config.json") | read_json(directory / "generation_config.json")
    write_json(directory / CONFIG_NAME, {"model": _model(spec, tokens), "search": _search(spec)})


def _token(name: str, value: object) -> int | list[int]:
    """An id or a list of ids."""
    ids = [one for one in (value if isinstance(value, list) else [value]) if type(one) is int and one >= 0]
    if not ids or (isinstance(value, list) and len(ids) != len(value)):
        raise InputError(
            f"{name} is {value!r}, which is no token's id; mend it in config.json or generation_config.json"
        )
    return ids if isinstance(value, list) else ids[0]


def _model(spec: DecoderSpec, tokens: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: _token(name, tokens[name]) for name in _TOKENS if name in tokens}
    end = known.get("eos_token_id", [])
    # genai hides pads at the ends of a prompt: a prompt that ends with the end token must not lose it
    if known.get("pad_token_id", -1) in (-1, *(end if isinstance(end, list) else [end])):
        known["pad_token_id"] = spec.vocab - 1
    return {
        "type": spec.family if spec.family in TYPES else _OTHER,
        "context_length": spec.max_positions,
        "vocab_size": spec.vocab,
        **known,
        "decoder": _decoder(spec),
    }


def _decoder(spec: DecoderSpec) -> dict[str, Any]:
    return {
        "filename": MODEL_NAME,
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "hidden_size": spec.hidden,
        "head_size": spec.head_dim,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "num_hidden_layers": len(spec.blocks),
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }


def _search(spec: DecoderSpec) -> dict[str, Any]:
    """Greedy, until the context is full; a caller changes it with set_search_options."""
    return {
        "do_sample": False,
        "early_stopping": True,
        "max_length": spec.max_positions,
        "min_length": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "past_present_share_buffer": False,
        "repetition_penalty": 1.0,
        "temperature": 1.0,
        "top_k": 1,
        "top_p": 1.0,
    }
