"""Our pruners beside the public ones on the same weights and inputs of one block: rows of numbers."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Final

import torch
from oracle_code import Oracle  # beside this script
from oracle_compare import mask_difference, output_error, tied_in_row
from oracle_inputs import Called, Dense, Replayed, Site, as_model
from torch import Tensor

from tailcut.allocation import NM, Pattern, Unstructured, parse_nm
from tailcut.compress.pruners import alps, dsnot, magnitude, ria, sparsegpt, wanda, wanda_variant
from tailcut.compress.statistics import Statistics
from tailcut.windows import Tokens

Row = dict[str, Any]
# float32 sums over a row of up to 1536 scores, which the variant's shares are made of: 1536 roundings of 6e-8
_ROW_SUM: Final = 1e-4


def pattern_of(target: str) -> Pattern:
    return parse_nm(target) if ":" in target else Unstructured(float(target))


def _walked(oracle: Oracle, function: str, sites: list[Site], target: str, **more: object) -> dict[str, Tensor]:
    """What a function that loops over a model's blocks makes of a model of one replayed block."""
    sequences, tokens = sites[0].inputs.shape[:2]
    block, pattern = Replayed(sites), pattern_of(target)
    hidden = torch.zeros(sequences, 1, 1)
    vars(oracle.module).update(
        get_loaders=lambda *_, **__: (None, None),
        prepare_calibration_input=lambda *_, **__: (hidden, hidden.clone(), None, None),
    )
    removed = (pattern.block - pattern.keep, pattern.block) if isinstance(pattern, NM) else (0, 0)
    given = {"model": "llama", "nsamples": sequences, "seed": 0, "seqlen": tokens, "sparsity_ratio": pattern.sparsity}
    options = SimpleNamespace(**given | more)
    run = getattr(oracle.module, function)
    run(options, as_model([block], tokens), None, torch.device("cpu"), prune_n=removed[0], prune_m=removed[1])
    return block.weights()


def _group(target: str, columns: int, *, per_row: bool) -> int | None:
    pattern = pattern_of(target)
    if isinstance(pattern, NM):
        return pattern.block
    return columns if per_row else None


def magnitude_rows(oracle: Oracle, sites: list[Site], target: str) -> Iterator[Row]:
    theirs = _walked(oracle, "prune_magnitude", sites, target)
    for site in sites:
        ours = magnitude.prune(site.weight, pattern_of(target), Statistics())
        yield _masks(site, ours, theirs[site.name], site.weight.abs(), _group(target, 0, per_row=False))


def wanda_rows(oracle: Oracle, sites: list[Site], target: str) -> Iterator[Row]:
    theirs = _walked(oracle, "prune_wanda", sites, target, use_variant=False)
    for site in sites:
        stats = site.statistics("norms")
        ours = wanda.prune(site.weight, pattern_of(target), stats)
        score = wanda.importance(site.weight, _present(stats.energy))
        yield _masks(site, ours, theirs[site.name], score, _group(target, site.weight.shape[1], per_row=True))


def variant_rows(oracle: Oracle, sites: list[Site], target: str) -> Iterator[Row]:
    """Ours is asked for the sparsity that theirs ended at: its search stops within 0.001 of what it was asked for.

    Theirs turns each row's share into a threshold on the row's scores and removes all that are not above it. So weights whose
    scores tie in float32 leave together, whatever their shares of the sum.
    """
    theirs = _walked(oracle, "prune_wanda", sites, target, use_variant=True)
    for site in sites:
        stats, made = site.statistics("norms"), theirs[site.name]
        reached = float((made == 0).double().mean())
        ours = wanda_variant.prune(site.weight, Unstructured(reached), stats)
        score = wanda.importance(site.weight, _present(stats.energy))
        more = {"rounding": _ROW_SUM, "tied": tied_in_row(score)}
        yield _masks(site, ours, made, wanda_variant.cumulative_share(score), None, **more) | {"reached": reached}


def ria_rows(oracle: Oracle, sites: list[Site], target: str) -> Iterator[Row]:
    off = dict.fromkeys(("reconstruction", "gptq", "reallocation", "semi_sparse_acc", "per_outneuron"), False)
    settings = off | {"prune_method": "ria", "a": ria.EXPONENT, "calib_dataset": "c4"}
    theirs = _walked(oracle, "prune_ria", sites, target, **settings)
    for site in sites:
        stats = site.statistics("norms")
        ours = ria.prune(site.weight, pattern_of(target), stats)
        score = ria.importance(site.weight, _present(stats.energy))
        yield _masks(site, ours, theirs[site.name], score, _group(target, 0, per_row=False))


def dsnot_rows(oracle: Oracle, sites: list[Site], target: str) -> Iterator[Row]:
    """Twice ours: as it is, and with the variance that theirs uses, the mean of the sequences' own."""
    settings = {
        "initial_method": "wanda", "skip_layer": "no_skip", "skip_sub_layer": "no_skip", "without_DSnoT": False,
        "max_cycle_time": dsnot.CYCLES, "update_threshold": dsnot.THRESHOLD, "pow_of_var_regrowing": 1,
        "without_same_sign": True, "get_time_overhead": False,
    }  # fmt: skip
    made = _walked(oracle, "prune_DSnoT", sites, target, **settings)
    for site in sites:
        stats, theirs, gram = site.statistics("moments"), made[site.name], site.gram()
        pattern = pattern_of(target)
        own = dsnot.prune(site.weight, pattern, stats)
        within = replace(stats, variance=site.inputs.var(1, unbiased=False).mean(0))
        alike = dsnot.prune(site.weight, pattern, within)
        start = wanda.prune(site.weight, pattern, stats)
        yield {
            "matrix": site.name,
            "weights": site.weight.numel(),
            "moved_by_theirs": _differ(theirs, start),
            "differ": _differ(own, theirs),
            "differ_with_their_variance": _differ(alike, theirs),
            "ours": _shift(own, site),
            "theirs": _shift(theirs, site),
            "ours_zeros": _zeros(own),
            "theirs_zeros": _zeros(theirs),
            "ours_error": output_error(own, site.weight, gram),
            "theirs_error": output_error(theirs, site.weight, gram),
        }


