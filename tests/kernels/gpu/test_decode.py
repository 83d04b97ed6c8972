"""The decode loop against transformers on tiny random models, and its own rules."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tailcut.errors import InputError
from tailcut.kernels.gpu import dispatch, scratch, step, step_reference, tuned
from tailcut.kernels.gpu.decode import Decoder, Operations
from tailcut.kernels.gpu.llama import SHAPES, Architecture, read_architecture
from tailcut.kernels.gpu.model import Activated, Linear, assemble, assemble_two_four, dense_linear
from tailcut.kernels.gpu.weights import Weights, cut_two_four, random_weights, read_weights

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3, "head_dim": 16}),
    ("mistral", {"sliding_window": 64}),
]
SMALL = Architecture(32, 64, 2, 4, 2, 8, 100)
TinyModel = Callable[..., Path]


def prompt_of(rows: int, count: int, vocabulary: int = 100) -> Tensor:
    return torch.randint(0, vocabulary, (rows, count), generator=torch.Generator().manual_seed(5)).to(DEVICE)


def expected(directory: Path, prompt: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """transformers' greedy tokens [rows, count] and the logits of the last of them, without a cache."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).to(DEVICE)
    ids = prompt
    with torch.inference_mode():
        for _ in range(count):
            logits = model(ids).logits[:, -1]
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    return ids[:, prompt.shape[1] :], logits


@pytest.mark.parametrize(("model_type", "overrides"), MODELS)
def test_greedy_tokens_and_logits_are_transformers(
    tiny_model: TinyModel, model_type: str, overrides: dict[str, Any]
) -> None:
    directory, prompt = tiny_model(model_type, **overrides), prompt_of(2, 9)
    decoder = Decoder(assemble(read_weights(directory, DEVICE)), batch=2, capacity=40)
    tokens, logits = expected(directory, prompt, 24)
    assert torch.equal(decoder.generate(prompt, 24).long(), tokens)
    torch.testing.assert_close(decoder.logits, logits, rtol=1e-5, atol=2e-5)  # float32 sums in another order


def test_the_fused_kernels_give_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton comes with torch's CUDA wheels and with the dev extra on Linux")
    monkeypatch.setattr(scratch, "MOST_SPLITS", 2)  # the interpreter runs one program after the other
    model, prompt = assemble(random_weights(SMALL, DEVICE, torch.float32)), prompt_of(1, 5)
    plain, fused = (Decoder(model, 1, 64, operations=ops, graph=False) for ops in all_operations())
    assert torch.equal(plain.generate(prompt, 4), fused.generate(prompt, 4))
    torch.testing.assert_close(fused.logits, plain.logits, rtol=1e-5, atol=2e-5)


def all_operations() -> tuple[Operations, Operations]:
    return step_reference, step


@pytest.mark.gpu
def test_a_graph_gives_the_tokens_of_the_plain_loop() -> None:
    weights, prompt = random_weights(SMALL, "cuda", torch.float32), prompt_of(2, 5)
    plain = Decoder(assemble(weights), 2, 300, operations=step_reference, graph=False)
    graph = Decoder(assemble(weights), 2, 300)
    want = plain.generate(prompt, 256)
    assert torch.equal(graph.generate(prompt, 256), want)
    torch.testing.assert_close(graph.logits, plain.logits, rtol=1e-5, atol=2e-5)
    assert torch.equal(graph.generate(prompt, 256), want)  # a second prompt through the same graph


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_two_four_model_gives_the_logits_of_its_own_dense_matrices(bits: int) -> None:
    from tailcut.kernels.gpu.reference import unpack
    from tailcut.kernels.gpu.two_four_pack import pack_two_four

    shape = Architecture(256, 512, 2, 8, 2, 32, 500)
    weights = random_weights(shape, "cuda", torch.bfloat16, two_four=True)

    def rounded(name: str, weight: Tensor) -> Linear:
        return dense_linear(name, unpack(pack_two_four(weight, bits)).to(weight.dtype))

    prompt = prompt_of(1, 8)
    sparse, dense = Decoder(assemble_two_four(weights, bits), 1, 32), Decoder(assemble(weights, rounded), 1, 32)
    got, want = sparse.prefill(prompt).clone(), dense.prefill(prompt).clone()
    torch.testing.assert_close(got, want, rtol=0.05, atol=0.05)  # bfloat16 between layers: 2^-8 of values below 4, some
    for decoder in (sparse, dense):
        decoder.tokens.fill_(7)  # both go on with one token, whichever they chose
        decoder.step()
    torch.testing.assert_close(sparse.logits, dense.logits, rtol=0.05, atol=0.05)


