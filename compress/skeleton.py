"""A model's structure without its weights: built from `config.json` on the meta device.

Parameters take no memory; buffers (rotary tables) are real. The decoder blocks are found by shape of the
module tree, never by a list of names: they are the outermost `ModuleList` inside the text decoder that holds as
many equal modules as the config has hidden layers. Expert lists lie inside a block and vision towers outside
the text decoder, so neither can be mistaken for it. Code shipped beside a checkpoint is never run.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.pytorch_utils import Conv1D

from tailcut.checkpoint import Checkpoint
from tailcut.errors import InputError
from tailcut.shapes import Overrides, overrides_of, plain


class Described(Protocol):
    """What a skeleton is built from: a checkpoint, or only a config and where it stands."""

    @property
    def directory(self) -> Path: ...

    @property
    def config(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A causal LM on the meta device, where its decoder blocks hang ("model.layers"), and what single blocks have of their own."""

    model: PreTrainedModel
    blocks_name: str
    blocks: nn.ModuleList
    own: tuple[Overrides, ...]  # of each block; see tailcut.shapes

    def block_prefix(self, index: int) -> str:
        """Name of one block's modules up to and with the last dot."""
        return f"{self.blocks_name}.{index}."


def build_skeleton(checkpoint: Described) -> Skeleton:
    """Checkpoint -> its model on the meta device in eval mode, float32; InputError for an unknown family."""
    config = typed_config(checkpoint)
    try:
        with _parameters_on_meta():
            factory: Any = AutoModelForCausalLM  # its methods carry no annotations
            model: Any = factory.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as error:
        raise InputError(
            f"{checkpoint.directory}: no causal language model can be built from config.json ({_first_line(error)})"
        ) from error
    name, blocks = _find_blocks(model, checkpoint)
    skeleton = Skeleton(model, name, blocks, overrides_of(checkpoint.config, len(blocks)))
    for index, own in enumerate(skeleton.own):
        if own:
            blocks[index] = shaped_block(skeleton, index, {})
    model.eval()
    return skeleton


def shaped_block(skeleton: Skeleton, index: int, settings: Overrides) -> nn.Module:
    """Block `index` on the meta device as its family's own class builds it with these settings on top of its own.

    InputError where the class refuses them.
    """
    own = {**skeleton.own[index], **settings}
    config = copy.copy(skeleton.model.config.get_text_config(decoder=True))
    # set, not built anew: a class may refuse 26 heads for a hidden size of 4096, though its modules have no such need
    for name, value in own.items():
        setattr(config, name, value)
    family: Any = type(skeleton.blocks[index])
    try:
        with _parameters_on_meta():
            block: nn.Module = family(config, index)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise InputError(f"block {index} cannot be built with {own} ({_first_line(error)})") from error
    return block.eval()


def linears_of(block: nn.Module) -> Iterator[tuple[str, nn.Linear | Conv1D]]:
    """The prunable modules of one block, in module order: name inside the block, module."""
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            yield name, module


class TensorNames:
    """Which checkpoint tensor holds a parameter.

    The two name spaces differ by prefixes (GPT-2 and OPT are stored with and without `transformer.` / `model.`)
    and sometimes by a renamed head. In order: the same name; the name less or plus the base model's prefix; the
    stored name with the same ending; outside the blocks, the only unclaimed tensor of the same shape.
    """

    def __init__(self, checkpoint: Checkpoint, skeleton: Skeleton) -> None:
        self._checkpoint = checkpoint
        self._prefix = f"{skeleton.model.base_model_prefix}."
        self._blocks = skeleton.blocks_name

    def find(self, parameter: str) -> str | None:
        """Checkpoint tensor of a parameter of the model, or None."""
        shorter = parameter.removeprefix(self._prefix)
        for name in (parameter, shorter, self._prefix + parameter):
            if name in self._checkpoint:
                return name
        return self._same_ending(parameter)

    def require(self, parameter: str, shape: tuple[int, ...]) -> str:
        """The same, with InputError when it is missing or does not have the shape that the config implies."""
        name = self.find(parameter)
        if name is None:
            raise InputError(
                f"{self._checkpoint.directory}: no tensor for {parameter}; the weights do not belong to this "
                "config.json, or are stored in a quantised or foreign format"
            )
        stored = self._checkpoint.shape(name)
        if stored != shape:
            raise InputError(
                f"{self._checkpoint.directory}: tensor {name} has shape {list(stored)}, config.json implies "
                f"{list(shape)}; weights and config do not belong together"
            )
        return name

    def _same_ending(self, parameter: str) -> str | None:
        """Only endings that still name the block list are tried, so that block 1 never matches block 11."""
        if not parameter.startswith(f"{self._blocks}."):
            return None
        ending = parameter.removeprefix(self._blocks.rpartition(".")[0])
        found = [name for name in self._checkpoint.names if f".{name}".endswith("." + ending.lstrip("."))]
        return _closest(parameter, found)


