"""A Llama GGUF file -> Hugging Face names, config and tokenizer, with the `gguf` package only.

GGUF stores q and k with the two halves of every rotary pair interleaved; `unpermute` puts the rows back
where transformers expects them. Dequantised values are float32. The tokenizer is byte-level BPE: vocabulary
and merges as stored, and the pre-tokenizer that `tokenizer.ggml.pre` names.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tailcut.errors import InputError, MissingEnvironmentError

Float32 = npt.NDArray[np.float32]

_BLOCK_NAMES: Final[Mapping[str, str]] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER_NAMES: Final[Mapping[str, str]] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_CONTROL_TOKEN = 3  # gguf token type of <|im_start|> and its kin


@dataclass(frozen=True, slots=True)
class GgufModel:
    """An open GGUF file: metadata by key, and tensors by GGUF name."""

    fields: Mapping[str, Any]
    tensors: Mapping[str, Any]

    def require(self, key: str) -> Any:  # noqa: ANN401  values of any JSON-like type
        if key not in self.fields:
            raise InputError(f"GGUF file has no metadata {key}; it is not the file this tailcut knows")
        return self.fields[key]


def open_gguf(path: Path) -> GgufModel:
    """Read metadata and the tensor table; tensor data stays mapped on disk."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise MissingEnvironmentError("the gguf package is not installed; run: pip install gguf") from error
    reader = GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    return GgufModel(fields, {tensor.name: tensor for tensor in reader.tensors})


def config(model: GgufModel) -> dict[str, Any]:
    """`config.json` of a LlamaForCausalLM."""
    heads, hidden = int(model.require("llama.attention.head_count")), int(model.require("llama.embedding_length"))
    theta = _shortest(model.require("llama.rope.freq_base"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": int(model.require("llama.feed_forward_length")),
        "num_hidden_layers": int(model.require("llama.block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(model.require("llama.attention.head_count_kv")),
        "head_dim": hidden // heads,
        "max_position_embeddings": int(model.require("llama.context_length")),
        "rms_norm_eps": _shortest(model.require("llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "attention_bias": False,
        "mlp_bias": False,
        "vocab_size": len(model.require("tokenizer.ggml.tokens")),
        "tie_word_embeddings": "output.weight" not in model.tensors,
        "dtype": "float32",
        **special_ids(model),
    }


def special_ids(model: GgufModel) -> dict[str, int]:
    """The ids that config.json and generation_config.json both carry."""
    spelt = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
    return {name: int(model.require(f"tokenizer.ggml.{key}")) for name, key in spelt.items()}


def _shortest(value: float) -> float:
    """The shortest decimal that is this float32: GGUF's 9.999999747378752e-06 is 1e-05."""
    return float(str(np.float32(value)))


def groups(model: GgufModel, blocks_each: int) -> tuple[tuple[str, ...], ...]:
    """GGUF tensor names in shards: what lies outside the blocks, then `blocks_each` blocks at a time."""
    count = int(model.require("llama.block_count"))
    outer = tuple(name for name in model.tensors if not name.startswith("blk."))
    shards = [outer]
    for first in range(0, count, blocks_each):
        wanted = tuple(f"blk.{index}." for index in range(first, min(first + blocks_each, count)))
        shards.append(tuple(name for name in model.tensors if name.startswith(wanted)))
    return tuple(shards)


def dequantised(model: GgufModel, names: Sequence[Sequence[str]]) -> Iterator[dict[str, Float32]]:
    """For each group of GGUF names: Hugging Face name -> float32 tensor [out, in]."""
    for group in names:
        yield {hf_name(name): _dequantise(model, name) for name in group}


def _dequantise(model: GgufModel, name: str) -> Float32:
    from gguf import dequantize

    tensor = model.tensors[name]
    weight = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
    weight = weight.reshape([int(size) for size in reversed(tensor.shape)])
    for part, key in (("attn_q", "head_count"), ("attn_k", "head_count_kv")):
        if f".{part}." in name:
            return unpermute(weight, int(model.require(f"llama.attention.{key}")))
    return weight


def unpermute(weight: Float32, heads: int) -> Float32:
    """[heads * dim, in] with rotary pairs (i, i + dim/2) as neighbours -> transformers' order, halves apart."""
    rows, columns = weight.shape
    paired = weight.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(paired.swapaxes(1, 2).reshape(rows, columns))


def hf_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    stem, _, kind = name.rpartition(".")
    if stem in _OUTER_NAMES:
        return f"{_OUTER_NAMES[stem]}.{kind}"
    prefix, _, part = stem.rpartition(".")
    if not prefix.startswith("blk.") or part not in _BLOCK_NAMES:
        raise InputError(f"GGUF tensor {name} has no place in a Llama model")
    return f"model.layers.{prefix.removeprefix('blk.')}.{_BLOCK_NAMES[part]}.{kind}"


def tokenizer(model: GgufModel) -> dict[str, Any]:
    """`tokenizer.json`: byte-level BPE as the file stores it."""
    tokens: list[str] = model.require("tokenizer.ggml.tokens")
    kinds: list[int] = model.require("tokenizer.ggml.token_type")
    merges: list[str] = model.require("tokenizer.ggml.merges")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(i, text) for i, text in enumerate(tokens) if kinds[i] == _CONTROL_TOKEN],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*_digits(model), byte_level]},
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: i for i, text in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }


def tokenizer_config(model: GgufModel) -> dict[str, Any]:
    """`tokenizer_config.json`, special tokens and chat template included."""
    tokens = model.require("tokenizer.ggml.tokens")
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    special = {name: tokens[int(model.require(f"tokenizer.ggml.{key}_token_id"))] for name, key in names.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bool(model.require("tokenizer.ggml.add_bos_token")),
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(model.require("llama.context_length")),
        "chat_template": model.require("tokenizer.chat_template"),
        **special,
    }


def _digits(model: GgufModel) -> list[dict[str, Any]]:
    """`smollm` splits every digit off before GPT-2's pattern is applied; transformers' GGUF loader forgets this."""
    pre = model.require("tokenizer.ggml.pre")
    if pre != "smollm":
        raise InputError(f"GGUF pre-tokenizer {pre!r} is not one this tailcut knows (smollm)")
    return [{"type": "Digits", "individual_digits": True}]


def _added(index: int, text: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": index, "content": text, **flags}
