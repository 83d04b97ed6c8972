"""Every linear of the decoder blocks is found, in every family, and nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tailcut.checkpoint import Checkpoint
from tailcut.compress.discovery import find_linears, read_weight
from tailcut.errors import InputError

TinyModel = Callable[..., Path]

# linears in one block: q k v o gate up down; fused qkv and gate_up save 2 and 1; OPT, GPT-2, NeoX have no gate
PER_BLOCK = {"phi3": 4, "opt": 6, "gpt2": 4, "gpt_neox": 4}


def edit_config(directory: Path, **changes: Any) -> None:
    config = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(config))


@pytest.fixture
def copy(tiny_model: TinyModel, tmp_path: Path) -> Callable[[str], Path]:
    return lambda family: Path(shutil.copytree(tiny_model(family), tmp_path / family))


def test_finds_every_linear_and_its_weight(family: str, tiny_model: TinyModel) -> None:
    directory = tiny_model(family)
    checkpoint = Checkpoint(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    linears = find_linears(checkpoint)
    assert len(linears) == 3 * PER_BLOCK.get(family, 7)
    assert [linear.block for linear in linears] == sorted(linear.block for linear in linears)
    for linear in linears:
        weight = model.get_submodule(linear.name).weight.detach()
        expected = weight.T if linear.transposed else weight
        got = read_weight(checkpoint, linear)
        assert got.shape == linear.shape == tuple(expected.shape)
        assert np.array_equal(got, expected.numpy())


def test_embeddings_and_head_are_not_found(family: str, tiny_model: TinyModel) -> None:
    names = [linear.name for linear in find_linears(Checkpoint(tiny_model(family)))]
    assert not [name for name in names if "embed" in name or "head" in name or "wte" in name]


@pytest.mark.parametrize(("family_name", "prefix"), [("gpt2", "transformer."), ("opt", "model."), ("llama", "model.")])
def test_checkpoint_without_the_base_prefix(family_name: str, prefix: str, copy: Callable[[str], Path]) -> None:
    directory = copy(family_name)
    tensors = load_file(directory / "model.safetensors")
    save_file(
        {name.removeprefix(prefix): value for name, value in tensors.items()},
        directory / "model.safetensors",
        {"format": "pt"},
    )
    linears = find_linears(Checkpoint(directory))
    assert all(linear.name == prefix + linear.tensor.removesuffix(".weight") for linear in linears)


def test_foreign_prefix_is_matched_by_its_ending(copy: Callable[[str], Path]) -> None:
    directory = copy("llama")
    tensors = load_file(directory / "model.safetensors")
    save_file({f"language_model.{name}": value for name, value in tensors.items()}, directory / "model.safetensors")
    assert find_linears(Checkpoint(directory))[0].tensor == "language_model.model.layers.0.self_attn.q_proj.weight"


def test_the_vision_tower_is_not_taken_for_the_decoder(tmp_path: Path) -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision |= {"image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    linears = find_linears(Checkpoint(tmp_path))
    assert len(linears) == 14
    assert not [linear for linear in linears if "vision" in linear.tensor or "vision" in linear.name]


def test_unknown_family(copy: Callable[[str], Path]) -> None:
    directory = copy("llama")
    edit_config(directory, model_type="martian")
    with pytest.raises(InputError, match="unknown model family 'martian'"):
        find_linears(Checkpoint(directory))


def test_a_family_that_is_no_language_model(copy: Callable[[str], Path]) -> None:
    directory = copy("llama")
    edit_config(directory, model_type="vit")
    with pytest.raises(InputError, match="no causal language model"):
        find_linears(Checkpoint(directory))


def test_remote_code_in_the_config_is_not_run(copy: Callable[[str], Path]) -> None:
    directory = copy("llama")
    (directory / "evil.py").write_text("raise SystemExit('remote code ran')")
    edit_config(directory, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    assert find_linears(Checkpoint(directory))


def test_weights_of_another_size(copy: Callable[[str], Path]) -> None:
    directory = copy("llama")
    edit_config(directory, intermediate_size=96)
    with pytest.raises(InputError, match=r"mlp\.gate_proj.*\[64, 32\].*implies \[96, 32\]"):
        find_linears(Checkpoint(directory))


def test_missing_tensor_is_named(copy: Callable[[str], Path]) -> None:
    directory = copy("llama")
    edit_config(directory, num_hidden_layers=4)
    with pytest.raises(InputError, match=r"no tensor for model\.layers\.3\.self_attn\.q_proj\.weight"):
        find_linears(Checkpoint(directory))


def test_nonsense_in_the_config_is_one_sentence(copy: Callable[[str], Path]) -> None:
    directory = copy("llama")
    edit_config(directory, hidden_size="many")
    with pytest.raises(InputError, match=r"config\.json"):
        find_linears(Checkpoint(directory))


def test_fused_experts_are_refused(tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MixtralConfig(**sizes, num_key_value_heads=2, vocab_size=64, num_local_experts=2)
    MixtralForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="mixture-of-experts"):
        find_linears(Checkpoint(tmp_path))


def test_nan_weights_are_refused_by_name(copy: Callable[[str], Path]) -> None:
    directory = copy("llama")
    path = directory / "model.safetensors"
    tensors = load_file(path)
    broken = tensors["model.layers.1.mlp.up_proj.weight"].copy()
    broken[3, 4] = np.nan
    save_file(tensors | {"model.layers.1.mlp.up_proj.weight": broken}, path)
    checkpoint = Checkpoint(directory)
    linear = next(item for item in find_linears(checkpoint) if item.name == "model.layers.1.mlp.up_proj")
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.up_proj\.weight.*NaN"):
        read_weight(checkpoint, linear)


def test_the_tiny_models_are_real_directories(family: str, tiny_model: TinyModel) -> None:
    directory = tiny_model(family)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    ids = tokenizer("Hello world", return_tensors="pt").input_ids
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert torch.isfinite(model(ids).logits).all()
    assert tokenizer.decode(ids[0]) == "Hello world"
