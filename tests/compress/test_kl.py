"""KL of logits: the Triton kernels (in Triton's interpreter without a GPU) and the plain way against the sum in float64."""

import platform
import subprocess
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tailcut.bench.gpu_device import gpu_problem
from tailcut.compress import fused, kl

DEVICE = "cpu" if gpu_problem() else "cuda"
WIDTHS = [1, 5, 2048, 5000]  # of the vocabulary; a program reads 2048 at a time
WAYS = ["plain", "fused"]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    chosen = str(request.param)
    if chosen == "fused":
        pytest.importorskip("triton", reason="Triton has no build for this platform; the kernels are not used there")
        from tailcut.compress import _kl_kernel

        monkeypatch.setattr(kl, "_kernels", lambda logits: _kl_kernel)
    else:
        monkeypatch.setattr(kl, "_kernels", lambda logits: None)
    return chosen


def logits(*shape: int, seed: int, spread: float = 4.0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * spread).to(DEVICE)


def exact(theirs: Tensor, ours: Tensor) -> Tensor:
    log_p, log_q = (side.double().log_softmax(-1) for side in (theirs, ours))
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)


def tolerance(theirs: Tensor, ours: Tensor) -> float:
    """Two log-sums and a mean of differences, float32: a few roundings, 6e-8 each, of the largest logit."""
    return 1e-6 * max(1.0, float(theirs.abs().max()), float(ours.abs().max()))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.usefixtures("way")
def test_odd_widths(width: int) -> None:
    theirs, ours = logits(2, 3, width, seed=1), logits(2, 3, width, seed=2)
    targets = torch.randint(0, width, (2, 3), generator=torch.Generator().manual_seed(3)).to(DEVICE)
    found, nats = kl.kl_and_nats(kl.prepared(theirs), ours.clone(), targets)
    wanted = -ours.double().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    near = tolerance(theirs, ours)
    assert torch.allclose(found.double(), exact(theirs, ours), rtol=1e-5, atol=near)
    assert torch.allclose(nats.double(), wanted, rtol=1e-5, atol=near)
    assert torch.equal(kl.kl(kl.prepared(theirs), ours.clone()), found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("way")
def test_the_gradient(dtype: torch.dtype) -> None:
    theirs, ours = logits(7, 5000, seed=4).to(dtype), logits(7, 5000, seed=5).to(dtype).requires_grad_()
    loss = kl.kl_sum(theirs, ours) * 0.25
    loss.backward()  # type: ignore[no-untyped-call]
    double = ours.detach().double().requires_grad_()
    wanted = exact(theirs, double).sum() * 0.25
    wanted.backward()  # type: ignore[no-untyped-call]
    assert ours.grad is not None
    assert double.grad is not None
    assert ours.grad.dtype == dtype
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    # log-sums near 20 in float32 (2e-6, and so is a share), then rounded to the dtype; 1e-7: float16 holds nothing smaller
    assert torch.allclose(ours.grad.double(), double.grad, rtol=max(1e-5, torch.finfo(dtype).eps), atol=1e-7)


@pytest.mark.usefixtures("way")
def test_equal_distributions_and_shifted_logits() -> None:
    """A constant added to all logits changes nothing but the rounding of numbers near 1000."""
    theirs = logits(4, 3000, seed=6)
    near = tolerance(theirs + 1000.0, theirs)
    assert torch.allclose(kl.kl(kl.prepared(theirs), theirs.clone()), torch.zeros(4, device=DEVICE), atol=near)
    ours = logits(4, 3000, seed=7)
    shifted = kl.kl(kl.prepared(theirs + 1000.0), ours - 500.0)
    assert torch.allclose(shifted.double(), exact(theirs, ours), atol=2e-3)  # 1000 * 2^-23 * 10 logits a sum


@pytest.mark.usefixtures("way")
def test_certainty_and_its_opposite() -> None:
    theirs, ours = torch.zeros(2, 2500, device=DEVICE), torch.zeros(2, 2500, device=DEVICE)
    theirs[0, 7], ours[1, 2400] = 90.0, 90.0
    found = kl.kl(kl.prepared(theirs), ours.clone())
    assert torch.allclose(found.double(), exact(theirs, ours), rtol=1e-5, atol=1e-4)


def test_tokens_that_cannot_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """-inf on both sides, whole chunks of it: no share, no cost (the plain way gives no number)."""
    pytest.importorskip("triton", reason="Triton has no build for this platform; the kernels are not used there")
    from tailcut.compress import _kl_kernel

    monkeypatch.setattr(kl, "_kernels", lambda _: _kl_kernel)
    theirs, ours = logits(3, 5000, seed=8), logits(3, 5000, seed=9)
    for side in (theirs, ours):
        side[:, :2100] = -torch.inf
    assert torch.allclose(kl.kl(theirs, ours).double(), exact(theirs[:, 2100:], ours[:, 2100:]), rtol=1e-5)
    ours[:, 3000] = -torch.inf  # what the reference may choose
    assert kl.kl(theirs, ours).tolist() == [float("inf")] * 3


@pytest.mark.usefixtures("way")
def test_nothing_and_views() -> None:
    empty = torch.zeros(0, 3, 40, device=DEVICE)
    assert kl.kl(kl.prepared(empty), empty.clone()).shape == (0, 3)
    wide, other = logits(6, 40, seed=10), logits(6, 40, seed=11)
    theirs, ours = wide.T, other.T  # not contiguous
    assert torch.allclose(kl.kl(kl.prepared(theirs), ours.clone()).double(), exact(theirs, ours), atol=1e-5)
    found = kl.kl(kl.prepared(wide[:, ::2]), other[:, ::2].clone())
    assert torch.allclose(found.double(), exact(wide[:, ::2], other[:, ::2]), atol=1e-5)
    leaf = other.T.clone().requires_grad_()
    kl.kl_sum(theirs, leaf.T.contiguous().T).backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    wanted = ours.double().softmax(-1) - theirs.double().softmax(-1)
    assert torch.allclose(leaf.grad.double(), wanted, atol=1e-6)


def test_no_kernels_without_a_gpu() -> None:
    assert fused.kernels(kl._load, "cpu") is None
    assert kl.prepared(torch.zeros(2, 4)).exp().sum(-1).tolist() == [1.0, 1.0]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="Triton ships its assembler for x86-64")
