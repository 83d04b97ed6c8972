"""SparseLinear and sparsify_model: exact weights, state dicts, torch.compile, and models of transformers."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tailcut.allocation import NM, Dense, LayerPlan, Unstructured
from tailcut.errors import InputError
from tailcut.kernels.gpu.modules import Kind, SparseLinear
from tailcut.kernels.gpu.products import join, read_description, split
from tailcut.kernels.gpu.sparsify import is_two_four, sparsify_model
from tailcut.kernels.gpu.weights import cut_two_four
from tailcut.manifest import Manifest, RealisedLayer, write_manifest

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TinyModel = Callable[..., Path]
KINDS: list[tuple[Kind, int]] = [
    ("two_four", 16),
    ("two_four", 8),
    ("two_four", 4),
    ("unstructured", 16),
    ("unstructured", 8),
]


def linear_of(kind: Kind, out: int = 24, columns: int = 136, seed: int = 0, bias: bool = True) -> nn.Linear:
    """A bfloat16 linear, 2:4 or with two thirds of zeros."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, columns, generator=generator)
    cut = cut_two_four(weight) if kind == "two_four" else weight * (weight.abs() > 1)
    linear = nn.Linear(columns, out, bias=bias, dtype=torch.bfloat16)
    linear.weight.data = cut.bfloat16()
    if bias:
        linear.bias.data = torch.randn(out, generator=generator).bfloat16()
    return linear.to(DEVICE)


def x_of(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(9)).bfloat16().to(DEVICE)


@pytest.mark.parametrize("kind", ["two_four", "unstructured"])
def test_the_weight_comes_back_exactly(kind: Kind) -> None:
    linear = linear_of(kind)
    sparse = SparseLinear.from_linear(linear, kind)
    assert torch.equal(sparse.weight, linear.weight)
    assert f"24, bias=True, {kind[:3]}"[:12] in repr(sparse)


@pytest.mark.parametrize("shape", [(136,), (1, 136), (3, 136), (2, 20, 136)])
@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_forward_is_the_linear_of_its_own_weight(kind: Kind, bits: int, shape: tuple[int, ...]) -> None:
    linear = linear_of(kind)
    sparse, x = SparseLinear.from_linear(linear, kind, bits), x_of(*shape)
    exact = x.double() @ sparse.weight.double().T
    want = (exact + linear.bias.double()).detach()
    got = sparse(x)
    assert (got.dtype, got.shape) == (torch.bfloat16, (*shape[:-1], 24))
    # a bfloat16 rounding of the product and one of the sum with the bias; float32 sums inside; 4 bits: q * scale in
    # bfloat16 where the matrix is written out first
    inside = x.double().abs() @ sparse.weight.double().abs().T * (2**-8 if bits == 4 else 1e-6)
    assert ((got.double() - want).abs() <= 2**-8 * (exact.abs() + want.abs()) + inside).all()


@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_a_state_dict_comes_back_exactly_through_a_file_and_into_other_sizes(
    kind: Kind, bits: int, tmp_path: Path
) -> None:
    sparse = SparseLinear.from_linear(linear_of(kind), kind, bits)
    save_file(sparse.state_dict(), tmp_path / "one.safetensors")
    other = SparseLinear.from_linear(linear_of(kind, 16, 256, seed=1), kind, bits)
    other.load_state_dict({name: value.clone() for name, value in other.state_dict().items()})  # its own first
    other.bias = nn.Parameter(torch.zeros(24, dtype=torch.bfloat16, device=DEVICE), requires_grad=False)
    other.load_state_dict(load_file(tmp_path / "one.safetensors"))
    assert torch.equal(other.weight, sparse.weight)
    assert torch.equal(other(x_of(2, 136)), sparse(x_of(2, 136)))
    assert repr(other) == repr(sparse)


def test_a_state_dict_with_a_missing_part_is_refused() -> None:
    sparse = SparseLinear.from_linear(linear_of("two_four"), "two_four")
    state = sparse.state_dict()
    del state["meta"]
    with pytest.raises(InputError, match="meta: missing from the state dict"):
        SparseLinear.from_linear(linear_of("two_four", seed=1), "two_four").load_state_dict(state)