def _closest(parameter: str, found: list[str]) -> str | None:
    """The candidate that shares most name parts, if it is the only such (a vision tower shares fewer)."""
    parts = set(parameter.split("."))
    ranked = sorted(found, key=lambda name: -len(parts & set(name.split("."))))
    shared = [len(parts & set(name.split("."))) for name in ranked]
    return ranked[0] if shared and shared.count(shared[0]) == 1 else None


def head_tensor(checkpoint: Checkpoint, shape: tuple[int, ...], claimed: frozenset[str]) -> str | None:
    """A renamed output head (GPT-NeoX's `embed_out.weight`): the only unclaimed tensor of that shape."""
    found = [name for name in checkpoint.names if name not in claimed and checkpoint.shape(name) == shape]
    return found[0] if len(found) == 1 else None


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules built inside get their parameters on the meta device as they are registered; buffers stay real.

    `torch.device("meta")` would take the buffers along, and rotary tables are in no checkpoint. The memory that
    `torch.empty` promised a parameter is never touched.
    """
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, None if parameter is None else nn.Parameter(parameter.to("meta"), requires_grad=False))

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def typed_config(checkpoint: Described) -> PretrainedConfig:
    """The family's config class, filled but for settings of single blocks; only families that transformers itself knows."""
    family = checkpoint.config.get("model_type")
    if not isinstance(family, str) or family not in CONFIG_MAPPING:
        raise InputError(
            f"{checkpoint.directory}/config.json: unknown model family {family!r}; tailcut handles causal language "
            "models that transformers knows without remote code"
        )
    body = {key: value for key, value in plain(checkpoint.config).items() if key != "auto_map"}
    try:
        config: PretrainedConfig = CONFIG_MAPPING[family].from_dict(body)
    except Exception as error:  # the library's validators raise classes of their own that share no base
        raise InputError(f"{checkpoint.directory}/config.json: refused by {family} ({_first_line(error)})") from error
    return config


def _find_blocks(model: PreTrainedModel, checkpoint: Described) -> tuple[str, nn.ModuleList]:
    find: Any = model.get_decoder
    decoder: nn.Module = find() or model
    wanted = int(model.config.get_text_config(decoder=True).num_hidden_layers)
    inside = {id(module) for module in decoder.modules()}
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and id(module) in inside and _are_blocks(module, wanted)
    ]
    if not lists:
        raise InputError(
            f"{checkpoint.directory}: no list of {wanted} decoder blocks in {type(model).__name__}; "
            "this family is built in a way that tailcut does not handle"
        )
    name, blocks = min(lists, key=lambda item: item[0].count("."))
    _refuse_fused_experts(blocks, checkpoint)
    return name, blocks


def _are_blocks(candidate: nn.ModuleList, wanted: int) -> bool:
    return len(candidate) == wanted > 0 and all(any(True for _ in linears_of(block)) for block in candidate)


def _refuse_fused_experts(blocks: nn.ModuleList, checkpoint: Described) -> None:
    for name, parameter in blocks.named_parameters():
        if parameter.ndim > 2:
            raise InputError(
                f"{checkpoint.directory}: block weight {name} has {parameter.ndim} dimensions (fused experts); "
                "mixture-of-experts models are not handled"
            )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
