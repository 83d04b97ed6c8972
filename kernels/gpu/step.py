"""The parts of a decode step that are not matrices, as one launch each: the same functions as `step_reference`.

    embed_norm   embedding of the current token, and its RMSNorm
    add_norm     residual add and RMSNorm
    attend       rotary angles, cache write and attention of one token, all in one kernel
    swiglu       silu(gate) * up
    choose       the largest logit becomes the next token, the position moves on: no host needed between steps

Measured reasons for the shapes of these kernels are beside the constants. Tensors on a CPU run only in Triton's
interpreter (TRITON_INTERPRET=1), which is how the tests run them; `decode` takes `step_reference` there.
"""

import contextlib
import functools
import importlib.util
import math
import os
from typing import Any, Final

import torch
from torch import Tensor

from tailcut.errors import MissingEnvironmentError
from tailcut.kernels.gpu.scratch import CHUNK, Scratch

PDL_CAPABILITY: Final = (9, 0)
_LEAST_CAPABILITY: Final = (8, 0)
# Attention: numbers of keys that a program holds at once, all query heads together, and its warps; for one query head a key
# head, and for several (H100, 512 positions: 10.7 us against 14.8 with 8192 at 7B's sizes, 16.0 against 18.0 with 4 warps at 8B's)
_TILES: Final = (4096, 8192)
_ATTEND_WARPS: Final = (4, 8)
_WARPS: Final = 4  # of the kernels that take one row each


def embed_norm(table: Tensor, tokens: Tensor, position: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As `step_reference.embed_norm`."""
    batch, width = position.shape[0], table.shape[1]
    residual = table.new_empty(batch, width)
    normed = torch.empty_like(residual)
    block = _power_of_two(width)
    arguments = (table, tokens, tokens.stride(0), position, weight, residual, normed, width, eps)
    _launch("embed_norm_kernel", (batch,), arguments, table.device, _row_warps(block), BLOCK=block)
    return residual, normed


def add_norm(delta: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `step_reference.add_norm`: `residual` is changed in place."""
    batch, width = residual.shape
    normed = torch.empty_like(residual)
    block = _power_of_two(width)
    arguments = (delta, residual, weight, normed, width, eps)
    _launch("add_norm_kernel", (batch,), arguments, residual.device, _row_warps(block), BLOCK=block)
    return normed


def swiglu(gate_up: Tensor) -> Tensor:
    """As `step_reference.swiglu`, for gate_up [batch, 2 n]."""
    batch, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(batch, width)
    block = 512
    _launch("swiglu_kernel", (-(-width // block), batch), (gate_up, out, width), out.device, _WARPS, BLOCK=block)
    return out


def attend(qkv: Tensor, cache: Tensor, rotary: Tensor, position: Tensor, scratch: Scratch) -> Tensor:
    """As `step_reference.attend`: the new key and value are written to `cache` in place."""
    _, batch, kv_heads, capacity, head_dim = cache.shape
    group = qkv.shape[1] // head_dim // kv_heads - 2
    groups, wide = _power_of_two(group), _power_of_two(head_dim)
    out = qkv.new_empty(batch, kv_heads * group * head_dim)
    pairs = batch * kv_heads
    scale = math.log2(math.e) / math.sqrt(head_dim)
    arguments = (
        *(qkv, cache[0], cache[1], rotary, position, scratch.sums, scratch.tops, scratch.arrived, out),
        *(kv_heads, capacity, rotary.shape[1], pairs, scale),
    )
    sizes = {"GROUP": group, "GROUPS": groups, "D": head_dim, "WIDE": wide, "SPLITS": scratch.splits}
    several = int(groups > 1)
    block = max(8, min(64, _TILES[several] // (groups * wide)))
    _launch(
        "attend_kernel", (pairs, scratch.splits), arguments, qkv.device, _ATTEND_WARPS[several], BLOCK=block, **sizes
    )
    return out


def choose(logits: Tensor, tokens: Tensor, position: Tensor, scratch: Scratch) -> None:
    """As `step_reference.choose`: `tokens` and `position` are changed in place."""
    batch, vocabulary = logits.shape
    chunks = -(-vocabulary // CHUNK)
    arrived = scratch.arrived[-batch:]
    arguments = (logits, tokens, tokens.stride(0), position, scratch.best, scratch.where, arrived, vocabulary)
    sizes = {"CHUNK": CHUNK, "CHUNKS": chunks, "PADDED": _power_of_two(chunks)}
    _launch("choose_kernel", (batch, chunks), arguments, logits.device, _WARPS, **sizes)


def _launch(
    name: str, grid: tuple[int, ...], arguments: tuple[Any, ...], device: torch.device, warps: int, **sizes: int
) -> None:
    """Start a kernel of `step_kernel`; the first use on a device checks that it can run there."""
    early = _launches_early(device)
    options = {"launch_pdl": True} if early else {}
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        getattr(_kernels(), name)[grid](*arguments, **sizes, PDL=early, num_warps=warps, **options)


@functools.cache
def _kernels() -> Any:  # noqa: ANN401 a module whose functions only Triton can call
    if importlib.util.find_spec("triton") is None:
        raise MissingEnvironmentError("the GPU kernels need Triton, which is not installed; pip install triton")
    from tailcut.kernels.gpu import step_kernel

    return step_kernel


@functools.cache
def _launches_early(device: torch.device) -> bool:
    """Whether kernels there may start before the one ahead has ended; MissingEnvironmentError if none run there."""
    if device.type != "cuda":
        if os.environ.get("TRITON_INTERPRET") == "1":
            return False
        raise MissingEnvironmentError(f"the step's kernels run on a CUDA GPU, the tensors are on {device}")
    capability = torch.cuda.get_device_capability(device)
    if capability < _LEAST_CAPABILITY:
        raise MissingEnvironmentError(
            f"the GPU kernels need compute capability 8.0 or above, {torch.cuda.get_device_name(device)} has "
            f"{capability[0]}.{capability[1]}"
        )
    return capability >= PDL_CAPABILITY


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _row_warps(block: int) -> int:
    """Threads for one program a row: four to eight numbers each, because a row is all latency."""
    return max(1, min(16, block // 256))
