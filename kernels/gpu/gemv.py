"""y = W x for one row of x and a 2:4 W in 16, 8 or 4 bits, at the speed at which the weights can be read.

`two_four_gemv` launches one Triton kernel (`gemv_kernel.py`). Decode wants a few sums done while y is still in
registers: a residual added, the reciprocal root of an RMSNorm multiplied in, or silu(gate) * up where gate and up are
stacked. Sums are float32 and rounded once, at the end. A weight that was cut is not multiplied: infinity in x reaches
only the rows that keep a weight in its column.

PDL (programmatic dependent launch, compute capability 9.0): the kernel asks for its first weights while the kernel
before it still runs, and waits for it before it reads x. Weights must not be written by that kernel.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor

from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.kernels.gpu.layouts import TwoFour

_EXPONENT: Final = 0x4B000000  # the bits of 2^23; an argument, since the compiler moves a constant anew at every use
_MOST_WARPS: Final = 8
_MOST_LANES: Final = 256
_LONG_ROW: Final = 6144  # columns


@dataclass(frozen=True, slots=True)
class Config:
    """The shape of a program: `pair` (1 or 2) tiles of [rows, lanes] that share their reads of x, and its warps.

    A tile's lanes take whole chunks of a row (lanes is G8 times a power of two). rows * lanes / (32 * warps) lanes a
    thread: 4 read 16 bytes at a time.
    """

    rows: int
    pair: int
    lanes: int
    warps: int


def two_four_gemv(
    x: Tensor,
    layout: TwoFour,
    out: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    factor: Tensor | None = None,
    silu_pairs: bool = False,
    config: Config | None = None,
    pdl: bool | None = None,
) -> Tensor:
    """x [1, in] -> y [1, out] in x's dtype: (W x) * factor + residual; factor float32 [1], residual [1, out].

    silu_pairs: W is gate over up, [2 n, in], and y [1, n] = silu(gate x) * (up x). `pdl` None: where the GPU has it.
    """
    kernel, interpreted = _kernel()
    count = layout.shape[0] // 2 if silu_pairs else layout.shape[0]
    _check_x(x, layout, interpreted)
    if silu_pairs and layout.shape[0] % 2:
        raise InputError(f"silu_pairs needs gate and up rows in equal number, the matrix has {layout.shape[0]} rows")
    y = x.new_empty(1, count) if out is None else _checked("out", out, (1, count), x.device, (x.dtype,))
    if residual is not None:
        _checked("residual", residual, (1, count), x.device, (x.dtype, torch.float32))
    if factor is not None:
        _checked("factor", factor, (1,), x.device, (torch.float32,))
    chosen = best_config(layout, silu_pairs) if config is None else _checked_config(config, layout, silu_pairs)
    early = not interpreted and (_capability(x.device) >= (9, 0) if pdl is None else pdl)
    rows = chosen.rows * (1 if silu_pairs else chosen.pair)
    kernel[(-(-count // rows),)](
        *(_words(x), layout.values, layout.meta, layout.values if layout.scales is None else layout.scales),
        *(y if residual is None else residual, y if factor is None else factor, y, count, _EXPONENT),
        **_constants(layout, chosen, silu_pairs, interpreted),
        RESIDUAL=residual is not None,
        FACTOR=factor is not None,
        PDL=early,
        num_warps=chosen.warps,
        **({"launch_pdl": True} if early else {}),
    )
    return y


def best_config(layout: TwoFour, silu_pairs: bool = False) -> Config:
    """The shape of a program that was fastest on an H100 (seven matrices of 7B and 8B models) for layouts like this one.

    16 bits: a warp a quarter of 128 lanes, 256 lanes where long rows are whole numbers of them; fewer bits want 16-byte
    reads and two tiles that share x.
    """
    lanes = min(max(128, layout.group8), _lanes(layout))
    two_tiles = Config(rows=1, pair=2, lanes=lanes, warps=max(1, lanes // 128))
    long = layout.shape[1] > _LONG_ROW
    if silu_pairs or layout.bits == 4 or (long and layout.shape[1] % (4 * _MOST_LANES)):
        return two_tiles
    if long and _lanes(layout) == _MOST_LANES:
        return Config(1, 1, _MOST_LANES, 8) if layout.bits == 16 else Config(1, 1, lanes, max(1, lanes // 128))
    return Config(1, 1, lanes, max(1, lanes // 32)) if layout.bits == 16 else two_tiles


def candidates(layout: TwoFour, silu_pairs: bool = False) -> tuple[Config, ...]:
    """Configurations worth timing, the default first."""
    longest = _lanes(layout)
    found = [best_config(layout, silu_pairs)]
    for lanes in sorted({longest, max(layout.group8, longest // 2)}):
        for rows in (1, 2, 4):
            for pair in (2,) if silu_pairs else (1, 2):
                warps = {max(1, rows * lanes // 128), rows * lanes // 32}  # 16 and 4 bytes a read
                found += [Config(rows, pair, lanes, count) for count in sorted(warps) if count <= _MOST_WARPS]
    return tuple(dict.fromkeys(found))


def _lanes(layout: TwoFour) -> int:
    """Lanes that cover a row in one step, at most 256."""
    return min(_MOST_LANES, layout.group8 << (layout.chunks - 1).bit_length())


def _words(x: Tensor) -> Tensor:
    """x [1, in] as int64 [in / 4], four 16-bit x a word; copied where it is strided or not aligned to 8 bytes."""
    row = x.contiguous().view(-1)
    return (row if row.data_ptr() % 8 == 0 and row.storage_offset() % 4 == 0 else row.clone()).view(torch.int64)


def _constants(layout: TwoFour, config: Config, silu_pairs: bool, interpreted: bool) -> dict[str, int | bool]:
    """The kernel's compile-time arguments that follow from the layout and the configuration."""
    return {
        "GROUPS": layout.shape[1] // 4,
        "G8": layout.group8,
        "ROWS": config.rows,
        "LANES": config.lanes,
        "PAIR": config.pair,
        "BITS": layout.bits,
        "BF16": layout.dtype == torch.bfloat16,
        "SILU": silu_pairs,
        "ASM": not interpreted,
    }


