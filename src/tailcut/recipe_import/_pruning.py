"""Pruning modifiers: one-shot ones (SparseGPT, Wanda) and those that prune while a model is trained (magnitude)."""

from collections.abc import Sequence
from typing import Any, Final

from tailcut.allocation import NM, Dense, Pattern, Unstructured
from tailcut.errors import InputError
from tailcut.recipe_import._parts import Matrix, Part, number, unknown
from tailcut.recipe_import._reading import Read
from tailcut.recipe_import._targets import ignored, units

ONE_SHOT: Final = {"SparseGPTModifier": "sparsegpt", "WandaPruningModifier": "wanda"}
GRADUAL: Final = (
    "MagnitudePruningModifier",
    "GMPruningModifier",
    "LegacyGMPruningModifier",
    "GlobalMagnitudePruningModifier",
)
_OURS: Final = {"block_size": 128, "dampening_frac": 0.01, "preserve_sparsity_mask": False, "owl_m": 5}
_WHY: Final = {
    "block_size": "tailcut's SparseGPT sweeps blocks of 128 columns; leave it at that",
    "dampening_frac": "tailcut's SparseGPT adds 0.01 of the mean diagonal, and more only where that fails",
    "preserve_sparsity_mask": "zeros that are there already are not kept on purpose; cut the dense model in one go",
    "owl_m": "a recipe measures outliers at 5 times the mean; use `tailcut measure --outlier` and `tailcut allocate`",
}
_READ: Final = {
    *_OURS,
    "sparsity",
    "mask_structure",
    "sparsity_profile",
    "owl_lmbda",
    "sequential_update",
    "targets",
    "ignore",
}
_SCHEDULE: Final = (
    "start", "end", "update", "update_frequency", "start_epoch", "end_epoch", "init_sparsity", "update_scheduler",
    "scheduler_args", "leave_enabled", "inter_func", "mask_type", "score_type", "log_types",
)  # fmt: skip


def one_shot(read: Read, matrices: Sequence[Matrix]) -> Part:
    """SparseGPTModifier and WandaPruningModifier."""
    settings: dict[str, Any] = {"pruner": ONE_SHOT[read.name]}
    wrong = [
        f"{read.where}, {key} {read.settings[key]}: {_WHY[key]}"
        for key, ours in _OURS.items()
        if read.settings.get(key) not in (None, ours)
    ]
    if read.settings.get("sequential_update") is False:
        wrong.append(
            f"{read.where}, sequential_update false: tailcut always cuts a block on what the cut blocks before it give"
        )
    if read.settings.get("quantize"):
        wrong.append(f"{read.where}, quantize: state bits by a quantisation modifier, or set `bits` by hand")
    wrong += unknown(read, {*_READ, "quantize", "offload_hessians", "start", "end"})
    profile = read.settings.get("sparsity_profile")
    if profile is not None:
        return _by_owl(read, settings, wrong, profile)
    plan = _plan(read, _patterns(read), matrices)
    return Part(settings, plan, (f"{read.where}: pruner {settings['pruner']}",), tuple(wrong))


def gradual(read: Read, matrices: Sequence[Matrix]) -> Part:
    """Magnitude pruning over epochs -> one cut at its final sparsity."""
    final = number(read, "final_sparsity")
    if final is None:
        raise InputError(f"{read.where}: it states no final_sparsity")
    settings: dict[str, Any] = {"pruner": "magnitude"}
    everywhere = read.name == "GlobalMagnitudePruningModifier" or read.settings.get("apply_globally") is True
    if everywhere:
        settings["allocator"] = "global"
    schedule = [key for key in _SCHEDULE if key in read.settings]
    wrong = unknown(
        read, {*_SCHEDULE, "final_sparsity", "params", "targets", "mask_structure", "apply_globally", "global_sparsity"}
    )
    if schedule:
        gradually = (
            f"{read.where}, {', '.join(schedule)}: it prunes step by step while a model is trained, tailcut cuts once, to "
            "the final sparsity; set recover and recover_text for quality afterwards"
        )
        wrong = (gradually, *wrong)
    params = read.settings.get("params")
    aimed = Read(read.stage, read.name, read.settings | {"targets": read.settings.get("targets", params)})
    if aimed.settings["targets"] in ("__ALL_PRUNABLE__", ["__ALL_PRUNABLE__"]):
        aimed.settings["targets"] = None
    pattern = _pattern(aimed, final)
    return Part(settings, _plan(aimed, [pattern], matrices), (f"{read.where}: pruner magnitude at {pattern}",), wrong)


