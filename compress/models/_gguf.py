"""An open GGUF file and what every family needs of it: names into shards, plain values, added tokens.

Only the `gguf` package is used. Dequantised values are float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tailcut.errors import InputError, MissingEnvironmentError

Float32 = npt.NDArray[np.float32]
CONTROL_TOKEN: Final = 3  # gguf token type of <|im_start|> and its kin
USER_TOKEN: Final = 4  # gguf token type of pieces that are matched before any merging


@dataclass(frozen=True, slots=True)
class GgufModel:
    """An open GGUF file: metadata by key, and tensors by GGUF name."""

    fields: Mapping[str, Any]
    tensors: Mapping[str, Any]

    def require(self, key: str) -> Any:  # noqa: ANN401  values of any JSON-like type
        if key not in self.fields:
            raise InputError(f"GGUF file has no metadata {key}; it is not the file this tailcut knows")
        return self.fields[key]

    @property
    def family(self) -> str:
        """What the keys of the architecture begin with: "llama", "gemma3"."""
        return str(self.require("general.architecture"))


def open_gguf(path: Path) -> GgufModel:
    """Read metadata and the tensor table; tensor data stays mapped on disk."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise MissingEnvironmentError("the gguf package is not installed; run: pip install gguf") from error
    reader = GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    return GgufModel(fields, {tensor.name: tensor for tensor in reader.tensors})


def shapes(model: GgufModel) -> dict[str, int | float]:
    """The entries of `config.json` that every family spells alike, without the head dimension."""
    numbers = {
        "hidden_size": "embedding_length",
        "intermediate_size": "feed_forward_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "max_position_embeddings": "context_length",
    }
    values: dict[str, int | float] = {
        name: int(model.require(f"{model.family}.{key}")) for name, key in numbers.items()
    }
    values["rms_norm_eps"] = shortest(model.require(f"{model.family}.attention.layer_norm_rms_epsilon"))
    values["vocab_size"] = len(model.require("tokenizer.ggml.tokens"))
    return values


def special_ids(model: GgufModel) -> dict[str, int]:
    """The ids that config.json and generation_config.json both carry."""
    spelt = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
    return {name: int(model.require(f"tokenizer.ggml.{key}")) for name, key in spelt.items()}


def special_tokens(model: GgufModel) -> dict[str, str]:
    """The same and the unknown token as text, as tokenizer_config.json has them."""
    tokens = model.require("tokenizer.ggml.tokens")
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    return {name: tokens[int(model.require(f"tokenizer.ggml.{key}_token_id"))] for name, key in names.items()}


def shortest(value: float) -> float:
    """The shortest decimal that is this float32: GGUF's 9.999999747378752e-06 is 1e-05."""
    return float(str(np.float32(value)))


def groups(model: GgufModel, blocks_each: int) -> tuple[tuple[str, ...], ...]:
    """GGUF tensor names in shards: what lies outside the blocks, then `blocks_each` blocks at a time."""
    count = int(model.require(f"{model.family}.block_count"))
    outer = tuple(name for name in model.tensors if not name.startswith("blk."))
    shards = [outer]
    for first in range(0, count, blocks_each):
        wanted = tuple(f"blk.{index}." for index in range(first, min(first + blocks_each, count)))
        shards.append(tuple(name for name in model.tensors if name.startswith(wanted)))
    return tuple(shards)


def dequantise(model: GgufModel, name: str) -> Float32:
    """One tensor as float32 in [out, in] order."""
    from gguf import dequantize

    tensor = model.tensors[name]
    weight = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
    return weight.reshape([int(size) for size in reversed(tensor.shape)])


def hf_name(name: str, outer: Mapping[str, str], inner: Mapping[str, str], family: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`, by the names outside and inside the blocks."""
    stem, _, kind = name.rpartition(".")
    if stem in outer:
        return f"{outer[stem]}.{kind}"
    prefix, _, part = stem.rpartition(".")
    if not prefix.startswith("blk.") or part not in inner:
        raise InputError(f"GGUF tensor {name} has no place in a {family} model")
    return f"model.layers.{prefix.removeprefix('blk.')}.{inner[part]}.{kind}"


def added_token(index: int, text: str, *, special: bool = True) -> dict[str, Any]:
    """An entry of tokenizer.json's added tokens, matched in the text as it is."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    return {"id": index, "content": text, **flags}