@cache
def _kernel() -> tuple[Any, bool]:
    """The Triton kernel and whether it is interpreted; MissingEnvironmentError where Triton is absent."""
    try:
        from triton.runtime.interpreter import InterpretedFunction

        from tailcut.kernels.gpu.gemv_kernel import two_four_gemv_kernel
    except ImportError as error:
        raise MissingEnvironmentError(
            f"the 2:4 GPU kernels need Triton ({error}); install tailcut[gpu] on Linux with an NVIDIA GPU"
        ) from error
    return two_four_gemv_kernel, isinstance(two_four_gemv_kernel, InterpretedFunction)


def _on_cuda(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _check_x(x: Tensor, layout: TwoFour, interpreted: bool) -> None:
    if tuple(x.shape) != (1, layout.shape[1]):
        raise InputError(f"x must be [1, {layout.shape[1]}] for a matrix {list(layout.shape)}, got {list(x.shape)}")
    if x.dtype != layout.dtype:
        raise InputError(f"x is {x.dtype}, the 2:4 matrix multiplies {layout.dtype}; convert x or pack with dtype")
    if x.device != layout.device:
        raise InputError(f"x is on {x.device}, the 2:4 matrix on {layout.device}; move one with .to(device)")
    if interpreted:
        return
    if not _on_cuda(x):
        raise InputError(f"the 2:4 kernel runs on a CUDA device, x is on {x.device}; move x and the layout there")
    if _capability(x.device) < (8, 0):
        have = ".".join(str(part) for part in _capability(x.device))
        name = torch.cuda.get_device_name(x.device)
        raise MissingEnvironmentError(
            f"the 2:4 kernels need compute capability 8.0, {name} has {have}; use dense layers"
        )


def _checked(
    name: str, part: Tensor, shape: tuple[int, ...], device: torch.device, dtypes: tuple[torch.dtype, ...]
) -> Tensor:
    """The tensor, or InputError unless it can be read and written as it lies."""
    if tuple(part.shape) != shape or part.dtype not in dtypes or part.device != device or not part.is_contiguous():
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise InputError(
            f"{name} must be contiguous {wanted} {list(shape)} on {device}, got {part.dtype} {list(part.shape)} with "
            f"strides {part.stride()} on {part.device}"
        )
    return part


def _checked_config(config: Config, layout: TwoFour, silu_pairs: bool) -> Config:
    chunks = config.lanes // layout.group8
    if config.lanes % layout.group8 or chunks & (chunks - 1) or chunks < 1:
        raise InputError(f"lanes must be {layout.group8} times a power of two for this layout, got {config.lanes}")
    if config.pair not in (1, 2) or (silu_pairs and config.pair != 2):
        raise InputError(f"pair must be 2 with silu_pairs and 1 or 2 without, got {config.pair}")
    return config
