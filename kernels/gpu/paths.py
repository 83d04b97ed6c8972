"""The ways to multiply with a Layer, by name, and which of them a fixed rule takes.

gemv        one row of x, Triton (gemv.py)
tiles       1 to 64 rows on sparse tensor cores (batch.py); tiles:PLAN with other settings than the rule's
dense       cuBLAS on the dense copy
cusparselt  torch's own 2:4
dot         1 to 64 rows, expanded in registers for dense tensor cores, Triton (batch_dot.py)
expand      the dense matrix written anew, then cuBLAS
"""

from typing import Final

import torch
from torch import Tensor

from tailcut.errors import InputError
from tailcut.kernels.gpu import batch, nvrtc
from tailcut.kernels.gpu.batch import MOST_ROWS, Plan, two_four_batch
from tailcut.kernels.gpu.batch_dot import DOT_ROWS, expand, two_four_dot
from tailcut.kernels.gpu.bitmask_pack import unpack_bitmask
from tailcut.kernels.gpu.gemv import two_four_gemv
from tailcut.kernels.gpu.layer import Layer
from tailcut.kernels.gpu.tiles import tiles_to_dense
from tailcut.kernels.gpu.unstructured import bitmask_gemv

BITMASK_ROWS: Final = 8  # of x, one after the other; above, writing the matrix out and multiplying densely is taken
FEW_ROWS: Final = 64  # above, the rule takes a dense product even if the matrix must be expanded for it
# what the rule takes, first to last; the limits are those of an H100's times
TILES_ROWS: Final = 32  # up to here the tile kernel beat dense for every shape timed, at 64 rows it lost most
NARROW: Final = 4096  # columns up to which the one-row kernel is not behind the tile kernel
_ONE_NARROW: Final[tuple[str, ...]] = ("gemv", "tiles", "bitmask", "dense", "dot", "cusparselt", "expand")
_ONE_WIDE: Final[tuple[str, ...]] = ("tiles", *_ONE_NARROW)
_FEW: Final[tuple[str, ...]] = ("tiles", "dense", "bitmask", "dot", "cusparselt", "expand")
_MORE: Final[tuple[str, ...]] = ("dense", "tiles", "dot", "cusparselt", "expand")
_MANY: Final[tuple[str, ...]] = ("dense", "cusparselt", "expand")


def paths(layer: Layer, rows: int) -> tuple[str, ...]:
    """Names of the paths that can multiply `rows` rows with the forms kept."""
    tiled = layer.tiles is not None and layer.device.type == "cuda" and layer.shape[1] % 8 == 0
    able = {
        "gemv": layer.two_four is not None and rows == 1,
        "tiles": tiled and rows <= MOST_ROWS and nvrtc.available(),
        "dense": layer.dense is not None,
        "cusparselt": layer.cusparselt is not None,
        "dot": layer.two_four is not None and rows <= DOT_ROWS,
        "bitmask": layer.bitmask is not None and rows <= BITMASK_ROWS,
        "expand": layer.two_four is not None or layer.tiles is not None or layer.bitmask is not None,
    }
    return tuple(path for path, can in able.items() if can)


def rule(layer: Layer, rows: int) -> str:
    """Without measurements: our kernels for a few rows; then dense where it is kept, else what there is."""
    open_to = paths(layer, rows)
    if rows == 1:
        order = _ONE_NARROW if layer.shape[1] <= NARROW else _ONE_WIDE
    else:
        order = _FEW if rows <= TILES_ROWS else _MORE if rows <= FEW_ROWS else _MANY
    return next(path for path in order if path in open_to)  # every form has a path for any number of rows


def candidates(layer: Layer, bucket: int) -> list[str]:
    """Paths worth timing; the tile kernel once a plan, as tiles:PLAN."""
    open_to, found = paths(layer, bucket), []
    for path in open_to:
        if path == "dot" and "tiles" in open_to:
            continue  # never faster, and slow to compile
        if path == "expand" and layer.two_four is None and layer.tiles is None:
            continue  # unpacking a bitmask waits for the GPU, which a CUDA graph cannot hold
        found += _tile_paths(layer, bucket) if path == "tiles" else [path]
    return found


def _tile_paths(layer: Layer, bucket: int) -> list[str]:
    number = layer.device.index
    plans = batch.plans(bucket, layer.shape, batch.processors(number), torch.cuda.get_device_capability(number))
    return [f"tiles:{plan.name}" for plan in plans]


def run_path(path: str, x: Tensor, layer: Layer) -> Tensor:  # noqa: PLR0911 a line a path
    """x [m, in] by one path, as `paths` or `candidates` name it -> [m, out]."""
    name, _, plan = path.partition(":")
    if name == "gemv" and layer.two_four is not None:
        return two_four_gemv(x, layer.two_four)
    if name == "tiles" and layer.tiles is not None:
        return two_four_batch(x, layer.tiles, plan=Plan.parse(plan) if plan else None)
    if name == "dense" and layer.dense is not None:
        return x @ layer.dense.T
    if name == "cusparselt" and layer.cusparselt is not None:
        return torch.nn.functional.linear(x, layer.cusparselt).contiguous()  # it comes out strided
    if name == "dot" and layer.two_four is not None:
        return two_four_dot(x, layer.two_four)
    if name == "bitmask" and layer.bitmask is not None:
        return bitmask_gemv(x.contiguous(), layer.bitmask)
    if name == "expand":
        return x @ _expanded(layer).T
    raise InputError(f"this layer cannot take the path {path!r}")


def _expanded(layer: Layer) -> Tensor:
    if layer.two_four is not None:
        return expand(layer.two_four)
    if layer.tiles is not None:
        return tiles_to_dense(layer.tiles).to(layer.dtype)
    if layer.bitmask is not None:
        return unpack_bitmask(layer.bitmask).to(layer.dtype)
    raise InputError("this layer has no form to expand")
