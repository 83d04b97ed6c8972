"""`SparseLinear`: a drop-in for `torch.nn.Linear` whose weight is one of tailcut's sparse layouts.

    module = SparseLinear.from_linear(linear, "two_four")        # exact: bits 16; 8 and 4 bits round
    module.load_state_dict(other.state_dict())                   # exact, also where other's layout has other sizes

The layout's tensors are buffers, and what they are is kept beside them in the state dict as a tensor of bytes, so
safetensors files hold it. Inference only. Casting the module changes its bias, not the packed weight.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from tailcut.errors import InputError
from tailcut.kernels.gpu.bitmask_pack import pack_bitmask
from tailcut.kernels.gpu.products import Layout, dense_of, join, read_description, sparse_linear, split
from tailcut.kernels.gpu.two_four_pack import pack_two_four

Kind = Literal["two_four", "unstructured"]
_EXTRA: Final = "_extra_state"
_INTEGERS: Final = {2: torch.int16, 4: torch.int32}


class SparseLinear(nn.Module):
    """y = x W^T + bias, W [out_features, in_features] sparse. x in the layout's dtype."""

    def __init__(self, layout: Layout, bias: Tensor | None = None) -> None:
        super().__init__()
        parts, self._description = split(layout)
        self._names = list(parts)
        for name, part in parts.items():
            self.register_buffer(name, part)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.out_features, self.in_features = layout.shape

    @classmethod
    def from_linear(cls, linear: nn.Linear, kind: Kind, bits: int = 16, name: str = "linear") -> "SparseLinear":
        """A linear whose weight is 2:4 or has zeros anywhere; InputError names `name` where it does not fit."""
        weight = linear.weight.detach()
        packed: Layout = (pack_two_four if kind == "two_four" else pack_bitmask)(weight, bits, name=name)
        return cls(packed, linear.bias)

    @property
    def layout(self) -> Layout:
        """The packed weight; its tensors are the module's buffers."""
        return join(self._parts(), self._description)

    @property
    def weight(self) -> Tensor:
        """The weight unpacked, [out, in]: a new tensor at every call, for inspection."""
        return dense_of(self.layout)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        y: Tensor = sparse_linear(x, self._parts(), self._description)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        kind, bits = read_description(self._description)["layout"], read_description(self._description)["bits"]
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {kind}, bits={bits}"

    def get_extra_state(self) -> Tensor:
        """The layout's description as uint8, for the state dict."""
        return torch.frombuffer(bytearray(self._description.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        self._description = _decode(state)
        text = read_description(self._description)
        self._names = list(text["parts"])
        self.out_features, self.in_features = (int(size) for size in text["shape"])
        self.layout  # noqa: B018 refuses parts that do not fit each other

    def _parts(self) -> list[Tensor]:
        return [self.get_buffer(name) for name in self._names]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:  # noqa: ANN401
        """Make room for a layout of other sizes first; torch then copies and checks as usual."""
        if prefix + _EXTRA in state_dict:
            names = read_description(_decode(state_dict[prefix + _EXTRA]))["parts"]
            missing = [prefix + name for name in names if prefix + name not in state_dict]
            if missing:
                raise InputError(f"{missing[0]}: missing from the state dict of a sparse linear")
            device = self._parts()[0].device
            self._buffers.clear()
            for name in names:
                self.register_buffer(name, torch.empty_like(state_dict[prefix + name], device=device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SparseLinear":
        """Moves go through; casts leave the layout alone, whose scales have a type of their own."""

        def packed(tensor: Tensor) -> Tensor:
            if isinstance(tensor, nn.Parameter) or not tensor.is_floating_point():
                return fn(tensor)
            return fn(tensor.view(_INTEGERS[tensor.dtype.itemsize])).view(tensor.dtype)

        super()._apply(packed, recurse)  # type: ignore[no-untyped-call]
        return self


def _decode(state: Tensor) -> str:
    if state.dtype != torch.uint8 or state.ndim != 1:
        raise InputError("a sparse linear's description is not a row of bytes; save the model again")
    return bytes(state.tolist()).decode(errors="replace")