@pytest.mark.gpu
def test_a_tuned_model_gives_the_logits_of_the_dense_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tuned.forget()
    weights = random_weights(Architecture(256, 512, 2, 8, 2, 32, 500), "cuda", torch.bfloat16, two_four=True)
    sparse, dense = Decoder(assemble_two_four(weights, tune=True), 1, 32), Decoder(assemble(weights), 1, 32)
    for decoder in (sparse, dense):
        decoder.prefill(prompt_of(1, 8))
        decoder.tokens.fill_(7)  # both go on with one token, whichever they chose
        decoder.step()
    torch.testing.assert_close(sparse.logits, dense.logits, rtol=0.05, atol=0.05)  # as above
    assert len(list((tmp_path / "tailcut" / "dispatch").iterdir())) == 1
    tuned.forget()


def test_tuning_times_each_shape_once_for_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[tuple[int, int], tuple[int, ...]]] = []
    monkeypatch.setattr(dispatch, "tune", lambda layer, rows: asked.append((layer.shape, tuple(rows))))
    weights = random_weights(SMALL, "cpu", torch.bfloat16, two_four=True)
    assemble_two_four(weights)
    assert asked == []
    assemble_two_four(weights, tune=True, rows=4)
    assert asked == [((64, 32), (4,)), ((32, 32), (4,)), ((128, 32), (4,)), ((32, 64), (4,))]


def test_the_fused_gate_and_up_is_taken_where_the_one_row_kernel_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton comes with torch's CUDA wheels and with the dev extra on Linux")
    weights = random_weights(SMALL, DEVICE, torch.float16, two_four=True)
    fused, apart = assemble_two_four(weights).blocks[0].gate_up, assemble_two_four(weights).blocks[0].gate_up
    assert isinstance(fused, Activated)
    assert isinstance(apart, Activated)
    x = torch.randn(1, 32, generator=torch.Generator().manual_seed(3)).half().to(DEVICE)
    one = fused.apply(x)
    monkeypatch.setattr(dispatch, "choose", lambda layer, rows: dispatch.Choice(rows, "dot", False, {}))
    two = apart.apply(x)
    # `one` is rounded to float16 once, `two` before silu(gate) * up as well
    torch.testing.assert_close(one, two, rtol=4 * 2**-11, atol=1e-4)


def test_places_are_named_and_a_fused_gate_and_up_is_used() -> None:
    weights, seen = random_weights(SMALL, DEVICE, torch.float32), list[str]()

    def linear(name: str, weight: Tensor) -> Linear:
        seen.append(name)
        return dense_linear(name, weight)

    def fused(name: str, weight: Tensor) -> Activated:
        return Activated(lambda x: step_reference.swiglu(x @ weight.T))

    prompt = prompt_of(1, 4)
    plain, activated = assemble(weights, linear), assemble(weights, gate_up=fused)
    assert seen == [f"layers.{i}.{place}" for i in range(2) for place in ("qkv", "o", "gate_up", "down")]
    one, two = (Decoder(model, 1, 32) for model in (plain, activated))
    assert torch.equal(one.generate(prompt, 12), two.generate(prompt, 12))


def test_packed_directories_read_like_dense_ones(tiny_model: TinyModel, tmp_path: Path) -> None:
    import shutil

    from tailcut.checkpoint import Checkpoint, packed_tensors, write_shard

    source = tiny_model("llama")
    directory = tmp_path / "packed"
    shutil.copytree(source, directory)
    checkpoint, tensors = Checkpoint(source), {}
    for name in checkpoint.names:
        tensor = checkpoint.read(name)
        tensors.update(packed_tensors(name, tensor) if "proj" in name else {name: tensor})
    write_shard(directory / "model.safetensors", tensors)
    for one, two in zip(flat(read_weights(source)), flat(read_weights(directory)), strict=True):
        assert torch.equal(one, two)


def flat(weights: Weights) -> list[Tensor]:
    blocks = [[*block.matrices.values(), block.attention_norm, block.mlp_norm] for block in weights.blocks]
    return [weights.embedding, weights.head, weights.final_norm, *(tensor for block in blocks for tensor in block)]


