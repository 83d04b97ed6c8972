"""A Llama-family model that can run: norms, and a callable for every matrix, so that any product can stand there."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tailcut.kernels.gpu import dispatch, step, step_reference
from tailcut.kernels.gpu.gemv import two_four_gemv
from tailcut.kernels.gpu.layer import Layer, make_layer
from tailcut.kernels.gpu.llama import Architecture
from tailcut.kernels.gpu.two_four_pack import pack_two_four
from tailcut.kernels.gpu.weights import Weights

Linear = Callable[[Tensor], Tensor]
MakeLinear = Callable[[str, Tensor], Linear]


@dataclass(frozen=True, slots=True)
class Activated:
    """A gate-and-up product that already gives silu(gate) * up [rows, intermediate]."""

    apply: Linear


MakeGateUp = Callable[[str, Tensor], Linear | Activated]


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


def assemble(
    weights: Weights,
    linear: MakeLinear = dense_linear,
    head: MakeLinear = dense_linear,
    *,
    gate_up: MakeGateUp | None = None,
) -> Model:
    """`linear(name, weight)` makes each block's products, such as "layers.0.qkv"; `head` the last one, "head".

    `gate_up`, where given, makes that place's product instead, and may fuse what comes after it (`Activated`).
    """
    blocks = tuple(
        Block(
            attention_norm=block.attention_norm,
            qkv=linear(f"layers.{index}.qkv", block.matrices["qkv"]),
            o=linear(f"layers.{index}.o", block.matrices["o"]),
            mlp_norm=block.mlp_norm,
            gate_up=(gate_up or linear)(f"layers.{index}.gate_up", block.matrices["gate_up"]),
            down=linear(f"layers.{index}.down", block.matrices["down"]),
        )
        for index, block in enumerate(weights.blocks)
    )
    last = head("head", weights.head)
    return Model(weights.architecture, weights.embedding, blocks, weights.final_norm, last)


def assemble_two_four(weights: Weights, bits: int = 16, *, tune: bool = False, rows: int = 1) -> Model:
    """A model whose blocks are 2:4, through `dispatch`; silu(gate) * up is made in the product where the one-row kernel
    is taken for it.

    On a GPU each matrix is kept twice, for one row of x and for several. `tune` times the paths of each distinct shape
    for `rows` rows (the decode step's batch) here, before anything is captured; times known from before are used anyway.
    """
    tuned: set[tuple[int, int]] = set()

    def layer(name: str, weight: Tensor) -> Layer:
        made = make_layer(pack_two_four(weight, bits, weights.dtype, name=name), tiles=weight.is_cuda)
        if tune and made.shape not in tuned:
            dispatch.tune(made, (rows,))
            tuned.add(made.shape)
        return made

    def linear(name: str, weight: Tensor) -> Linear:
        packed = layer(name, weight)
        return lambda x: dispatch.linear(x, packed)

    def gate_up(name: str, weight: Tensor) -> Activated:
        packed = layer(name, weight)
        return Activated(lambda x: _gated(x, packed))

    return assemble(weights, linear, gate_up=gate_up)


def _gated(x: Tensor, layer: Layer) -> Tensor:
    if len(x) == 1 and layer.two_four is not None and dispatch.choose(layer, 1).path == "gemv":
        return two_four_gemv(x, layer.two_four, silu_pairs=True)
    product = dispatch.linear(x, layer)
    return step.swiglu(product) if x.is_cuda else step_reference.swiglu(product)
