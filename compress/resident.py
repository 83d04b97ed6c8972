"""Weights of a checkpoint put into parts of its skeleton, and taken out again: what is in memory, and when."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Literal, get_args

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn

from tailcut.bitmask import Array
from tailcut.checkpoint import Checkpoint
from tailcut.compress.attention import quicken
from tailcut.compress.skeleton import Skeleton, TensorNames, head_tensor
from tailcut.errors import InputError

Forward = Literal["float32", "bfloat16"]  # arithmetic of passes over text; pruning itself is always in float32
_DTYPES: Final[Mapping[str, torch.dtype]] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def forward_dtype(name: str) -> torch.dtype:
    """The dtype of a `Forward`; InputError for other names."""
    if name not in _DTYPES:
        raise InputError(f"passes over text are computed in {' or '.join(get_args(Forward))}, got {name!r}")
    return _DTYPES[name]


class Weights:
    """One checkpoint, its skeleton, and where and how the arithmetic is done."""

    def __init__(self, checkpoint: Checkpoint, skeleton: Skeleton, device: str, dtype: torch.dtype) -> None:
        self.checkpoint, self.skeleton = checkpoint, skeleton
        self.device, self.dtype = torch.device(device), dtype
        if self.device.type == "cuda":
            quicken(skeleton.model)
        self._names = TensorNames(checkpoint, skeleton)
        self.rest: dict[str, str] = {}  # parameter name -> checkpoint tensor of what `load_rest` loaded

    def block_tensors(self, index: int) -> dict[str, str]:
        """Parameter name inside the block -> checkpoint tensor."""
        prefix, block = self.skeleton.block_prefix(index), self.skeleton.blocks[index]
        return {
            name: self._names.require(prefix + name, tuple(parameter.shape))
            for name, parameter in block.named_parameters()
        }

    @contextmanager
    def block(self, index: int, replaced: Mapping[str, Array] | None = None) -> Iterator[nn.Module]:
        """One block with its weights on the device. `replaced` (tensor name -> array) goes before the checkpoint."""
        block = self.load_block(index, replaced)
        try:
            yield block
        finally:
            for name, parameter in list(block.named_parameters()):
                put(block, name, torch.empty(parameter.shape, device="meta"))
            self.checkpoint.release()

    def load_block(self, index: int, replaced: Mapping[str, Array] | None = None) -> nn.Module:
        """The same for good: its weights stay on the device."""
        block, arrays = self.skeleton.blocks[index], replaced or {}
        for name, tensor in self.block_tensors(index).items():
            put(block, name, self.to_device(arrays[tensor] if tensor in arrays else self.checkpoint.read(tensor)))
        _move_buffers(block, self.device)
        return block

    def load_rest(self) -> None:
        """Everything of the text model but the blocks: embeddings, final norm, head. Stays resident."""
        model: Any = self.skeleton.model
        decoder: nn.Module = model.get_decoder() or model
        wanted = {id(parameter) for parameter in decoder.parameters()}
        wanted -= {id(parameter) for parameter in self.skeleton.blocks.parameters()}
        claimed: set[str] = set()
        for name, parameter in list(model.named_parameters()):
            if id(parameter) in wanted:
                tensor = self._names.require(name, tuple(parameter.shape))
                put(model, name, self.to_device(self.checkpoint.read(tensor)))
                self.rest[name] = tensor
                claimed.add(tensor)
        _move_buffers(model, self.device)
        self._load_head(model, frozenset(claimed))
        self.checkpoint.release()

    def to_device(self, array: Array) -> Tensor:
        """A stored array as a tensor in the computing dtype; it goes to the device as it is stored and is widened there."""
        return as_tensor(array).to(self.device).to(self.dtype)

    def _load_head(self, model: Any, claimed: frozenset[str]) -> None:  # noqa: ANN401  (untyped library object)
        head: nn.Module = model.get_output_embeddings()
        name = next(name for name, module in model.named_modules() if module is head)
        texts = model.config.get_text_config(decoder=True)
        if getattr(model.config, "tie_word_embeddings", False) or getattr(texts, "tie_word_embeddings", False):
            head.weight = model.get_input_embeddings().weight
            if (stored := self._names.find(f"{name}.weight")) is not None:  # some checkpoints hold the same twice
                self.rest[f"{name}.weight"] = stored
        else:
            shape = tuple(int(size) for size in model.get_output_embeddings().weight.shape)
            found = self._names.find(f"{name}.weight") or head_tensor(self.checkpoint, shape, claimed)
            self.rest[f"{name}.weight"] = found or self._names.require(f"{name}.weight", shape)
            put(head, "weight", self.to_device(self.checkpoint.read(self.rest[f"{name}.weight"])))
        bias = getattr(head, "bias", None)
        if isinstance(bias, Tensor):
            tensor = self.rest[f"{name}.bias"] = self._names.require(f"{name}.bias", tuple(bias.shape))
            put(head, "bias", self.to_device(self.checkpoint.read(tensor)))


def as_tensor(array: Array) -> Tensor:
    """A stored array [...] as a tensor of its own dtype and bits in memory of its own."""
    # copies, since torch warns of read-only views. It cannot read numpy's bfloat16, but its bits
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(np.array(array, order="C").view(np.int16)).view(torch.bfloat16)
    known = array.dtype in (np.float16, np.float32, np.float64)
    return torch.from_numpy(np.array(array, array.dtype if known else np.float32, order="C"))


def as_array(tensor: Tensor) -> Array:
    """A tensor [...] as a contiguous array of the same dtype and bits."""
    lying = tensor.contiguous().cpu()
    if lying.dtype == torch.bfloat16:
        return lying.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    array: Array = lying.numpy()
    return array


def put(module: nn.Module, name: str, value: Tensor) -> None:
    """Set the parameter `name` (dotted) of a module, whatever device it was on."""
    path, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(path), leaf, nn.Parameter(value, requires_grad=False))


def _move_buffers(module: nn.Module, device: torch.device) -> None:
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(device)