def test_they_compile_for_gpus_that_are_not_here(
    without_interpreter: Callable[[str], subprocess.CompletedProcess[str]],
) -> None:
    """In a process without the interpreter, for sm_80 and sm_90, float32 and bfloat16 logits."""
    pytest.importorskip("triton", reason="Triton has no build for this platform; the kernels are not used there")
    code = """
import inspect
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from tailcut.compress import _kl_kernel, kl
for capability, dtype in ((80, "fp32"), (90, "bf16")):
    for kernel, plain in ((_kl_kernel.rows_kl, 3), (_kl_kernel.rows_gradient, 3)):
        names = list(inspect.signature(kernel.fn).parameters)
        kinds = [f"*{dtype}"] * 2 + ["*fp32"] * plain + ([f"*{dtype}"] if "gradient" in names else []) + ["i32", "constexpr"]
        source = ASTSource(kernel, dict(zip(names, kinds)), constexprs=dict(BLOCK=kl._BLOCK))
        made = compile(source, target=GPUTarget("cuda", capability, 32), options=dict(num_warps=kl._WARPS))
        assert len(made.asm["cubin"]) > 0
    print(capability)
"""
    done = without_interpreter(code)
    assert done.stdout.split() == ["80", "90"], done.stderr


@pytest.mark.gpu
def test_a_vocabulary_of_a_quarter_million_on_a_gpu() -> None:
    theirs, ours = logits(300, 262144, seed=12), logits(300, 262144, seed=13)
    assert kl._kernels(ours) is not None
    found = kl.kl(kl.prepared(theirs), ours)
    wanted = torch.cat([exact(*pair) for pair in zip(theirs.split(50), ours.split(50), strict=True)])
    assert torch.allclose(found.double(), wanted, rtol=1e-5, atol=tolerance(theirs, ours))
