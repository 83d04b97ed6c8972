"""Which matrices are cut: every linear inside the decoder blocks of a Hugging Face causal LM.

Embeddings, the head, norms and biases are never touched and are not counted in the global sparsity. Fused
`qkv_proj` and `gate_up_proj` are ordinary linears. GPT-2's `Conv1D` stores [in, out]; it is shown as [out, in].
"""

from dataclasses import dataclass

import numpy as np
from transformers.pytorch_utils import Conv1D

from tailcut.bitmask import Array
from tailcut.checkpoint import Checkpoint
from tailcut.compress.skeleton import Skeleton, TensorNames, build_skeleton, linears_of
from tailcut.errors import InputError


@dataclass(frozen=True, slots=True)
class Linear:
    """One prunable matrix of a checkpoint."""

    name: str  # module name as in transformers, "model.layers.0.mlp.up_proj"
    block: int  # index of its decoder block
    tensor: str  # checkpoint tensor name
    shape: tuple[int, int]  # [out features, in features]
    transposed: bool  # stored as [in, out]

    @property
    def parameters(self) -> int:
        return self.shape[0] * self.shape[1]


def find_linears(checkpoint: Checkpoint) -> tuple[Linear, ...]:
    """Every prunable matrix, in model order; InputError if weights and config disagree or the family is unknown."""
    return linears_of_skeleton(checkpoint, build_skeleton(checkpoint))


def linears_of_skeleton(checkpoint: Checkpoint, skeleton: Skeleton) -> tuple[Linear, ...]:
    """The same for a skeleton that is already built."""
    names = TensorNames(checkpoint, skeleton)
    found: list[Linear] = []
    for index, block in enumerate(skeleton.blocks):
        for inner, module in linears_of(block):
            name = skeleton.block_prefix(index) + inner
            stored = (int(module.weight.shape[0]), int(module.weight.shape[1]))
            transposed = isinstance(module, Conv1D)
            tensor = names.require(f"{name}.weight", stored)
            found.append(Linear(name, index, tensor, stored[::-1] if transposed else stored, transposed))
    _refuse_shared(found, checkpoint)
    return tuple(found)


def read_weight(checkpoint: Checkpoint, linear: Linear) -> Array:
    """The matrix as [out, in] in its stored dtype (a view); InputError on NaN, infinity or integer storage."""
    weight = checkpoint.read_finite(linear.tensor)
    if np.issubdtype(weight.dtype, np.integer):
        raise InputError(
            f"{linear.name}: stored as {weight.dtype} (quantised weights); give the unquantised checkpoint"
        )
    return weight.T if linear.transposed else weight


def _refuse_shared(linears: list[Linear], checkpoint: Checkpoint) -> None:
    seen: dict[str, str] = {}
    for linear in linears:
        if linear.tensor in seen:
            raise InputError(
                f"{checkpoint.directory}: {linear.name} and {seen[linear.tensor]} share the tensor {linear.tensor}; "
                "models with shared blocks are not handled"
            )
        seen[linear.tensor] = linear.name
