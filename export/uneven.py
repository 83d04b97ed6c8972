"""Models whose blocks differ in shape (tailcut.shapes): their decoder, and the torch model that a package is compared with."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tailcut.checkpoint import Checkpoint
from tailcut.errors import InputError
from tailcut.export.spec import BlockSpec, DecoderSpec
from tailcut.shapes import HEADS, KV_HEADS, WIDTHS, Overrides, overrides_of, plain

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def with_own_shapes(spec: DecoderSpec, config: Mapping[str, Any]) -> DecoderSpec:
    """The decoder with the heads and widths that its config states for single blocks."""
    own = overrides_of(config, len(spec.blocks))
    blocks = [_shaped(spec, index, settings) for index, settings in enumerate(own)]
    return replace(spec, blocks=tuple(blocks))


def _shaped(spec: DecoderSpec, index: int, own: Overrides) -> BlockSpec:
    block = spec.blocks[index]
    kv_heads = own.get(KV_HEADS, spec.kv_heads if HEADS not in own else own[HEADS] // spec.group)
    if own.get(HEADS, kv_heads * spec.group) != kv_heads * spec.group:
        raise InputError(
            f"config.json: block {index} has {own.get(HEADS)} heads on {kv_heads} key/value heads; {spec.group} must share "
            "one, as in the other blocks"
        )
    width = next((own[name] for name in WIDTHS if name in own), None)
    return replace(block, attention=replace(block.attention, kv_heads=kv_heads), mlp=replace(block.mlp, width=width))


def load_uneven(model_dir: Path) -> "PreTrainedModel":
    """The model in float32 with eager attention, each block built by its own settings; InputError if it cannot be."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    checkpoint = Checkpoint(model_dir)
    try:
        config = CONFIG_MAPPING[str(checkpoint.config["model_type"])].from_dict(plain(checkpoint.config))
        own = overrides_of(checkpoint.config, config.num_hidden_layers)
        factory: Any = AutoModelForCausalLM
        model: Any = factory.from_config(
            config, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
        )
        _replace_blocks(model, own)
        _fill(model, checkpoint)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(f"{model_dir}: transformers cannot load the model ({str(error).splitlines()[0]})") from error
    model.eval().requires_grad_(False)
    return cast("PreTrainedModel", model)


def _replace_blocks(model: Any, own: tuple[Overrides, ...]) -> None:  # noqa: ANN401 untyped library object
    from torch.nn import ModuleList

    parts = model.get_decoder().modules()
    blocks = next(part for part in parts if isinstance(part, ModuleList) and len(part) == len(own))
    for index, settings in enumerate(own):
        config = copy.copy(model.config)
        for name, value in settings.items():
            setattr(config, name, value)
        blocks[index] = type(blocks[index])(config, index)


def _fill(model: Any, checkpoint: Checkpoint) -> None:  # noqa: ANN401
    """Every stored tensor into the model; what the model has beyond them must be tied."""
    from safetensors.torch import load_file

    state = {name: tensor for file in checkpoint.files for name, tensor in load_file(file).items()}
    prefix = f"{model.base_model_prefix}."
    known = model.state_dict().keys()
    named = {name if name in known else prefix + name: tensor for name, tensor in state.items()}
    missing, unexpected = model.load_state_dict(named, strict=False)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    lost = [name for name in missing if not (tied and name.startswith("lm_head."))]
    if len(lost) == len(unexpected) == 1:  # GPT-NeoX stores its head under another name
        lost, unexpected = model.load_state_dict({lost[0]: named[unexpected[0]]}, strict=False).unexpected_keys, []
    if lost or unexpected:
        raise ValueError(f"tensors and config do not belong together: {(lost or unexpected)[0]}")
