"""The peers' storage formats: what is packed is within half a step of the weight, and lies where the runtime looks."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailcut.bench.quantise import BLOCK, REDUCED, expand_nbit_blocks, int8_columns, nbit_blocks, q4_0, q8_0
from tailcut.bench.worker import SCRIPTS

Floats = npt.NDArray[np.float32]
SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 9))


def matrix(shape: tuple[int, int], seed: int = 0) -> Floats:
    """A random matrix with a column and a block of zeros and one outlier."""
    weight = np.random.default_rng(seed).standard_normal(shape, np.float32)
    weight[:, shape[1] // 2] = 0
    weight[:BLOCK, 0] = 0
    weight[-1, -1] = 100
    return weight


@given(SHAPES, st.sampled_from([127, REDUCED]))
def test_int8_columns_are_within_half_a_step(shape: tuple[int, int], limit: int) -> None:
    weight = matrix(shape)
    codes, scales = int8_columns(weight, limit)
    assert codes.dtype == np.int8
    assert np.abs(codes.astype(int)).max() <= limit
    # half a step, and the rounding of one float32 division
    assert np.all(np.abs(codes * scales - weight) <= scales * 0.5001)


@pytest.mark.parametrize("bits", [4, 8])
@given(SHAPES)
def test_nbit_blocks_are_within_a_step(bits: int, shape: tuple[int, int]) -> None:
    weight = matrix(shape)
    codes, scales = nbit_blocks(weight, bits)
    blocks = -(-shape[0] // BLOCK)
    assert codes.shape == (shape[1], blocks, BLOCK * bits // 8)
    assert scales.shape == (shape[1], blocks)
    steps = np.repeat(np.abs(scales), BLOCK, axis=1)[:, : shape[0]].T
    # half a step, but a whole one at the end of the range that has one code less
    assert np.all(np.abs(expand_nbit_blocks(codes, scales, bits, shape[0]) - weight) <= steps * 1.001)


def test_the_low_nibble_comes_first() -> None:
    weight = np.zeros((BLOCK, 1), np.float32)
    weight[0], weight[1] = -8, 3  # scale 1, codes 0 and 11
    codes, scales = nbit_blocks(weight, 4)
    assert scales.tolist() == [[1.0]]
    assert codes[0, 0, 0] == 0 | 11 << 4


@pytest.mark.parametrize(("kind", "pack"), [("Q8_0", q8_0), ("Q4_0", q4_0)])
def test_llama_blocks_are_those_of_the_gguf_package(kind: str, pack: object) -> None:
    gguf = pytest.importorskip("gguf", reason="the gguf package is the reference of these formats")
    rows = matrix((6, 3 * BLOCK), seed=1)
    want = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[kind])
    got = pack(rows)  # type: ignore[operator]
    assert got.shape == want.shape
    steps = gguf.quants.dequantize(got, gguf.GGMLQuantizationType[kind]) - gguf.quants.dequantize(
        want, gguf.GGMLQuantizationType[kind]
    )
    # ties may round either way: no value is further apart than one step of its block
    scales = np.repeat(got.reshape(6, 3, -1)[..., :2].copy().view(np.float16)[..., 0], BLOCK, axis=1)
    assert np.all(np.abs(steps) <= np.abs(scales.astype(np.float32)) * 1.01)
    assert np.mean(got == want) > 0.98


@pytest.mark.parametrize(("pack", "size", "steps"), [(q8_0, 34, 0.51), (q4_0, 18, 1.01)])
def test_llama_blocks_decode_to_the_weight(pack: object, size: int, steps: float) -> None:
    rows = matrix((5, 2 * BLOCK))
    raw = pack(rows).reshape(5, 2, size)  # type: ignore[operator]
    scales = raw[..., :2].copy().view(np.float16).astype(np.float32)
    codes = raw[..., 2:]
    if size == 34:
        values = codes.view(np.int8).astype(np.float32)
    else:
        values = np.concatenate([codes & 15, codes >> 4], axis=-1).astype(np.float32) - 8
    error = np.abs((values * scales).reshape(rows.shape) - rows)
    # the step as it is stored (float16, 11 bits): its own rounding moves a value by up to 8 or 127 times 2^-11 steps
    allowed = np.repeat(np.abs(scales[..., 0]), BLOCK, axis=1) * (steps + (127 if size == 34 else 8) * 2.0**-11)
    assert np.all(error <= allowed)


def test_llama_blocks_refuse_other_widths() -> None:
    with pytest.raises(ValueError, match="multiple of 32 values, got 33"):
        q8_0(np.zeros((2, 33), np.float32))


def test_openvino_rows_and_groups_decode_to_the_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))  # a worker imports its neighbours as a script does
    from openvino_worker import int4_groups, int8_rows

    rows = matrix((6, 192))  # three groups of 64
    codes, scales = int8_rows(rows)
    assert np.all(np.abs(codes * scales - rows) <= scales * 0.5001)
    packed, steps = int4_groups(rows)
    assert steps.shape == (6, 3, 1)
    nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(6, 3, 64).astype(np.int8)
    values = np.where(nibbles > 7, nibbles - 16, nibbles) * steps
    assert np.all(np.abs(values.reshape(rows.shape) - rows) <= np.repeat(np.abs(steps[..., 0]), 64, axis=1) * 1.001)
    with pytest.raises(ValueError, match="got 33"):
        int4_groups(np.zeros((2, 33), np.float32))
