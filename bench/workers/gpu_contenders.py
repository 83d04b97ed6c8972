"""The ways to multiply with one matrix that a GPU session compares: each takes W [out, in] bfloat16 and makes a product.

dense          cuBLAS (torch.mm) on the matrix cut to 2:4, zeros written out
dense compiled the same product through torch.compile, tuned: one row of x becomes a reduction that Triton runs
2:4 …          tailcut's kernels, as its dispatch chooses; the matrix is cut by magnitude, int8 and int4 also rounded
cusparselt 2:4 PyTorch's own semi-structured tensors
int4           dense 4-bit weights, groups of 128 (64 or 32 in narrow rows), by the tinygemm kernel that ships with torch (_weight_int4pack_mm)
unstructured … tailcut's kernels; the matrix is cut by magnitude over the whole of it
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Dict

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tailcut.kernels.gpu.bitmask_layout import Bitmask
    from tailcut.kernels.gpu.layer import Layer
    from tailcut.kernels.gpu.layouts import TwoFour

Apply = Callable[[Tensor], Tensor]
Apply2 = Callable[[Tensor, Tensor], Tensor]
INT4_GROUPS = (128, 64, 32)  # columns that share a scale: the first that divides a row
_SHAPES = 256  # pairs of shapes that one process compiles for
_SAMPLE = 1 << 20  # magnitudes that a threshold is taken from


@dataclass(frozen=True)
class Made:
    """A product with one matrix: x [rows, in] -> [rows, out]."""

    apply: Apply
    weight_bytes: int  # read by one product
    stored: Callable[[], Tensor]  # the matrix that it multiplies with, dense [out, in]
    again: Callable[[], Made]  # the same matrix elsewhere in memory
    exact: Callable[[], Tensor] | None = None  # the same before rounding to fewer bits
    path: Callable[[Tensor], str] = lambda x: ""  # which kernel runs for such an x
    ready: Callable[[Tensor], None] = lambda x: None  # tunes for such an x, before anything is captured
    bytes_for: Callable[[Tensor], int] | None = None  # of weights for such an x; None: always weight_bytes
    gated: Apply | None = None  # the same where gate lies over up: silu(gate x) * (up x), in one kernel


Maker = Callable[[Tensor], Made]
_state: Dict[str, Any] = {}


def dense(weight: Tensor) -> Made:
    transposed = weight.t()
    return Made(
        lambda x: torch.mm(x, transposed),
        weight.nbytes,
        lambda: weight,
        path=lambda x: "cuBLAS",
        again=lambda: dense(weight.clone()),
    )


def dense_cut(weight: Tensor) -> Made:
    return dense(_cut_two_four(weight))


def compiled(weight: Tensor) -> Made:
    """torch.compile with coordinate descent, as gpt-fast has it: a product with one row becomes a sum in Triton."""
    run = _compiled()
    gated = _compiled_gated()
    return Made(
        lambda x: run(x, weight),
        weight.nbytes,
        lambda: weight,
        path=lambda x: "torch.compile",
        again=lambda: compiled(weight.clone()),
        gated=lambda x: gated(x, weight),
    )


def tuning(wanted: bool) -> None:
    """Whether the dispatch measures its paths, or takes its rule (and what was measured before)."""
    _state["tune"] = wanted


def _transposed_product(x: Tensor, weight: Tensor) -> Tensor:
    return torch.mm(x, weight.t())


def _gated_product(x: Tensor, weight: Tensor) -> Tensor:
    gate, up = torch.mm(x, weight.t()).chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate.float()) * up.float()).to(x.dtype)


def _compiled() -> Apply2:
    return _compile("product", _transposed_product)


def _compiled_gated() -> Apply2:
    return _compile("gated", _gated_product)


def _compile(name: str, function: Apply2) -> Apply2:
    if name not in _state:
        torch._dynamo.config.recompile_limit = _SHAPES  # past it torch goes on without compiling
        options: Dict[str, Any] = {"coordinate_descent_tuning": True}
        _state[name] = torch.compile(function, dynamic=False, options=options)
    found: Apply2 = _state[name]
    return found


def two_four(weight: Tensor, bits: int = 16, *, forms: str = "all") -> Made:
    return packed_two_four(_cut_two_four(weight), bits, weight.dtype, forms)


def packed_two_four(cut: Tensor, bits: int, dtype: torch.dtype, forms: str) -> Made:
    """A matrix that is 2:4 already, through tailcut's dispatch; `dtype` is that of x.

    forms: "all" keeps every form that the dispatch may choose from, a dense copy among them; "sparse" those for one row and
    for a few rows of x, as a decode loop does. Rounding q * scale again gives the same q.
    """
    from tailcut.kernels.gpu.layer import make_layer
    from tailcut.kernels.gpu.two_four_pack import pack_two_four, unpack_two_four

    layout = pack_two_four(cut, bits, dtype)
    kept = unpack_two_four(layout).to(dtype) if forms == "all" else None
    fits = cut.is_cuda and forms == "all" and bits == 16 and all(size % 16 == 0 for size in layout.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch's class is a prototype
        layer = make_layer(layout, dense=kept, tiles=cut.is_cuda, cusparselt=fits)
    return _layer_product(layer, layout, None if bits == 16 else cut)


def _layer_product(layer: Layer, layout: TwoFour, exact: Tensor | None) -> Made:
    from tailcut.kernels.gpu import dispatch, step
    from tailcut.kernels.gpu.gemv import two_four_gemv
    from tailcut.kernels.gpu.two_four_pack import unpack_two_four

    def gated(x: Tensor) -> Tensor:
        if _path(layer, x) == "gemv":
            return two_four_gemv(x, layout, silu_pairs=True)
        return step.swiglu(dispatch.linear(x, layer))

    return Made(
        lambda x: dispatch.linear(x, layer),
        layout.nbytes,
        lambda: unpack_two_four(layout),
        again=lambda: _layer_product(_copied(layer), _copied(layout), exact),
        exact=None if exact is None else lambda: exact,
        path=partial(_path, layer),
        ready=partial(_ready, layer),
        bytes_for=lambda x: _layer_bytes(layer, layout.nbytes, _path(layer, x)),
        gated=gated,
    )


def _ready(layer: Layer, x: Tensor) -> None:
    """Measure the paths for as many rows, unless the rule is to be taken."""
    from tailcut.kernels.gpu import dispatch

    if x.is_cuda and _state.get("tune", True):
        dispatch.tune(layer, [len(x)])


def _path(layer: Layer, x: Tensor) -> str:
    from tailcut.kernels.gpu import dispatch

    return dispatch.choose(layer, len(x)).path


def _layer_bytes(layer: Layer, packed: int, path: str) -> int:
    """Bytes of weights that a path moves; `expand` writes the dense matrix and reads it again."""
    name = path.partition(":")[0]
    rows, columns = layer.shape
    dense = rows * columns * layer.dtype.itemsize
    if name == "cusparselt":
        return dense * 9 // 16  # half of the values and two bits for each of them
    sizes = {
        "dense": dense,
        "expand": packed + 2 * dense,
        "tiles": layer.tiles.nbytes if layer.tiles is not None else 0,
    }
    return sizes.get(name, packed)


def unstructured(weight: Tensor, sparsity: float, *, int8: bool = False, forms: str = "all") -> Made:
    """Cut by magnitude over the whole matrix, so that rows differ in length; `forms` as in `packed_two_four`."""
    from tailcut.kernels.gpu.bitmask_pack import pack_bitmask, unpack_bitmask
    from tailcut.kernels.gpu.layer import Layer

    sizes = weight.abs().flatten()
    sample = sizes[:: -(-sizes.numel() // _SAMPLE)].float()
    cut = torch.where(weight.abs() > sample.quantile(sparsity), weight, 0.0)
    layout = pack_bitmask(cut, 8 if int8 else 16)
    dense = unpack_bitmask(layout).to(weight.dtype) if forms == "all" else None
    return _bitmask_product(Layer(bitmask=layout, dense=dense), layout, cut if int8 else None)


def _bitmask_product(layer: Layer, layout: Bitmask, exact: Tensor | None) -> Made:
    from tailcut.kernels.gpu import dispatch
    from tailcut.kernels.gpu.bitmask_pack import unpack_bitmask

    return Made(
        lambda x: dispatch.linear(x, layer),
        layout.nbytes,
        lambda: unpack_bitmask(layout),
        again=lambda: _bitmask_product(_copied(layer), _copied(layout), exact),
        exact=None if exact is None else lambda: exact,
        path=partial(_path, layer),
        ready=partial(_ready, layer),
        bytes_for=lambda x: _layer_bytes(layer, layout.nbytes, _path(layer, x)),
    )


def _copied(value: Any) -> Any:  # noqa: ANN401 - a frozen dataclass of tensors and of such
    """The same elsewhere in memory."""
    if isinstance(value, Tensor):
        if type(value) is not Tensor:  # torch's 2:4 tensors
            return torch.sparse.to_sparse_semi_structured(value.to_dense())
        return value.clone()
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(value, **{part.name: _copied(getattr(value, part.name)) for part in fields(value)})


def cusparselt(weight: Tensor) -> Made:
    """PyTorch's semi-structured tensors; cuSPARSELt is their default back end. Its products come out strided, which the
    loop's kernels do not read."""
    from torch.sparse import to_sparse_semi_structured

    cut = _cut_two_four(weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the class is a prototype
        packed = to_sparse_semi_structured(cut)
    parts = (getattr(packed, name, None) for name in ("packed", "meta"))
    size = sum(part.nbytes for part in parts if isinstance(part, Tensor))
    return Made(
        lambda x: torch.nn.functional.linear(x, packed).contiguous(),
        size,
        lambda: cut,
        path=lambda x: type(packed).__name__,
        again=lambda: cusparselt(cut),
    )


def int4(weight: Tensor) -> Made:
    """Dense 4-bit weights by torch's tinygemm: the kernel behind torchao's tile-packed int4 as well."""
    out, columns = weight.shape
    group = next((size for size in INT4_GROUPS if columns % size == 0), 0)
    if out % 8 or not group:
        raise ValueError(f"tinygemm needs a multiple of 8 rows and of 32 columns, got {out} x {columns}")
    codes, scales, zeros = quantise_int4(weight, group)
    halves = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
    packed = torch.ops.aten._convert_weight_to_int4pack(halves, group // 16)
    pairs = torch.stack([scales, zeros], dim=-1).to(weight.dtype).transpose(0, 1).contiguous()
    stored_scales, stored_zeros = pairs[..., 0].T, pairs[..., 1].T

    def stored() -> Tensor:
        steps = (codes.float() - 8).view(out, -1, group)
        dense: Tensor = steps * stored_scales.float()[..., None] + stored_zeros.float()[..., None]
        return dense.flatten(1)

    return Made(
        lambda x: torch.ops.aten._weight_int4pack_mm(x, packed, group, pairs),
        packed.nbytes + pairs.nbytes,
        stored,
        exact=lambda: weight,
        path=lambda x: "torch _weight_int4pack_mm",
        again=lambda: int4(weight),
    )


def quantise_int4(weight: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """weight [out, in] -> codes int32 [out, in] in 0..15, scales and zeros [out, in / group]: (code - 8) scale + zero."""
    wide = weight.float().reshape(len(weight), -1, group)
    low, high = wide.amin(-1, keepdim=True), wide.amax(-1, keepdim=True)
    scales = ((high - low) / 15).clamp_min(1e-6)
    codes = ((wide - low) / scales).round().clamp(0, 15).int().flatten(1)
    return codes, scales.squeeze(-1), (low + 8 * scales).squeeze(-1)


def _cut_two_four(weight: Tensor) -> Tensor:
    from tailcut.kernels.gpu.weights import cut_two_four

    return cut_two_four(weight)


MAKERS: Dict[str, Maker] = {
    "dense": dense_cut,
    "dense compiled": compiled,
    "2:4 bf16": two_four,
    "2:4 int8": lambda weight: two_four(weight, 8),
    "2:4 int4": lambda weight: two_four(weight, 4),
    "cusparselt 2:4": cusparselt,
    "int4": int4,
    "unstructured 50% bf16": lambda weight: unstructured(weight, 0.5),
    "unstructured 80% bf16": lambda weight: unstructured(weight, 0.8),
    "unstructured 80% int8": lambda weight: unstructured(weight, 0.8, int8=True),
}
_LEAN: Dict[str, Callable[[Tensor, str], Made]] = {
    "2:4 bf16": lambda weight, forms: two_four(weight, forms=forms),
    "2:4 int8": lambda weight, forms: two_four(weight, 8, forms=forms),
    "2:4 int4": lambda weight, forms: two_four(weight, 4, forms=forms),
    "unstructured 50% bf16": lambda weight, forms: unstructured(weight, 0.5, forms=forms),
    "unstructured 80% bf16": lambda weight, forms: unstructured(weight, 0.8, forms=forms),
    "unstructured 80% int8": lambda weight, forms: unstructured(weight, 0.8, int8=True, forms=forms),
}


def for_decoding(name: str) -> Maker:
    """How a decode loop holds its matrices: without dense copies, and dense weights as they are."""
    if name == "dense":
        return dense
    if name in _LEAN:
        return lambda weight: _LEAN[name](weight, "sparse")
    return MAKERS[name]
