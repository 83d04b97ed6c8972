"""Modifiers that are neither pruning nor quantisation: what happens instead, a sentence each."""

from typing import Final

from tailcut.recipe_import._parts import Part
from tailcut.recipe_import._reading import Read

_TRAINING: Final = (
    "it shapes a training run; tailcut cuts in one shot, and recovery has a budget (recover_budget) instead"
)
_ROTATES: Final = "it changes weights before they are rounded; tailcut rounds them as they are, by gptq or joint"
WHY: Final = {
    "SmoothQuantModifier": "it moves scale from activations to weights; tailcut's kernels scale each row of activations when it "
    "comes, so use activation_bits 16 where 8 costs quality",
    "LogarithmicEqualizationModifier": "it moves scale from activations to weights; use activation_bits 16 where 8 costs quality",
    "AWQModifier": "it scales salient channels before rounding; use quantiser gptq",
    "AutoRoundModifier": "it learns the rounding; use quantiser gptq",
    "QuIPModifier": _ROTATES,
    "SpinQuantModifier": _ROTATES,
    "REAPPruningModifier": "it removes experts; `tailcut structured` removes heads, channels or blocks",
    "LayerPruningModifier": "it removes layers; use `tailcut structured`, or structured in the recipe",
    "StructuredPruningModifier": "it removes channels; use `tailcut structured`, or structured in the recipe",
    "MovementPruningModifier": "it prunes by gradients while a model is trained; use pruner sparsegpt, then recover",
    "MFACPruningModifier": "it prunes by second derivatives while a model is trained; use pruner sparsegpt or alps",
    "OBSPruningModifier": "it prunes by second derivatives while a model is trained; use pruner sparsegpt or alps",
    "OBSXPruningModifier": "it prunes by second derivatives while a model is trained; use pruner sparsegpt or alps",
    "ACDCPruningModifier": "it alternates dense and sparse training; use pruner sparsegpt, then recover",
    "EpochRangeModifier": _TRAINING,
    "LearningRateFunctionModifier": _TRAINING,
    "SetLearningRateModifier": _TRAINING,
    "LearningRateModifier": _TRAINING,
    "TrainableParamsModifier": _TRAINING,
    "SetWeightDecayModifier": _TRAINING,
    "SetParamModifier": _TRAINING,
    "GradualParamModifier": _TRAINING,
}
DISTILLERS: Final = (
    "OutputDistillationModifier",
    "DistillationModifier",
    "PerLayerDistillationModifier",
    "DisableKDModifier",
    "SelfDistillationModifier",
)


def constant(read: Read) -> Part:
    """ConstantPruningModifier holds a mask while a model is trained, which every stage of tailcut does."""
    return Part(mapped=(f"{read.where}: nothing to set, every stage of tailcut keeps every zero",))


def distilling(read: Read, has_text: bool) -> Part:
    """Learning from the dense model, which needs text."""
    if read.name == "DisableKDModifier":
        return Part(unsupported=(f"{read.where}: recovery ends by its budget (recover_budget), not by epochs",))
    if not has_text:
        why = "recovery by distillation learns from text, and a recipe of theirs names none; give --recover-text"
        return Part(unsupported=(f"{read.where}: {why}",))
    losing = (
        f"{read.where}, its layers and losses: tailcut's distillation matches the dense model's output distribution"
    )
    unsupported = (losing,) if read.settings else ()
    return Part({"recover": ["distill"]}, None, (f"{read.where}: recover by distill",), unsupported)


def other(read: Read) -> Part:
    """Everything else is named, with a reason where one is known."""
    why = WHY.get(read.name, "tailcut does not know this modifier; look up what it does and choose settings by hand")
    return Part(unsupported=(f"{read.where}: {why}",))
