"""Sparse products as one torch operator, `tailcut::sparse_linear`, that torch.compile and CUDA graphs take as it is.

An operator takes tensors and text, not dataclasses: `split` takes a layout apart into its tensors and one line of JSON
that says what they are, and `join` puts it together again (no copies; a few microseconds on the host, none in a graph).
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from tailcut.errors import InputError
from tailcut.kernels.gpu import dispatch
from tailcut.kernels.gpu.bitmask_layout import Bitmask
from tailcut.kernels.gpu.bitmask_pack import unpack_bitmask
from tailcut.kernels.gpu.layer import Layer
from tailcut.kernels.gpu.layouts import TwoFour
from tailcut.kernels.gpu.two_four_pack import unpack_two_four
from tailcut.kernels.gpu.unstructured import bitmask_gemv

Layout = TwoFour | Bitmask
LAYOUTS: Final[Mapping[str, type[TwoFour] | type[Bitmask]]] = {"two_four": TwoFour, "bitmask": Bitmask}
FEW_ROWS: Final = 16  # from here on an unstructured matrix is written out once and multiplied densely


def split(layout: Layout) -> tuple[dict[str, Tensor], str]:
    """A layout -> its tensors by field name, and the rest as JSON."""
    values = {field.name: getattr(layout, field.name) for field in dataclasses.fields(layout)}
    parts = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    rest = {name: value for name, value in values.items() if name not in parts and name != "dtype"}
    name = next(name for name, kind in LAYOUTS.items() if isinstance(layout, kind))
    text = {"layout": name, "parts": list(parts), "dtype": str(layout.dtype).removeprefix("torch."), **rest}
    return parts, json.dumps(text)


def join(parts: Sequence[Tensor], description: str) -> Layout:
    """The inverse of `split`; InputError if the parts do not fit the description."""
    text = read_description(description)
    settings = {name: value for name, value in text.items() if name not in ("layout", "parts", "dtype")}
    settings |= {"shape": tuple(text["shape"]), "dtype": getattr(torch, text["dtype"])}
    tensors = dict(zip(text["parts"], parts, strict=True))
    return LAYOUTS[text["layout"]](**tensors, **settings)


@functools.lru_cache(maxsize=4096)
def read_description(description: str) -> Mapping[str, Any]:
    """What `split` wrote, checked: it may come from a file."""
    try:
        text = json.loads(description)
        known = {field.name for field in dataclasses.fields(LAYOUTS[text["layout"]])}
        fits = set(text) - {"layout", "parts"} | set(text["parts"]) == known and len(text["shape"]) == 2
        fits &= str(text["dtype"]) in ("bfloat16", "float16")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"a sparse linear's description is damaged ({error}); save the model again") from error
    if not fits:
        raise InputError("a sparse linear's description does not fit this tailcut's layouts; pack the model again")
    return dict(text)


def product(x: Tensor, layout: Layout) -> Tensor:
    """x [..., in] -> [..., out] in x's dtype; on a CPU by the plain formula."""
    rows, columns = layout.shape
    if x.shape[-1] != columns:
        raise InputError(f"x has {x.shape[-1]} columns, the sparse matrix {columns}")
    flat = x.reshape(-1, columns)
    if not x.is_cuda:
        y = (flat.float() @ dense_of(layout).float().T).to(x.dtype)
    elif isinstance(layout, TwoFour):
        y = dispatch.linear(flat, Layer(layout))
    elif len(flat) <= FEW_ROWS:
        y = bitmask_gemv(flat.contiguous(), layout)
    else:
        y = flat @ dense_of(layout).to(x.dtype).T
    return y.reshape(*x.shape[:-1], rows)


def dense_of(layout: Layout) -> Tensor:
    """The matrix [out, in] that a layout stands for: 16-bit values exactly, 8 and 4 bits as float32."""
    return unpack_two_four(layout) if isinstance(layout, TwoFour) else unpack_bitmask(layout)


@torch.library.custom_op("tailcut::sparse_linear", mutates_args=())
def sparse_linear(x: Tensor, parts: Sequence[Tensor], description: str) -> Tensor:
    """x [..., in] times the matrix that `split` took apart -> [..., out]. No gradients."""
    return product(x, join(parts, description))


@sparse_linear.register_fake
def _(x: Tensor, parts: Sequence[Tensor], description: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], read_description(description)["shape"][0])