def _by_owl(read: Read, settings: dict[str, Any], wrong: list[str], profile: object) -> Part:
    sparsity = number(read, "sparsity")
    if str(profile).lower() != "owl" or sparsity is None:
        raise InputError(
            f"{read.where}: the profile {str(profile)[:40]!r} with sparsity {sparsity} is not OWL at one sparsity"
        )
    settings |= {"allocator": "owl", "sparsity": sparsity, "compat": True}
    width = number(read, "owl_lmbda")
    if width is not None:
        settings["spread"] = width
    if read.settings.get("targets") not in (None, "Linear", ["Linear"]) or read.settings.get("ignore") not in (
        None,
        [],
    ):
        wrong.append(f"{read.where}, targets and ignore: OWL here shares sparsity out over all decoder blocks")
    if str(read.settings.get("mask_structure", "0:0")) != "0:0":
        wrong.append(
            f"{read.where}, mask_structure beside OWL: an N:M mask fixes the sparsity, so OWL has no say; use nm-mixed"
        )
    return Part(
        settings, None, (f"{read.where}: pruner {settings['pruner']}, allocator owl at {sparsity:g}",), tuple(wrong)
    )


def _patterns(read: Read) -> list[Pattern]:
    """One pattern for all targets, or one for each."""
    sparsity = read.settings.get("sparsity", 0.0)
    values = sparsity if isinstance(sparsity, list) else [sparsity]
    if not values or any(isinstance(one, bool) or not isinstance(one, int | float) for one in values):
        raise InputError(f"{read.where}, sparsity: expected a number or a list of numbers, got {str(sparsity)[:60]!r}")
    return [_pattern(read, float(one)) for one in values]


def _pattern(read: Read, sparsity: float) -> Pattern:
    """Theirs counts what is removed: "3:4" keeps 1 of 4."""
    mask = str(read.settings.get("mask_structure", "0:0"))
    removed, colon, block = mask.partition(":")
    if mask == "unstructured" or (colon and removed == "0"):
        if not 0.0 <= sparsity < 1.0:
            raise InputError(f"{read.where}, sparsity: {sparsity:g} is not in [0, 1)")
        return Unstructured(sparsity)
    if not (removed.isdigit() and block.isdigit() and len(block) < 4 and 0 < int(removed) < int(block)):
        raise InputError(f"{read.where}, mask_structure: {mask[:40]!r} is not N:M with N removed of M, such as 2:4")
    return NM(int(block) - int(removed), int(block))


def _plan(read: Read, patterns: list[Pattern], matrices: Sequence[Matrix]) -> dict[str, Pattern]:
    aims = units(read, matrices)
    if not aims:
        raise InputError(f"{read.where}, targets: none of them is a matrix or a block of this model")
    if len(patterns) > 1 and len(patterns) != len(aims):
        raise InputError(
            f"{read.where}: {len(patterns)} sparsities for {len(aims)} targets of this model ({aims[0][0]} … {aims[-1][0]})"
        )
    left = ignored(read, matrices)
    plan: dict[str, Pattern] = {matrix.name: Dense() for matrix in matrices}
    for index, (_, names) in enumerate(aims):
        pattern = patterns[index if len(patterns) > 1 else 0]
        plan |= {name: pattern for name in names if name not in left}
    return plan
