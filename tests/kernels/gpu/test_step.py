"""The step's fused kernels against plain torch: in Triton's interpreter here, compiled where there is a GPU."""

import pytest
import torch
from torch import Tensor

from tailcut.errors import MissingEnvironmentError
from tailcut.kernels.gpu import step, step_reference
from tailcut.kernels.gpu.llama import Architecture, rotary_table
from tailcut.kernels.gpu.scratch import CHUNK, Scratch, make_scratch, splits_for

pytest.importorskip("triton", reason="triton comes with torch's CUDA wheels and with the dev extra on Linux")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# the interpreter cuts float32 off to bfloat16 instead of rounding, so that 16 bits are float16's there
DTYPES = [torch.float32, torch.bfloat16 if DEVICE.type == "cuda" else torch.float16]
# float32: sums of at most 100 terms of size 1 in another order; 16 bits: that, and two roundings (a norm's) of values
# below 8, where a difference in the last float32 bit can change which way they go
CLOSE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.float16: {"rtol": 2**-9, "atol": 2**-10},
    torch.bfloat16: {"rtol": 2**-6, "atol": 2**-7},
}


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def ints(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [48, 64])
def test_add_norm(width: int, dtype: torch.dtype) -> None:
    delta, weight = random(3, width, dtype=dtype), random(width, dtype=dtype, seed=1)
    residual = random(3, width, dtype=dtype, seed=2)
    expected = residual.clone()
    got, want = step.add_norm(delta, residual, weight, 1e-5), step_reference.add_norm(delta, expected, weight, 1e-5)
    assert torch.equal(residual, expected)
    torch.testing.assert_close(got, want, **CLOSE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_embed_norm_takes_the_token_at_each_rows_position(dtype: torch.dtype) -> None:
    table, weight = random(20, 48, dtype=dtype), random(48, dtype=dtype, seed=1)
    tokens, position = ints([3, 4, 5, 0], [19, 0, 0, 7]), ints(2, 0)
    got = step.embed_norm(table, tokens, position, weight, 1e-5)
    want = step_reference.embed_norm(table, tokens, position, weight, 1e-5)
    assert torch.equal(got[0], table[[5, 19]])
    torch.testing.assert_close(got, want, **CLOSE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu(dtype: torch.dtype) -> None:
    gate_up = random(2, 1100, dtype=dtype)
    torch.testing.assert_close(step.swiglu(gate_up), step_reference.swiglu(gate_up), **CLOSE[dtype])


def attention(
    heads: int, kv_heads: int, head_dim: int, positions: list[int], splits: int, dtype: torch.dtype
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Scratch]:
    """(output, cache) of the kernel and of the reference, and the scratch memory; capacity 70."""
    architecture = Architecture(heads * head_dim, 32, 1, heads, kv_heads, head_dim, 100)
    batch, rotary = len(positions), rotary_table(architecture, 70, DEVICE)
    qkv = random(batch, architecture.qkv, dtype=dtype)
    cache = random(2, batch, kv_heads, 70, head_dim, dtype=dtype, seed=1)
    expected = cache.clone()
    scratch = make_scratch(architecture, batch, DEVICE, splits)
    got = step.attend(qkv, cache, rotary, ints(*positions), scratch)
    want = step_reference.attend(qkv, expected, rotary, ints(*positions), scratch)
    return (got, cache), (want, expected), scratch


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "positions", "splits"),
    [
        (2, 2, 16, [0], 4),  # the first token: all ranges but one are empty
        (4, 2, 16, [5, 69], 4),  # rows of different length, one of them full
        (3, 1, 8, [40], 1),  # three query heads a key head, no merge
        (4, 1, 12, [63], 2),  # a head that is no power of two
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention(
    heads: int, kv_heads: int, head_dim: int, positions: list[int], splits: int, dtype: torch.dtype
) -> None:
    got, want, scratch = attention(heads, kv_heads, head_dim, positions, splits, dtype)
    torch.testing.assert_close(got, want, **CLOSE[dtype])
    assert not scratch.arrived.any()  # ready for the next launch, without a reset


def test_attention_reads_nothing_past_its_position() -> None:
    architecture = Architecture(16, 32, 1, 2, 2, 8, 100)
    cache = torch.full((2, 1, 2, 70, 8), float("nan"), device=DEVICE)
    cache[:, :, :, :9] = random(2, 1, 2, 9, 8)
    scratch = make_scratch(architecture, 1, DEVICE, 4)
    out = step.attend(random(1, architecture.qkv), cache, rotary_table(architecture, 70, DEVICE), ints(9), scratch)
    assert out.isfinite().all()
    assert cache[:, :, :, :10].isfinite().all()
    assert cache[:, :, :, 10:].isnan().all()


@pytest.mark.parametrize("vocabulary", [50, 2 * CHUNK + 3])
def test_choose_takes_the_first_of_equal_logits_and_moves_on(vocabulary: int) -> None:
    logits = random(2, vocabulary)
    logits[0, 3] = logits[0, -1] = logits[0].max() + 1
    scratch = make_scratch(Architecture(16, 32, 1, 2, 2, 8, vocabulary), 2, DEVICE)
    tokens, position = torch.zeros(2, 9, dtype=torch.int32, device=DEVICE), ints(4, 7)
    step.choose(logits, tokens, position, scratch)
    assert position.tolist() == [5, 8]
    assert tokens[0, 5] == 3
    assert tokens[1, 8] == logits[1].argmax()
    assert tokens.count_nonzero() == 2
    assert not scratch.arrived.any()


def test_a_plain_formula_of_attention_agrees_with_the_reference() -> None:
    """One head, one key: attention is the softmax of q k / sqrt(d) over the turned keys, worked out in float64."""
    architecture = Architecture(8, 32, 1, 1, 1, 8, 100)
    qkv, cache = random(1, 24), random(2, 1, 1, 70, 8, seed=1)
    rotary = rotary_table(architecture, 70, DEVICE)
    got = step_reference.attend(qkv, cache, rotary, ints(2), make_scratch(architecture, 1, DEVICE))
    angle = 2 * 10000.0 ** -(torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    turn = torch.polar(torch.ones(4, dtype=torch.float64), angle)
    q, k, v = qkv.cpu().double().view(3, 8)
    turned = [torch.view_as_real(torch.complex(part[:4], part[4:]) * turn).T.reshape(-1) for part in (q, k)]
    keys = torch.cat([cache[0, 0, 0, :2].cpu().double(), turned[1][None]])
    values = torch.cat([cache[1, 0, 0, :2].cpu().double(), v[None]])
    want = (keys @ turned[0] / 8**0.5).softmax(0) @ values
    torch.testing.assert_close(got[0].cpu().double(), want, rtol=1e-5, atol=1e-6)  # float32 inside


@pytest.mark.parametrize("pairs", [1, 3, 8, 32, 256, 1000])
def test_splits_are_a_power_of_two_that_fills_the_gpu(pairs: int) -> None:
    splits = splits_for(pairs)
    assert splits & (splits - 1) == 0
    assert 1 <= splits <= 32
    assert splits == 32 or splits * pairs >= 256


def test_a_cpu_tensor_without_the_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    step._launches_early.cache_clear()
    try:
        with pytest.raises(MissingEnvironmentError, match="CUDA GPU, the tensors are on cpu"):
            step.swiglu(torch.zeros(1, 8))
    finally:
        step._launches_early.cache_clear()


def test_an_old_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old GPU")
    with pytest.raises(MissingEnvironmentError, match=r"an old GPU has 7\.5"):
        step._launches_early.__wrapped__(torch.device("cuda", 0))