def _shift(pruned: Tensor, site: Site) -> float:
    """Mean over outputs of |e|, what DSnoT minimises: the change of an output summed over a sequence."""
    mean = site.inputs.double().sum(1).mean(0)
    return float(((pruned - site.weight).double() @ mean).abs().mean())


def sparsegpt_rows(oracle: Oracle, sites: list[Site], target: str) -> Iterator[Row]:
    pattern = pattern_of(target)
    removed = (pattern.block - pattern.keep, pattern.block) if isinstance(pattern, NM) else (0, 0)
    for site in sites:
        linear = site.linear()
        theirs = oracle.module.SparseGPT(linear)
        for sequence in site.inputs:
            theirs.add_batch(sequence[None], None)
        theirs.fasterprune(pattern.sparsity, prunen=removed[0], prunem=removed[1])
        ours = sparsegpt.prune(site.weight, pattern, site.statistics("hessian"))
        yield _errors(site, ours, linear.weight.data)


def alps_rows(oracle: Oracle, sites: list[Site], target: str) -> Iterator[Row]:
    pattern = pattern_of(target)
    kept = (pattern.keep, pattern.block) if isinstance(pattern, NM) else (0, 0)
    for site in sites:
        linear = site.linear()
        theirs = oracle.module.ALPS_prune(linear, *site.inputs.shape[:2])
        for sequence in site.inputs:
            theirs.add_batch(sequence[None], linear(sequence[None]))
        theirs.ALPS_admm(sp=pattern.sparsity, nm_n=kept[0], nm_m=kept[1])
        ours = alps.prune(site.weight, pattern, site.statistics("hessian"))
        yield _errors(site, ours, linear.weight.data)


def wanda_run(oracle: Oracle, dense: Dense, windows: Tokens, sparsity: float) -> dict[str, Tensor]:
    """Their whole loop over the real blocks of `dense`, which it prunes: module name -> weight."""
    hidden = dense.opened(windows)
    vars(oracle.module).update(
        get_loaders=lambda *_, **__: (None, None),
        prepare_calibration_input=lambda *_, **__: (hidden, torch.zeros_like(hidden), None, None),
    )
    options = SimpleNamespace(
        nsamples=len(windows), seed=0, seqlen=windows.shape[1], sparsity_ratio=sparsity, use_variant=False
    )
    model = as_model([Called(dense, index) for index in range(len(dense.blocks))], windows.shape[1])
    oracle.module.prune_wanda(options, model, None, torch.device("cpu"))
    return {
        f"model.layers.{block}.{name}": linear.weight.data
        for block in range(len(dense.blocks))
        for name, linear in dense.linears(block).items()
    }


def _errors(site: Site, ours: Tensor, theirs: Tensor) -> Row:
    gram = site.gram()
    return {
        "matrix": site.name,
        "weights": site.weight.numel(),
        "differ": _differ(ours, theirs),
        "ours": output_error(ours, site.weight, gram),
        "theirs": output_error(theirs, site.weight, gram),
        "ours_zeros": _zeros(ours),
        "theirs_zeros": _zeros(theirs),
    }


def _masks(
    site: Site,
    ours: Tensor,
    theirs: Tensor,
    score: Tensor,
    group: int | None,
    **more: Any,  # noqa: ANN401  (as `mask_difference` takes it)
) -> Row:
    zeros = {"ours_zeros": _zeros(ours), "theirs_zeros": _zeros(theirs)}
    return {"matrix": site.name} | mask_difference(ours == 0, theirs == 0, score, group, **more) | zeros


def _differ(a: Tensor, b: Tensor) -> int:
    return int(((a == 0) != (b == 0)).sum())


def _zeros(pruned: Tensor) -> int:
    return int((pruned == 0).sum())


def _present(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise ValueError("the statistics lack the energy")
    return tensor


MASKS: Final[Mapping[str, Callable[[Oracle, list[Site], str], Iterator[Row]]]] = {
    "magnitude": magnitude_rows,
    "wanda": wanda_rows,
    "wanda-variant": variant_rows,
    "ria": ria_rows,
    "dsnot": dsnot_rows,
    "sparsegpt": sparsegpt_rows,
    "alps": alps_rows,
}
TARGETS: Final[Mapping[str, tuple[str, ...]]] = {
    "magnitude": ("0.5", "2:4"),
    "wanda": ("0.5", "0.7", "2:4", "4:8"),
    "wanda-variant": ("0.5", "0.7"),
    "ria": ("0.5", "2:4"),
    "dsnot": ("0.5", "2:4"),
    "sparsegpt": ("0.5", "2:4"),
    "alps": ("0.7", "2:4"),
}