def test_bfloat16_is_read_bit_for_bit(tiny_model: TinyModel) -> None:
    from transformers import AutoModelForCausalLM

    directory = tiny_model("llama", "bfloat16")
    weights = read_weights(directory)
    state = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).state_dict()
    assert weights.dtype == torch.bfloat16
    assert torch.equal(weights.blocks[1].matrices["down"], state["model.layers.1.mlp.down_proj.weight"])
    up = state["model.layers.2.mlp.up_proj.weight"]
    assert torch.equal(weights.blocks[2].matrices["gate_up"][len(up) :], up)


def test_random_weights_are_seeded_and_two_four() -> None:
    one, two = (random_weights(SMALL, "cpu", torch.float32, 3, two_four=True) for _ in range(2))
    for first, second in zip(flat(one), flat(two), strict=True):
        assert torch.equal(first, second)
    for weight in one.blocks[0].matrices.values():
        assert (weight.view(len(weight), -1, 4).count_nonzero(-1) == 2).all()
    assert not torch.equal(one.embedding, random_weights(SMALL, "cpu", torch.float32, 4).embedding)


def test_the_cut_keeps_the_two_largest_and_the_first_of_equals() -> None:
    weight = torch.tensor([[1.0, -2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 3.0, -4.0, -5.0]])
    want = [0.0, -2.0, 2.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, -4.0, -5.0]
    assert cut_two_four(weight).tolist() == [want]


def test_known_shapes_agree_with_their_published_sizes() -> None:
    """Parameters: LLaMA-7B 6.74e9, Llama 3 8B 8.03e9, Mistral 7B 7.24e9, SmolLM2 134.5e6 (model cards)."""
    sizes = {"llama-7b": 6.738e9, "llama-3-8b": 8.030e9, "mistral-7b": 7.242e9, "smollm2-135m": 134.5e6}
    for name, shape in SHAPES.items():
        blocks = sum(out * columns for out, columns in shape.block_shapes.values()) + 2 * shape.hidden
        ends = (1 if shape.tied else 2) * shape.vocabulary * shape.hidden + shape.hidden
        assert shape.layers * blocks + ends == pytest.approx(sizes[name], rel=1e-3)


CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma2"}, "gemma2.*does not run in the GPU loop"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_type 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "llama3 needs low_freq_factor"),
    ],
)
def test_other_models_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_architecture(CONFIG | change)


def test_older_configs_are_read() -> None:
    shape = read_architecture(CONFIG | {"rope_theta": 5e5, "rope_scaling": None, "num_key_value_heads": 2})
    assert (shape.rope_theta, shape.scaling, shape.kv_heads, shape.head_dim) == (5e5, None, 2, 8)


def test_wrong_sizes_are_refused() -> None:
    model = assemble(random_weights(SMALL, DEVICE, torch.float32))
    decoder = Decoder(model, 1, 8)
    with pytest.raises(InputError, match="1 rows of 1 to 8 tokens"):
        decoder.prefill(prompt_of(2, 3))
    with pytest.raises(InputError, match=r"5 \+ 5 tokens do not fit a cache of 8"):
        decoder.generate(prompt_of(1, 5), 5)
    decoder.generate(prompt_of(1, 5), 4)
    with pytest.raises(InputError, match="all 8 positions of the cache are used"):
        decoder.step()
    with pytest.raises(InputError, match="cannot pretend 8"):
        decoder.pretend(8)
    with pytest.raises(InputError, match="at least one row"):
        Decoder(model, 0, 8)


def test_a_window_shorter_than_the_cache_is_refused(tiny_model: TinyModel) -> None:
    model = assemble(read_weights(tiny_model("mistral"), DEVICE))
    with pytest.raises(InputError, match="looks back on 8 positions"):
        Decoder(model, 1, 9)


def test_a_pretended_context_is_seeded_and_can_be_stepped() -> None:
    model = assemble(random_weights(SMALL, DEVICE, torch.float32))
    one, two = Decoder(model, 2, 16), Decoder(model, 2, 16)
    for decoder in (one, two):
        decoder.pretend(12, seed=7)
        decoder.step()
    assert one.position.tolist() == [13, 13]
    assert torch.equal(one.logits, two.logits)
