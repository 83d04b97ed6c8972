"""The block-by-block runner computes what the model computes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tailcut.checkpoint import Checkpoint
from tailcut.compress.blocks import _tokens_per_batch, finish, open_stream
from tailcut.compress.resident import Weights
from tailcut.compress.skeleton import build_skeleton
from tailcut.errors import InputError

TinyModel = Callable[..., Path]
TOKENS = np.random.default_rng(0).integers(0, 256, (5, 24))  # longer than the tiny models' sliding window of 8


def opened(directory: Path) -> Weights:
    checkpoint = Checkpoint(directory)
    weights = Weights(checkpoint, build_skeleton(checkpoint), "cpu", torch.float32)
    weights.load_rest()
    return weights


def run_through(weights: Weights, batch: int | None) -> torch.Tensor:
    stream = open_stream(weights, TOKENS, batch)
    for index in range(len(weights.skeleton.blocks)):
        with weights.block(index) as block:
            stream.advance(index, block)
    hidden = torch.cat(stream.batches)
    return finish(weights, stream, TOKENS, hidden, torch.arange(TOKENS.shape[1]))


@pytest.mark.parametrize("batch", [1, 2, None])
def test_dense_output_equals_transformers(family: str, batch: int | None, tiny_model: TinyModel) -> None:
    with torch.inference_mode():
        expected = AutoModelForCausalLM.from_pretrained(tiny_model(family))(torch.from_numpy(TOKENS)).logits
    got = run_through(opened(tiny_model(family)), batch)
    # the same operations on the same float32 values; other batch sizes may sum in another order, so a few ulp
    # of values of order 10, through 3 blocks
    assert torch.allclose(got, expected, atol=1e-4, rtol=1e-4)


def test_other_storage_dtype_is_read_exactly(tiny_model: TinyModel) -> None:
    directory = tiny_model("llama", "bfloat16")
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        expected = model(torch.from_numpy(TOKENS)).logits
    assert torch.allclose(run_through(opened(directory), None), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("widest", "tokens"), [(64, 1 << 20), (1 << 16, 2048)])
def test_a_gpu_takes_what_fits_a_quarter_of_a_gigabyte(widest: int, tokens: int, tiny_model: TinyModel) -> None:
    checkpoint = Checkpoint(tiny_model("llama"))
    skeleton = build_skeleton(checkpoint)
    if widest > 64:
        skeleton.blocks[0].wide = torch.nn.Linear(1, widest, device="meta")
    assert _tokens_per_batch(Weights(checkpoint, skeleton, "cuda", torch.float32)) == tokens
    assert _tokens_per_batch(Weights(checkpoint, skeleton, "cpu", torch.float32)) == 2048


def test_only_one_block_is_resident(tiny_model: TinyModel) -> None:
    weights = opened(tiny_model("llama"))
    stream = open_stream(weights, TOKENS)
    with weights.block(1) as block:
        stream.advance(1, block)
        places = [{p.device.type for p in other.parameters()} for other in weights.skeleton.blocks]
        assert places == [{"meta"}, {"cpu"}, {"meta"}]
    assert {p.device.type for p in weights.skeleton.blocks.parameters()} == {"meta"}


def test_watching_does_not_move_the_stream(tiny_model: TinyModel) -> None:
    weights = opened(tiny_model("gpt2"))
    stream = open_stream(weights, TOKENS)
    before = [hidden.clone() for hidden in stream.batches]
    with weights.block(0) as block:
        stream.watch(0, block)
    assert all(torch.equal(a, b) for a, b in zip(before, stream.batches, strict=True))


def test_layers_keep_their_own_masks(tiny_model: TinyModel) -> None:
    """Gemma alternates sliding and full attention: the calls of blocks 0 and 1 must differ, of 0 and 2 not."""
    weights = opened(tiny_model("gemma3_text"))
    calls = open_stream(weights, TOKENS, 1).tape.calls[1]
    masks = [call.kwargs["attention_mask"] for call in calls]
    assert masks[0] is not None
    assert masks[1] is None or not torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


def test_foreign_tokens_and_long_windows_are_refused(tiny_model: TinyModel) -> None:
    weights = opened(tiny_model("llama"))
    with pytest.raises(InputError, match=r"token 300 is outside the model's vocabulary of 258"):
        open_stream(weights, np.full((1, 4), 300))
    with pytest.raises(InputError, match="longer than the model's 128 positions"):
        open_stream(weights, np.zeros((1, 129), np.int64))


def test_errors_of_a_block_are_not_swallowed(tiny_model: TinyModel) -> None:
    weights = opened(tiny_model("llama"))
    stream = open_stream(weights, TOKENS)

    def broken(*_: object) -> None:
        raise ValueError("inside the block")

    with weights.block(0) as block:
        handle = next(iter(block.children())).register_forward_pre_hook(broken)
        with pytest.raises(ValueError, match="inside the block"):
            stream.advance(0, block)
        handle.remove()
