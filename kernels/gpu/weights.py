"""The weights of a Llama-family model as torch tensors: from a Hugging Face directory, or random by shape.

Query, key and value are stacked into one matrix and so are gate and up, because one large matrix-vector product
reads memory faster than three small ones. Packed (bitmask) and dense directories read the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from tailcut.checkpoint import Checkpoint
from tailcut.errors import InputError
from tailcut.kernels.gpu.llama import Architecture, read_architecture
from tailcut.kernels.gpu.two_four_pack import to_torch

PLACES: Final[Mapping[str, tuple[str, ...]]] = {  # a place of a block -> the HF matrices stacked there
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """One decoder block: norms [hidden], and the matrix [out, in] of each place in `PLACES`."""

    attention_norm: Tensor
    mlp_norm: Tensor
    matrices: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Weights:
    """A model: embedding and head [vocabulary, hidden] (one tensor if tied), blocks, last norm [hidden]."""

    architecture: Architecture
    embedding: Tensor
    blocks: tuple[BlockWeights, ...]
    final_norm: Tensor
    head: Tensor

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype


def read_weights(directory: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Weights:
    """A HF directory's weights; `dtype` converts them (None keeps the embedding's stored one for all)."""
    checkpoint = Checkpoint(directory)
    architecture = read_architecture(checkpoint.config)
    reader = _Reader(checkpoint, torch.device(device), dtype)
    embedding = reader.read("model.embed_tokens.weight", (architecture.vocabulary, architecture.hidden))
    reader = _Reader(checkpoint, torch.device(device), embedding.dtype)
    head_name = "lm_head.weight"
    tied = architecture.tied or head_name not in checkpoint
    return Weights(
        architecture,
        embedding,
        tuple(_read_block(reader, architecture, index) for index in range(architecture.layers)),
        reader.read("model.norm.weight", (architecture.hidden,)),
        embedding if tied else reader.read(head_name, (architecture.vocabulary, architecture.hidden)),
    )


def random_weights(
    architecture: Architecture, device: torch.device | str, dtype: torch.dtype, seed: int = 0, *, two_four: bool = False
) -> Weights:
    """Seeded normal weights with the spread of a trained model's (1 / sqrt(in)); `two_four` cuts the blocks to 2:4."""
    device = torch.device(device)
    generator = torch.Generator(device).manual_seed(seed)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, device=device, dtype=dtype, generator=generator).mul_(columns**-0.5)

    def norm() -> Tensor:
        noise = torch.randn(architecture.hidden, device=device, dtype=torch.float32, generator=generator)
        return (1 + 0.1 * noise).to(dtype)

    def block() -> BlockWeights:
        matrices = {place: matrix(*shape) for place, shape in architecture.block_shapes.items()}
        cut = {place: cut_two_four(weight) for place, weight in matrices.items()} if two_four else matrices
        return BlockWeights(norm(), norm(), cut)

    embedding = matrix(architecture.vocabulary, architecture.hidden)
    head = embedding if architecture.tied else matrix(architecture.vocabulary, architecture.hidden)
    return Weights(architecture, embedding, tuple(block() for _ in range(architecture.layers)), norm(), head)


def cut_two_four(weight: Tensor) -> Tensor:
    """The two largest magnitudes of every four columns, the first of equals; weight [out, in] -> the same with zeros."""
    size = weight.abs().view(weight.shape[0], -1, 4)
    ahead = torch.zeros(size.shape, dtype=torch.int8, device=size.device)  # how many of the four come before each
    for shift in (1, 2, 3):  # a sort of four numbers a row is far slower on a GPU than six comparisons
        other, first = size.roll(shift, -1), torch.arange(4, device=size.device) >= shift
        ahead += (other > size) | ((other == size) & first)
    return torch.where((ahead < 2).view_as(weight), weight, 0)


@dataclass(frozen=True, slots=True)
class _Reader:
    checkpoint: Checkpoint
    device: torch.device
    dtype: torch.dtype | None

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        found = self.checkpoint.shape(name)
        if found != shape:
            raise InputError(f"{name}: is {found} in the checkpoint, the config says {shape}")
        tensor = to_torch(self.checkpoint.read_finite(name))
        if not tensor.is_floating_point():
            raise InputError(f"{name}: stored as {tensor.dtype}; give a checkpoint of floating-point weights")
        return tensor.to(self.device, self.dtype)


def _read_block(reader: _Reader, architecture: Architecture, index: int) -> BlockWeights:
    prefix, norm = f"model.layers.{index}", (architecture.hidden,)
    queries, keys = architecture.heads * architecture.head_dim, architecture.kv_heads * architecture.head_dim
    rows = {"qkv": (queries, keys, keys), "gate_up": (architecture.intermediate,) * 2}
    matrices = {
        place: torch.cat(
            [
                reader.read(f"{prefix}.{name}.weight", (count, columns))
                for name, count in zip(PLACES[place], rows.get(place, (out,)), strict=True)
            ]
        )
        for place, (out, columns) in architecture.block_shapes.items()
    }
    return BlockWeights(
        reader.read(f"{prefix}.input_layernorm.weight", norm),
        reader.read(f"{prefix}.post_attention_layernorm.weight", norm),
        matrices,
    )
