"""A Gemma 3 GGUF file (text only) -> Hugging Face names, config and tokenizer, with the `gguf` package only.

GGUF stores the norms' weights w + 1, transformers' Gemma wants w. What the file does not say is fixed by the family
(its config class in transformers): every sixth block sees the whole context and the others a sliding window, whose
rotary base is 10,000. Queries are scaled by the head dimension, as in all Gemma 3 models below 27B.

The tokenizer is SentencePiece BPE: pieces with a score and no list of merges. A merge of two pieces is possible where
their joined text is a piece, and the piece of the highest score goes first. The pieces that the vocabulary declares
user-defined (runs of spaces, newlines, tabs, HTML tags) are matched in the text before anything is merged.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from tailcut.compress.models import _gguf
from tailcut.compress.models._gguf import Float32, GgufModel
from tailcut.errors import InputError

_BLOCK_NAMES: Final[Mapping[str, str]] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k": "self_attn.k_proj",
    "attn_k_norm": "self_attn.k_norm",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_OUTER_NAMES: Final[Mapping[str, str]] = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
_GLOBAL_EVERY: Final = 6
_LOCAL_BASE: Final = 10_000.0
_NORMAL_PIECE: Final = 1  # gguf token type
_SPACE: Final = "\u2581"  # what SentencePiece writes for a space


def config(model: GgufModel) -> dict[str, Any]:
    """`config.json` of a Gemma3ForCausalLM."""
    values, head = _gguf.shapes(model), int(model.require("gemma3.attention.key_length"))
    theta = _gguf.shortest(model.require("gemma3.rope.freq_base"))
    blocks = range(1, int(values["num_hidden_layers"]) + 1)
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        **values,
        "head_dim": head,
        "query_pre_attn_scalar": head,
        "sliding_window": int(model.require("gemma3.attention.sliding_window")),
        "layer_types": ["sliding_attention" if i % _GLOBAL_EVERY else "full_attention" for i in blocks],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": _LOCAL_BASE},
        },
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "tie_word_embeddings": True,
        "dtype": "float32",
        **_gguf.special_ids(model),
    }


def dequantised(model: GgufModel, names: Sequence[Sequence[str]]) -> Iterator[dict[str, Float32]]:
    """For each group of GGUF names: Hugging Face name -> float32 tensor, [out, in] or [features]."""
    for group in names:
        yield {_gguf.hf_name(n, _OUTER_NAMES, _BLOCK_NAMES, "Gemma 3"): _dequantise(model, n) for n in group}


def _dequantise(model: GgufModel, name: str) -> Float32:
    weight = _gguf.dequantise(model, name)
    return weight - 1 if name.endswith("norm.weight") else weight


def tokenizer(model: GgufModel) -> dict[str, Any]:
    """`tokenizer.json`: BPE over text whose spaces are written as SentencePiece does, bytes where no piece fits."""
    kind = model.require("tokenizer.ggml.model")
    if kind != "llama":
        raise InputError(f"GGUF tokenizer {kind!r} is not one this tailcut knows for Gemma (llama)")
    tokens: list[str] = model.require("tokenizer.ggml.tokens")
    kinds: list[int] = model.require("tokenizer.ggml.token_type")
    bos = int(model.require("tokenizer.ggml.bos_token_id"))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _gguf.added_token(i, text, special=kinds[i] == _gguf.CONTROL_TOKEN)
            for i, text in enumerate(tokens)
            if kinds[i] in (_gguf.CONTROL_TOKEN, _gguf.USER_TOKEN)
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
        "pre_tokenizer": None,
        "post_processor": _begin_with(bos, tokens[bos]),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": tokens[int(model.require("tokenizer.ggml.unknown_token_id"))],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {text: i for i, text in enumerate(tokens)},
            "merges": merges(tokens, kinds, model.require("tokenizer.ggml.scores")),
        },
    }


def merges(tokens: Sequence[str], kinds: Sequence[int], scores: Sequence[float]) -> list[list[str]]:
    """Every pair of pieces whose joined text is a piece, best score of that piece first, then the longer left part."""
    pieces = {text: score for text, kind, score in zip(tokens, kinds, scores, strict=True) if kind == _NORMAL_PIECE}
    found: list[list[str]] = []
    for piece in sorted(pieces, key=lambda text: -pieces[text]):
        cuts = range(len(piece) - 1, 0, -1)
        found += [[piece[:at], piece[at:]] for at in cuts if piece[:at] in pieces and piece[at:] in pieces]
    return found


def _begin_with(index: int, text: str) -> dict[str, Any]:
    """The post-processor that puts one token in front of every text."""
    token, first = {"SpecialToken": {"id": text, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second = [{"SpecialToken": {"id": text, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "type": "TemplateProcessing",
        "single": [token, first],
        "pair": [token, first, *second],
        "special_tokens": {text: {"id": text, "ids": [index], "tokens": [text]}},
    }


def tokenizer_config(model: GgufModel) -> dict[str, Any]:
    """`tokenizer_config.json`; the base model has no chat template."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bool(model.require("tokenizer.ggml.add_bos_token")),
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(model.require("gemma3.context_length")),
        **_gguf.special_tokens(model),
    }
