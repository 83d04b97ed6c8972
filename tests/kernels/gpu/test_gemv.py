"""One row of x times a 2:4 matrix, against float64: on a GPU where there is one, else in Triton's interpreter."""

import itertools

import pytest
import torch
from torch import Tensor

from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.kernels.gpu import gemv, reference
from tailcut.kernels.gpu.gemv import Config, best_config, candidates, two_four_gemv
from tailcut.kernels.gpu.layouts import TwoFour
from tailcut.kernels.gpu.two_four_pack import pack_two_four

pytest.importorskip("triton", reason="the 2:4 kernel is written in Triton, which is not installed here")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# half a unit in the last place of y; the interpreter truncates to bfloat16, which can be a whole one
ROUNDING = {torch.bfloat16: 2.0**-8 if DEVICE == "cuda" else 2.0**-7, torch.float16: 2.0**-11}


def two_four(out: int, columns: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    """A random 2:4 matrix: the two largest of every four are kept."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randn(out, columns // 4, 4, generator=generator)
    kept = groups.abs().topk(2, -1).indices
    cut = torch.zeros_like(groups).scatter_(-1, kept, groups.gather(-1, kept))
    return cut.view(out, columns).to(dtype).to(DEVICE)


def row(columns: int, dtype: torch.dtype = torch.bfloat16, seed: int = 1) -> Tensor:
    return torch.randn(1, columns, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def assert_close(y: Tensor, want: Tensor, x: Tensor, layout: TwoFour, gain: float = 1.0) -> None:
    """y within its own rounding and that of a float32 sum: n * eps * sum |w x| (Higham 3.1), times what follows it."""
    sums = (x.abs().double() @ reference.unpack(layout).abs().double().T).max() * gain
    bound = ROUNDING[y.dtype] * want.abs() + layout.shape[1] * torch.finfo(torch.float32).eps * sums
    assert ((y.double() - want).abs() <= bound).all()


# every kind of end: one group, part of a slice, part of a chunk, whole chunks, whole and part; rows that no tile divides
SHAPES = ((1, 4), (5, 12), (3, 576), (7, 1056), (2, 4096))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_float64_on_every_shape(shape: tuple[int, int], bits: int, dtype: torch.dtype) -> None:
    layout = pack_two_four(two_four(*shape, dtype), bits)
    x = row(shape[1], dtype)
    assert_close(two_four_gemv(x, layout), reference.matmul(x, layout), x, layout)


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize(
    ("columns", "group8", "config"),
    [
        (1056, 32, Config(1, 1, 32, 1)),  # one whole step, then a ragged one
        (2048, 32, Config(1, 2, 32, 1)),  # whole steps only, in a loop
        (2560, 32, Config(2, 1, 64, 1)),  # lanes over two chunks, the last step has one
        (1280, 64, Config(4, 2, 64, 2)),  # more rows than the matrix has
        (1056, 128, Config(1, 2, 128, 1)),
    ],
    ids=str,
)
def test_every_way_to_walk_a_row(bits: int, columns: int, group8: int, config: Config) -> None:
    layout = pack_two_four(two_four(3, columns), bits, group8=group8)
    x = row(columns)
    assert_close(two_four_gemv(x, layout, config=config), reference.matmul(x, layout), x, layout)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_candidates_agree_with_one_another(bits: int) -> None:
    layout = pack_two_four(two_four(4, 136), bits)
    x = row(136)
    for config in candidates(layout):
        assert_close(two_four_gemv(x, layout, config=config), reference.matmul(x, layout), x, layout)


@pytest.mark.parametrize("bits", [16, 4])
def test_bfloat16_scales_of_int4(bits: int) -> None:
    layout = pack_two_four(two_four(4, 264), bits, scale_dtype=torch.bfloat16)
    x = row(264)
    assert_close(two_four_gemv(x, layout), reference.matmul(x, layout), x, layout)


def test_factor_is_multiplied_and_residual_added_before_the_one_rounding() -> None:
    layout = pack_two_four(two_four(6, 64), 16)
    x, residual = row(64), row(6, seed=2)
    factor = torch.tensor([0.37], device=DEVICE)
    want = reference.matmul(x, layout) * factor.double() + residual.double()
    assert_close(two_four_gemv(x, layout, residual=residual, factor=factor), want, x, layout)


def test_residual_may_be_float32_and_out_may_be_given() -> None:
    layout = pack_two_four(two_four(6, 64), 16)
    x, residual, out = row(64), row(6, torch.float32, seed=2), torch.empty(1, 6, dtype=torch.bfloat16, device=DEVICE)
    assert two_four_gemv(x, layout, out, residual=residual) is out
    assert_close(out, reference.matmul(x, layout) + residual.double(), x, layout)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_silu_pairs_take_gate_and_up_of_one_matrix(bits: int) -> None:
    layout = pack_two_four(two_four(10, 136), bits)
    x, factor = row(136), torch.tensor([0.5], device=DEVICE)
    gate, up = (reference.matmul(x, layout) * 0.5).chunk(2, dim=1)
    # silu' <= 1.1, so an error e of gate or up grows at most (1.1 |up| + |gate|) times
    gain = float(1.1 * up.abs().max() + gate.abs().max()) + 1
    y = two_four_gemv(x, layout, silu_pairs=True, factor=factor)
    assert y.shape == (1, 5)
    assert_close(y, torch.nn.functional.silu(gate) * up, x, layout, gain)


def test_rows_of_zeros_and_kept_zeros_give_zero() -> None:
    weight = two_four(4, 32)
    weight[1] = 0
    weight[2, 1:] = 0
    y = two_four_gemv(row(32), pack_two_four(weight))
    assert y[0, 1] == 0
    torch.testing.assert_close(y[0, 2], (weight[2, 0].double() * row(32)[0, 0].double()).bfloat16(), rtol=2**-7, atol=0)


@pytest.mark.parametrize(
    ("weight", "by"), [(torch.finfo(torch.bfloat16).max, 1.0), (2.0**-133, 2.0**60)], ids=["max", "subnormal"]
)
def test_the_ends_of_bfloat16_are_multiplied_exactly(weight: float, by: float) -> None:
    matrix = torch.zeros(2, 8, dtype=torch.bfloat16, device=DEVICE)
    matrix[0, 3] = matrix[1, 4] = weight
    matrix[1, 5] = -weight
    y = two_four_gemv(torch.full((1, 8), by, dtype=torch.bfloat16, device=DEVICE), pack_two_four(matrix))
    assert y.tolist() == [[weight * by, 0.0]]


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_not_finite_in_x_reaches_the_rows_that_keep_its_column(bad: float) -> None:
    weight = torch.zeros(2, 8, dtype=torch.bfloat16, device=DEVICE)
    weight[0, :2], weight[1, 2:4] = 1, 1
    x = torch.ones(1, 8, dtype=torch.bfloat16, device=DEVICE)
    x[0, 0] = bad
    y = two_four_gemv(x, pack_two_four(weight))
    assert not torch.isfinite(y[0, 0])
    assert y[0, 1] == 2


def test_x_that_is_strided_or_lies_at_an_odd_address_is_copied() -> None:
    layout = pack_two_four(two_four(4, 64))
    for x in (row(128)[:, ::2], row(68)[:, 1:65]):
        assert_close(two_four_gemv(x, layout), reference.matmul(x, layout), x, layout)


def test_every_candidate_covers_whole_chunks_and_the_default_is_first() -> None:
    for columns, bits in itertools.product((4, 576, 4096, 11008), (16, 8, 4)):
        layout = pack_two_four(two_four(2, columns), bits)
        found = candidates(layout)
        assert found[0] == best_config(layout)
        assert all(config.lanes % layout.group8 == 0 for config in found)
        assert {config.pair for config in candidates(layout, silu_pairs=True)} == {2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(1, 60, dtype=torch.bfloat16)}, r"x must be \[1, 64\].*got \[1, 60\]"),
        ({"x": torch.zeros(2, 64, dtype=torch.bfloat16)}, r"x must be \[1, 64\].*got \[2, 64\]"),
        ({"x": torch.zeros(1, 64)}, "x is torch.float32, the 2:4 matrix multiplies torch.bfloat16"),
        ({"out": torch.zeros(1, 6)}, r"out must be contiguous bfloat16 \[1, 6\]"),
        ({"out": torch.zeros(2, 6, dtype=torch.bfloat16).T[:1]}, "out must be contiguous"),
        ({"residual": torch.zeros(6, dtype=torch.bfloat16)}, r"residual must be .* \[1, 6\].*got .* \[6\]"),
        ({"factor": torch.zeros(1, dtype=torch.float64)}, "factor must be contiguous float32"),
        ({"silu_pairs": True, "config": Config(1, 1, 32, 1)}, "pair must be 2 with silu_pairs"),
        ({"config": Config(1, 3, 32, 1)}, "pair must be 2 .* got 3"),
        ({"config": Config(1, 1, 96, 1)}, "lanes must be 32 times a power of two"),
        ({"config": Config(1, 1, 16, 1)}, "lanes must be 32 times a power of two"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, object], message: str) -> None:
    moved = {name: part.to(DEVICE) if isinstance(part, Tensor) else part for name, part in change.items()}
    layout = pack_two_four(two_four(6, 64))
    x = moved.pop("x", row(64))
    with pytest.raises(InputError, match=message):
        two_four_gemv(x, layout, **moved)  # type: ignore[arg-type]


def test_silu_pairs_need_an_even_number_of_rows() -> None:
    with pytest.raises(InputError, match="equal number, the matrix has 3 rows"):
        two_four_gemv(row(8), pack_two_four(two_four(3, 8)), silu_pairs=True)


def test_a_cpu_tensor_is_refused_where_the_kernel_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemv, "_kernel", lambda: (None, False))
    with pytest.raises(InputError, match="runs on a CUDA device, x is on cpu"):
        two_four_gemv(row(8).cpu(), pack_two_four(two_four(2, 8)).to("cpu"))


def test_a_gpu_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemv, "_kernel", lambda: (None, False))
    monkeypatch.setattr(gemv, "_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    x, weight = torch.zeros(1, 8, dtype=torch.bfloat16, device="meta"), two_four(2, 8)
    layout = pack_two_four(weight).to("meta")
    monkeypatch.setattr(gemv, "_on_cuda", lambda tensor: True)
    with pytest.raises(MissingEnvironmentError, match=r"compute capability 8\.0, Old GPU has 7\.5"):
        two_four_gemv(x, layout)


def test_without_triton_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    gemv._kernel.cache_clear()
    monkeypatch.setitem(sys.modules, "tailcut.kernels.gpu.gemv_kernel", None)
    with pytest.raises(MissingEnvironmentError, match=r"need Triton .*tailcut\[gpu\]"):
        two_four_gemv(row(8), pack_two_four(two_four(2, 8)))
    monkeypatch.undo()
    gemv._kernel.cache_clear()


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("shape", [(4096, 4096), (4096, 11008), (1000, 14336)], ids=str)
def test_real_shapes_with_and_without_pdl(shape: tuple[int, int], bits: int) -> None:
    if DEVICE != "cuda":
        pytest.skip("no CUDA GPU here")
    layout, x = pack_two_four(two_four(*shape), bits), row(shape[1])
    for pdl in (None, False):
        assert_close(two_four_gemv(x, layout, pdl=pdl), reference.matmul(x, layout), x, layout)
