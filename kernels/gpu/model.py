"""A Llama-family model that can run: norms, and a callable for every matrix, so that any product can stand there."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tailcut.kernels.gpu.llama import Architecture
from tailcut.kernels.gpu.weights import Weights

Linear = Callable[[Tensor], Tensor]
MakeLinear = Callable[[str, Tensor], Linear]


@dataclass(frozen=True, slots=True)
class Activated:
    """A gate-and-up product that already gives silu(gate) * up [rows, intermediate]."""

    apply: Linear


@dataclass(frozen=True, slots=True)
class Block:
    """One decoder block that can run."""

    attention_norm: Tensor
    qkv: Linear
    o: Linear
    mlp_norm: Tensor
    gate_up: Linear | Activated
    down: Linear


@dataclass(frozen=True, slots=True)
class Model:
    """A model that can run: `embedding` [vocabulary, hidden] tells device and dtype."""

    architecture: Architecture
    embedding: Tensor
    blocks: tuple[Block, ...]
    final_norm: Tensor
    head: Linear


def dense_linear(name: str, weight: Tensor) -> Linear:
    """weight [out, in] through torch's own product (cuBLAS on a GPU)."""
    del name
    transposed = weight.t()
    return lambda x: torch.mm(x, transposed)


def assemble(weights: Weights, linear: MakeLinear = dense_linear, head: MakeLinear = dense_linear) -> Model:
    """`linear(name, weight)` makes each block's products, such as "layers.0.qkv"; `head` the last one, "head"."""
    blocks = tuple(
        Block(
            attention_norm=block.attention_norm,
            mlp_norm=block.mlp_norm,
            **{place: linear(f"layers.{index}.{place}", weight) for place, weight in block.matrices.items()},
        )
        for index, block in enumerate(weights.blocks)
    )
    last = head("head", weights.head)
    return Model(weights.architecture, weights.embedding, blocks, weights.final_norm, last)
