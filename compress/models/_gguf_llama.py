"""A Llama GGUF file -> Hugging Face names, config and tokenizer, with the `gguf` package only.

GGUF stores q and k with the two halves of every rotary pair interleaved; `unpermute` puts the rows back
where transformers expects them. Dequantised values are float32. The tokenizer is byte-level BPE: vocabulary
and merges as stored, and the pre-tokenizer that `tokenizer.ggml.pre` names.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from tailcut.compress.models import _gguf
from tailcut.compress.models._gguf import Float32, GgufModel
from tailcut.errors import InputError

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


def config(model: GgufModel) -> dict[str, Any]:
    """`config.json` of a LlamaForCausalLM."""
    values, theta = _gguf.shapes(model), _gguf.shortest(model.require("llama.rope.freq_base"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        **values,
        "head_dim": int(values["hidden_size"]) // int(values["num_attention_heads"]),
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": "output.weight" not in model.tensors,
        "dtype": "float32",
        **_gguf.special_ids(model),
    }


def dequantised(model: GgufModel, names: Sequence[Sequence[str]]) -> Iterator[dict[str, Float32]]:
    """For each group of GGUF names: Hugging Face name -> float32 tensor [out, in]."""
    for group in names:
        yield {_gguf.hf_name(n, _OUTER_NAMES, _BLOCK_NAMES, "Llama"): _dequantise(model, n) for n in group}


def _dequantise(model: GgufModel, name: str) -> Float32:
    weight = _gguf.dequantise(model, name)
    for part, key in (("attn_q", "head_count"), ("attn_k", "head_count_kv")):
        if f".{part}." in name:
            return unpermute(weight, int(model.require(f"llama.attention.{key}")))
    return weight


def unpermute(weight: Float32, heads: int) -> Float32:
    """[heads * dim, in] with rotary pairs (i, i + dim/2) as neighbours -> transformers' order, halves apart."""
    rows, columns = weight.shape
    paired = weight.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(paired.swapaxes(1, 2).reshape(rows, columns))


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
        "added_tokens": [
            _gguf.added_token(i, text) for i, text in enumerate(tokens) if kinds[i] == _gguf.CONTROL_TOKEN
        ],
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
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bool(model.require("tokenizer.ggml.add_bos_token")),
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(model.require("llama.context_length")),
        "chat_template": model.require("tokenizer.chat_template"),
        **_gguf.special_tokens(model),
    }


def _digits(model: GgufModel) -> list[dict[str, Any]]:
    """`smollm` splits every digit off before GPT-2's pattern is applied; transformers' GGUF loader forgets this."""
    pre = model.require("tokenizer.ggml.pre")
    if pre != "smollm":
        raise InputError(f"GGUF pre-tokenizer {pre!r} is not one this tailcut knows (smollm)")
    return [{"type": "Digits", "individual_digits": True}]