@pytest.mark.parametrize(("kind", "bits"), [("two_four", 8), ("unstructured", 8)])
def test_casts_change_the_bias_but_not_the_packed_weight(kind: Kind, bits: int) -> None:
    sparse = SparseLinear.from_linear(linear_of(kind), kind, bits)
    before = sparse.weight
    sparse.to(torch.float16)
    assert sparse.bias is not None
    assert sparse.bias.dtype == torch.float16
    assert torch.equal(sparse.weight, before)
    assert torch.equal(sparse.half().float().weight, before)


def test_the_operator_passes_torchs_own_checks() -> None:
    sparse = SparseLinear.from_linear(linear_of("two_four"), "two_four")
    parts, description = split(sparse.layout)
    x = x_of(3, 136)
    torch.library.opcheck(torch.ops.tailcut.sparse_linear.default, (x, list(parts.values()), description))


@pytest.mark.parametrize("kind", ["two_four", "unstructured"])
def test_compiled_without_breaks_it_gives_the_same(kind: Kind) -> None:
    sparse = SparseLinear.from_linear(linear_of(kind), kind)
    backend = "inductor" if DEVICE == "cuda" else "aot_eager"  # no C++ compiler is needed for the second
    compiled = torch.compile(sparse, fullgraph=True, backend=backend)
    x = x_of(2, 136)
    torch.testing.assert_close(compiled(x), sparse(x), rtol=2**-7, atol=2**-7)  # the bias may be added before rounding


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_in_a_cuda_graph(kind: Kind, bits: int) -> None:
    sparse, x = SparseLinear.from_linear(linear_of(kind), kind, bits), x_of(1, 136)
    sparse(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = sparse(x)
    x.copy_(x_of(2, 136)[1:])
    graph.replay()
    assert torch.equal(y, sparse(x))


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("not json", "damaged"),
        ('{"layout": "pickle"}', "damaged"),
        ('{"layout": "two_four", "parts": ["values"], "dtype": "bfloat16", "shape": [4, 4]}', "does not fit"),
    ],
)
def test_a_damaged_description_is_refused(description: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_description(description)


def test_parts_that_do_not_fit_the_description_are_refused() -> None:
    parts, description = split(SparseLinear.from_linear(linear_of("two_four"), "two_four").layout)
    with pytest.raises(InputError, match="values must be"):
        join([parts["values"][:5].contiguous(), parts["meta"]], description)


def test_wrong_widths_are_refused() -> None:
    with pytest.raises(InputError, match="x has 8 columns, the sparse matrix 136"):
        SparseLinear.from_linear(linear_of("two_four"), "two_four")(x_of(1, 8))


# ---- whole models


def cut_model(tiny_model: TinyModel) -> tuple[Any, dict[str, LayerPlan]]:
    """A bfloat16 LLaMA whose attention is 2:4, MLPs have 60 % zeros, but for the last block, which is dense."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama", "bfloat16"), dtype=torch.bfloat16).to(DEVICE)
    plans = {}
    for name, linear in model.named_modules():
        if not isinstance(linear, nn.Linear) or name == "lm_head":
            continue
        weight = linear.weight.data
        if ".2." in name:
            plans[name] = LayerPlan(Dense())
        elif "self_attn" in name:
            plans[name], linear.weight.data = LayerPlan(NM(2, 4)), cut_two_four(weight)
        else:
            limit = weight.abs().float().quantile(0.6)
            plans[name], linear.weight.data = LayerPlan(Unstructured(0.6)), weight * (weight.abs() > limit)
    return model, plans


def manifest_of(model: Any, plans: dict[str, LayerPlan]) -> Manifest:
    layers = {
        name: RealisedLayer(
            plan,
            tuple(model.get_submodule(name).weight.shape),
            int((model.get_submodule(name).weight == 0).sum()),
        )
        for name, plan in plans.items()
    }
    return Manifest("model", "a test", {}, layers, sum(p.numel() for p in model.parameters()), {})


def expected_kind(name: str) -> str:
    return "dense" if ".2." in name else "two_four_16" if "self_attn" in name else "bitmask_16"


@pytest.mark.parametrize("source", ["manifest", "directory", "zeros"])
def test_a_model_is_swapped_as_planned_and_gives_the_same_logits(
    tiny_model: TinyModel, tmp_path: Path, source: str
) -> None:
    model, plans = cut_model(tiny_model)
    prompt = torch.arange(7, device=DEVICE)[None]
    with torch.inference_mode():
        want = model(prompt).logits
    manifest = manifest_of(model, plans)
    write_manifest(manifest, tmp_path)
    wanted = {"manifest": manifest, "directory": tmp_path, "zeros": None}[source]
    report = sparsify_model(model, wanted)
    kinds = {swap.name: swap.kind for swap in report.swaps if swap.name != "lm_head"}
    assert kinds == {name: expected_kind(name) for name in plans}
    assert isinstance(model.get_submodule("model.layers.0.mlp.down_proj"), SparseLinear)
    with torch.inference_mode():
        got = model(prompt).logits
    # the same values in sums of another order, rounded to bfloat16 between some twenty layers
    torch.testing.assert_close(got, want, rtol=0.05, atol=0.05)
    assert report.bytes_before == sum(math.prod(layer.shape) * 2 for layer in manifest.layers.values()) + (
        model.lm_head.weight.nbytes if source == "zeros" else 0
    )
    assert "14 of" in str(report)


def test_a_swapped_models_state_dict_loads_into_another_swapped_model(tiny_model: TinyModel) -> None:
    one, _ = cut_model(tiny_model)
    two, _ = cut_model(tiny_model)
    for linear in two.modules():
        if isinstance(linear, nn.Linear):
            linear.weight.data = linear.weight.data.flip(0)  # other zeros, so that layouts have other sizes
    sparsify_model(one)
    sparsify_model(two)
    two.load_state_dict(one.state_dict())
    prompt = torch.arange(7, device=DEVICE)[None]
    with torch.inference_mode():
        assert torch.equal(one(prompt).logits, two(prompt).logits)


def test_a_function_chooses_and_a_kind_can_be_asked_for(tiny_model: TinyModel) -> None:
    model, _ = cut_model(tiny_model)
    report = sparsify_model(model, lambda name, linear: name.endswith("0.self_attn.q_proj"), kind="unstructured")
    assert [(swap.name, swap.kind) for swap in report.swaps] == [("model.layers.0.self_attn.q_proj", "bitmask_16")]


def test_a_weight_that_is_not_two_four_is_refused_by_name(tiny_model: TinyModel) -> None:
    model, _ = cut_model(tiny_model)
    with pytest.raises(InputError, match=r"model\.layers\.2\.mlp\.up_proj: not 2:4"):
        sparsify_model(model, lambda name, linear: name.endswith("2.mlp.up_proj"), kind="two_four")


def test_a_manifest_of_another_model_is_refused(tiny_model: TinyModel) -> None:
    model, plans = cut_model(tiny_model)
    manifest = manifest_of(model, plans)
    with pytest.raises(InputError, match="in the manifest, but no linear of this model"):
        sparsify_model(nn.Sequential(nn.Linear(4, 4)), manifest)
    model.model.layers[0].self_attn.q_proj = nn.Linear(8, 8)
    with pytest.raises(InputError, match=r"q_proj: is \[8, 8\] in the model"):
        sparsify_model(model, manifest)


def test_linears_with_few_zeros_stay_dense_and_the_report_says_why() -> None:
    report = sparsify_model(nn.Sequential(nn.Linear(8, 8)))
    assert report.swaps[0].kind == "dense"
    assert "0% zeros, fewer than the 45%" in report.swaps[0].reason


def test_is_two_four() -> None:
    assert is_two_four(torch.tensor([[1.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0]]))
    assert not is_two_four(torch.tensor([[1.0, 1.0, 2.0, 0.0]]))
    assert not is_two_four(torch.zeros(2, 6))
