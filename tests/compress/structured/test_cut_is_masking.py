"""Cutting units is silencing them: the smaller model computes what the whole one does without them, in every family."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tailcut.checkpoint import Checkpoint
from tailcut.compress.calibration import Calibration
from tailcut.compress.skeleton import build_skeleton
from tailcut.compress.structured import Settings
from tailcut.compress.structured._groups import find_groups
from tailcut.compress.structured_run import Structuring, cut_structured
from tailcut.errors import InputError
from tailcut.shapes import differs

TinyModel = Callable[..., Path]
HEADS_CAN_GO = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3")


def logits_of(directory: Path, changed: Mapping[str, Tensor] | None = None) -> Tensor:
    """Logits float64 of fixed tokens under transformers' own model, with some parameters replaced."""
    factory: Any = AutoModelForCausalLM
    model = factory.from_pretrained(directory, dtype=torch.float64, attn_implementation="eager")
    for name, value in (changed or {}).items():
        model.get_parameter(name).data.copy_(value)
    with torch.inference_mode():
        logits: Tensor = model(input_ids=torch.arange(40)[None] * 5 % 250, use_cache=False).logits
    return logits


def silenced(directory: Path, removed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Down and output projections of the whole model with the columns of removed units zero, by parameter name."""
    skeleton = build_skeleton(Checkpoint(directory))
    changed: dict[str, Tensor] = {}
    state: dict[str, Tensor] = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64).state_dict()
    for place, units in removed.items():
        index, kind = place.split(".")
        groups, _ = find_groups(skeleton, int(index))
        down = groups[kind].down  # type: ignore[index]
        name = f"{skeleton.block_prefix(int(index))}{down.linear}.weight"
        weight = state[name].clone()
        rows = weight.shape[1] != down.across  # Conv1D stores [in, out]
        (weight.T if not rows and weight.shape[0] != down.across else weight)
        view = (
            weight
            if isinstance(skeleton.model.get_submodule(name.removesuffix(".weight")), torch.nn.Linear)
            else weight.T
        )
        view[:, down.indices(units)] = 0.0
        changed[name] = weight
    return changed


def removed_units(directory: Path, scores: Mapping[str, Tensor], kept: Mapping[str, int]) -> dict[str, Tensor]:
    """Unit numbers with the lowest scores, by group."""
    return {
        place: values.argsort(stable=True)[: len(values) - kept[place.split(".")[1]]]
        for place, values in scores.items()
    }


@pytest.fixture
def noted_scores(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """What the run scored, by group."""
    from tailcut.compress import structured_run

    noted: dict[str, Tensor] = {}
    real = structured_run._scores

    def noting(*arguments: Any) -> dict[str, Tensor]:
        noted.update(real(*arguments))
        return noted

    monkeypatch.setattr(structured_run, "_scores", noting)
    return noted


def test_cut_model_computes_what_the_masked_one_does(
    family: str, tiny_model: TinyModel, tmp_path: Path, noted_scores: dict[str, Tensor]
) -> None:
    source = tiny_model(family)
    asked = Structuring(ratio=0.4, importance="magnitude", multiple=8, refit=False)
    manifest = cut_structured(source, tmp_path / "out", asked)
    kept = {"mlp": int(manifest.details["mlp_channels_kept"] or 0)}
    if family in HEADS_CAN_GO:
        kept["heads"] = int(manifest.details["kv_heads_kept"] or 0)
        assert kept["heads"] == 2  # 0.4 of two is no whole head
    else:
        assert "heads_not_cut" in manifest.details
    assert kept["mlp"] < 64
    assert kept["mlp"] % 8 == 0
    want = logits_of(source, silenced(source, removed_units(source, noted_scores, kept)))
    # float64 sums of the same products in another order; the tiny logits are of size 1 to 100
    torch.testing.assert_close(logits_of(tmp_path / "out"), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", HEADS_CAN_GO)
def test_heads_go_with_their_queries(
    name: str, tiny_model: TinyModel, tmp_path: Path, noted_scores: dict[str, Tensor]
) -> None:
    source = tiny_model(name)
    asked = Structuring(ratio=0.6, importance="magnitude", multiple=8, refit=False)
    manifest = cut_structured(source, tmp_path / "out", asked)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["num_key_value_heads"], config["num_attention_heads"]) == (1, 2)  # two queries a head, as before
    assert abs(float(manifest.details["ratio_removed"] or 0) - 0.6) < 0.06  # half a step of 8 of 64 channels
    kept = {"heads": 1, "mlp": int(manifest.details["mlp_channels_kept"] or 0)}
    want = logits_of(source, silenced(source, removed_units(source, noted_scores, kept)))
    torch.testing.assert_close(logits_of(tmp_path / "out"), want, rtol=1e-9, atol=1e-9)


def test_biases_go_with_their_rows(tiny_model: TinyModel, tmp_path: Path, noted_scores: dict[str, Tensor]) -> None:
    source = tiny_model("llama", attention_bias=True, mlp_bias=True)
    manifest = cut_structured(
        source, tmp_path / "out", Structuring(0.6, importance="magnitude", multiple=8, refit=False)
    )
    kept = {"heads": 1, "mlp": int(manifest.details["mlp_channels_kept"] or 0)}
    want = logits_of(source, silenced(source, removed_units(source, noted_scores, kept)))
    torch.testing.assert_close(logits_of(tmp_path / "out"), want, rtol=1e-9, atol=1e-9)


def test_whole_blocks_go(tiny_model: TinyModel, calibration: Calibration, tmp_path: Path) -> None:
    """Gemma 3 says block by block which attention slides: what stays must keep its own kind."""
    source = tiny_model("gemma3_text")
    asked = Structuring(ratio=0.34, units=("blocks",), calibration=calibration)
    manifest = cut_structured(source, tmp_path / "out", asked)
    gone = int(str(manifest.details["removed_blocks"]))
    kept = [index for index in range(3) if index != gone]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert config["num_hidden_layers"] == 2
    assert config["layer_types"] == [kinds[index] for index in kept]
    before = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float64, attn_implementation="eager")
    layers = before.model.layers
    before.model.layers = torch.nn.ModuleList([layers[index] for index in kept])
    before.config.num_hidden_layers, before.config.layer_types = 2, config["layer_types"]
    with torch.inference_mode():
        want = before(input_ids=torch.arange(40)[None] * 5 % 250, use_cache=False).logits
    torch.testing.assert_close(logits_of(tmp_path / "out"), want, rtol=1e-12, atol=1e-12)


def test_cut_files_hold_the_shapes_that_the_config_says(tiny_model: TinyModel, tmp_path: Path) -> None:
    cut_structured(
        tiny_model("llama", dtype="bfloat16"),
        tmp_path / "out",
        Structuring(0.5, importance="magnitude", multiple=16, refit=False),
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not differs(config)
    assert config["intermediate_size"] % 16 == 0
    for shard in (tmp_path / "out").glob("*.safetensors"):
        for name, tensor in load_file(shard).items():
            assert tensor.dtype == torch.bfloat16
            if "mlp.down_proj" in name:
                assert tensor.shape == (32, config["intermediate_size"])


def test_a_head_norm_over_all_heads_is_refused(tiny_model: TinyModel, tmp_path: Path) -> None:
    """OLMo 2 normalises all heads' channels together: without one head the others would change."""
    source = tiny_model_olmo2(tmp_path)
    with pytest.raises(InputError, match=r"q_norm.*spans several heads"):
        cut_structured(
            source, tmp_path / "out", Structuring(0.3, importance="magnitude", units=("heads",), refit=False)
        )


def tiny_model_olmo2(directory: Path) -> Path:
    from transformers import Olmo2Config, Olmo2ForCausalLM

    config = Olmo2Config(
        vocab_size=258, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    Olmo2ForCausalLM(config).save_pretrained(directory / "olmo2")
    return directory / "olmo2"


def test_settings_that_an_importance_ignores_are_refused(tiny_model: TinyModel, tmp_path: Path) -> None:
    asked = Structuring(0.3, importance="magnitude", scoring=Settings(blend=0.5))
    with pytest.raises(InputError, match="does not read blend"):
        cut_structured(tiny_model("llama"), tmp_path / "out", asked)
