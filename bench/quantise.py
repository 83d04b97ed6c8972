"""Round-to-nearest quantisers in the storage formats of the peers, in plain numpy.

    int8 columns   ONNX Runtime's DynamicQuantizeMatMul: one symmetric scale an output column
    n-bit blocks   ONNX Runtime's MatMulNBits: 32 inputs of one output share a scale, zero point in the middle
    Q8_0, Q4_0     llama.cpp's blocks of 32, float16 scale in front of the codes

All follow the formats' public descriptions and are what the runtimes' own tools write by default; nothing is
calibrated. Weights come as ONNX's MatMul has them, float32 [in, out], or as [out, in] where a format stores rows.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]
BLOCK: Final = 32
# Without VNNI, x86 multiplies pairs of uint8 x int8 into int16, which overflows beyond 255 * 64 * 2: ONNX Runtime's
# tools call 7-bit weights "reduce range" and advise them for such machines. The bytes are the same.
REDUCED: Final = 64


def int8_columns(weight: Floats, limit: int = 127) -> tuple[npt.NDArray[np.int8], Floats]:
    """weight [in, out] -> codes int8 [in, out] in -limit..limit and scales [out]; weight ~ codes * scales."""
    scales = np.abs(weight).max(axis=0) / np.float32(limit)
    safe = np.where(scales == 0, np.float32(1), scales)
    return np.rint(weight / safe).astype(np.int8), safe.astype(np.float32)


def nbit_blocks(weight: Floats, bits: int) -> tuple[Codes, Floats]:
    """weight [in, out] -> codes uint8 [out, ceil(in / 32), 4 bits] and scales [out, ceil(in / 32)].

    A block's value of largest magnitude becomes the most negative code, so that all of them are used; codes carry
    an offset of 2^(bits - 1), the format's default zero point. Two 4-bit codes share a byte, low one first.
    """
    blocks = _blocks(np.ascontiguousarray(weight.T))
    middle = 1 << (bits - 1)
    scales = _extreme(blocks) / np.float32(-middle)
    codes = _codes(blocks, scales, middle)
    return (_pairs(codes) if bits == 4 else codes), scales


def q8_0(rows: Floats) -> Codes:
    """rows [out, in], in a multiple of 32 -> llama.cpp's Q8_0 blocks, uint8 [out, in / 32 * 34]."""
    blocks = _whole_blocks(rows)
    scales = np.abs(blocks).max(axis=2) / np.float32(127)
    inverse = _inverse(scales)
    codes = np.asarray(np.rint(blocks * inverse[..., None]), np.int8)
    return _with_scales(scales, codes.view(np.uint8))


def q4_0(rows: Floats) -> Codes:
    """rows [out, in], in a multiple of 32 -> llama.cpp's Q4_0 blocks, uint8 [out, in / 32 * 18].

    Byte j of a block holds value j in its low and value j + 16 in its high nibble.
    """
    blocks = _whole_blocks(rows)
    scales = _extreme(blocks) / np.float32(-8)
    codes = _codes(blocks, scales, 8)
    return _with_scales(scales, np.asarray(codes[..., :16] | (codes[..., 16:] << 4), np.uint8))


def expand_nbit_blocks(codes: Codes, scales: Floats, bits: int, inputs: int) -> Floats:
    """What MatMulNBits multiplies with: the inverse of `nbit_blocks`, float32 [in, out]."""
    whole = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1) if bits == 4 else codes
    values = (whole.astype(np.float32) - (1 << (bits - 1))) * scales[..., None]
    return np.asarray(values.reshape(len(codes), -1)[:, :inputs].T, np.float32)


def _blocks(rows: Floats) -> Floats:
    """[out, in] -> [out, ceil(in / 32), 32], zeros at the end."""
    out, inputs = rows.shape
    padded = np.pad(rows, ((0, 0), (0, -inputs % BLOCK))) if inputs % BLOCK else rows
    return padded.reshape(out, -1, BLOCK)


def _whole_blocks(rows: Floats) -> Floats:
    if rows.shape[1] % BLOCK:
        raise ValueError(f"llama.cpp's formats need rows of a multiple of {BLOCK} values, got {rows.shape[1]}")
    return _blocks(np.ascontiguousarray(rows))


def _extreme(blocks: Floats) -> Floats:
    """The value of largest magnitude of each block, with its sign."""
    high, low = blocks.max(axis=2), blocks.min(axis=2)
    return np.asarray(np.where(high > -low, high, low), np.float32)


def _codes(blocks: Floats, scales: Floats, middle: int) -> Codes:
    scaled = blocks * _inverse(scales)[..., None] + np.float32(middle + 0.5)
    return np.asarray(np.clip(np.floor(scaled), 0, 2 * middle - 1), np.uint8)


def _inverse(scales: Floats) -> Floats:
    return np.asarray(np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0), np.float32)


def _pairs(codes: Codes) -> Codes:
    return np.asarray(codes[..., 0::2] | (codes[..., 1::2] << 4), np.uint8)


def _with_scales(scales: Floats, codes: Codes) -> Codes:
    head: npt.NDArray[Any] = scales.astype(np.float16)[..., None].view(np.uint8)
    return np.concatenate([head, codes], axis=2).reshape(len(codes), -1)
