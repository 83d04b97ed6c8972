"""Llama directories of real shapes with seeded random weights, for latency work.

Where only time and bytes matter, values do not: a 1.1B or 7B model is written in seconds to minutes with
one block in memory. Every tensor has its own generator, seeded with the seed and the tensor's name, so a
tensor does not depend on the order of writing. Weights are normal with standard deviation 0.02 (the usual
initialisation), so activations and logits stay finite. Quality figures of such a model mean nothing.

Same seed, same numpy: same bytes. numpy may change its normal sampler between versions (NEP 19).
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np

from tailcut import __version__
from tailcut.bitmask import Array
from tailcut.compress.models import DType, ModelSettings
from tailcut.compress.models._writing import write_json, write_shards
from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.manifest import Manifest, file_entries
from tailcut.progress import Reporter

SUMMARY: Final = "Llama of real shapes (--like tiny, 1.1b or 7b) with seeded random weights, for latency work only"
NOTE: Final = "random weights: latency and size mean something, quality does not"
DEFAULT_DTYPE: Final[DType] = "float16"
DTYPES: Final[dict[DType, np.dtype[Any]]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
}
_STD = np.float32(0.02)
_SPECIAL: Final = ("<unk>", "<s>", "</s>")


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that make a Llama: hidden and intermediate widths, blocks, heads, key-value heads, vocabulary."""

    hidden: int
    intermediate: int
    blocks: int
    heads: int
    kv_heads: int
    vocabulary: int
    positions: int

    @property
    def kv_width(self) -> int:
        return self.hidden // self.heads * self.kv_heads

    @property
    def parameters(self) -> int:
        attention = 2 * self.hidden * (self.hidden + self.kv_width)
        block = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.blocks * block + 2 * self.vocabulary * self.hidden + self.hidden


SHAPES: Final[dict[str, Shape]] = {
    "tiny": Shape(64, 160, 4, 4, 2, 512, 512),
    "1.1b": Shape(2048, 5632, 22, 32, 4, 32000, 2048),  # TinyLlama 1.1B
    "7b": Shape(4096, 11008, 32, 32, 32, 32000, 2048),  # LLaMA-7B
}


def make(directory: Path, settings: ModelSettings, report: Reporter) -> Manifest:
    """Write the model's files into `directory`; the manifest is written by the caller."""
    like = settings.like or "1.1b"
    if like not in SHAPES:
        raise InputError(f"no shapes like {like!r} are known; choose one of {', '.join(SHAPES)}")
    shape, dtype = SHAPES[like], settings.dtype or DEFAULT_DTYPE
    require_space(directory, shape.parameters * DTYPES[dtype].itemsize)
    groups = _groups(shape, settings.seed, DTYPES[dtype])
    parameters = write_shards(directory, groups, shape.blocks + 2, report)
    _write_texts(directory, shape, dtype)
    return Manifest(
        kind="model",
        made_by=f"tailcut {__version__} models get",
        source={"name": f"synthetic-llama-{like}", "dtype": dtype, "seed": str(settings.seed)},
        layers={},
        total_parameters=parameters,
        files=file_entries(directory),
        notes=(NOTE,),
    )


def require_space(directory: Path, needed_bytes: int) -> None:
    """Fail before the first byte when the disk cannot hold the weights."""
    free = shutil.disk_usage(directory).free
    if free < needed_bytes:
        raise MissingEnvironmentError(
            f"{directory.parent}: the model needs {needed_bytes / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free"
        )


def tensor(seed: int, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """One weight, [out, in] normal with standard deviation 0.02; a norm's weight [hidden] is all ones."""
    if len(shape) == 1:
        return np.ones(shape, dtype)
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    values = np.random.default_rng(int.from_bytes(digest)).standard_normal(shape, dtype=np.float32)
    values *= _STD
    return values.astype(dtype, copy=False)


def _groups(shape: Shape, seed: int, dtype: np.dtype[Any]) -> Iterator[dict[str, Array]]:
    """Embedding, then one block at a time, then the final norm and the head."""
    table = (shape.vocabulary, shape.hidden)
    outer: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": table}
    last: dict[str, tuple[int, ...]] = {"model.norm.weight": (shape.hidden,), "lm_head.weight": table}
    for group in (outer, *(_block(shape, index) for index in range(shape.blocks)), last):
        yield {name: tensor(seed, name, size, dtype) for name, size in group.items()}


def _block(shape: Shape, index: int) -> dict[str, tuple[int, ...]]:
    width, wide, kv = shape.hidden, shape.intermediate, shape.kv_width
    sizes: dict[str, tuple[int, ...]] = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (kv, width),
        "self_attn.v_proj": (kv, width),
        "self_attn.o_proj": (width, width),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (wide, width),
        "mlp.up_proj": (wide, width),
        "mlp.down_proj": (width, wide),
    }
    return {f"model.layers.{index}.{name}.weight": size for name, size in sizes.items()}


def _write_texts(directory: Path, shape: Shape, dtype: DType) -> None:
    write_json(directory / "config.json", _config(shape, dtype))
    write_json(directory / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    write_json(directory / "tokenizer.json", _byte_tokenizer())
    special = {"unk_token": _SPECIAL[0], "bos_token": _SPECIAL[1], "eos_token": _SPECIAL[2], "pad_token": _SPECIAL[0]}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    write_json(directory / "tokenizer_config.json", {**settings, "model_max_length": shape.positions, **special})


def _config(shape: Shape, dtype: DType) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.blocks,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden // shape.heads,
        "max_position_embeddings": shape.positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "attention_bias": False,
        "mlp_bias": False,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": False,
        "dtype": dtype,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def _byte_tokenizer() -> dict[str, Any]:
    """A byte-level tokenizer without merges: three special tokens, then one token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: index for index, text in enumerate((*_SPECIAL, *alphabet))}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(_SPECIAL))

    return dict(json.loads(made.to_str()))
