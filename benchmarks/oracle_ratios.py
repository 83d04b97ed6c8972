"""Our metrics and allocators beside the public ones on the same weights and inputs: numbers a matrix or a block."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import torch
from oracle_code import Oracle  # beside this script
from oracle_compare import vector_difference
from oracle_inputs import Dense, Replayed, Site, as_model
from torch.nn.utils import prune as torch_prune

from tailcut.allocation import Allocation, Budget, LayerScore, LayerScores
from tailcut.compress.allocators import Granularity, Settings, alpha, dlp, er, lamp, owl
from tailcut.compress.metrics import Matrix, Options, alpha_mid, alpha_peak, alpha_peak_compat, magnitude
from tailcut.compress.metrics import alpha as full_search
from tailcut.compress.metrics import dlp as dlp_score
from tailcut.compress.metrics import owl as owl_score
from tailcut.compress.spectra import gram_eigenvalues, significant

Row = dict[str, Any]
SPARSITIES: Final = (0.5, 0.7)
# our metric -> the rule of theirs that it answers to
_RULES: Final = {
    "alpha_mid": ("xmin_mid", alpha_mid),
    "alpha_peak_compat": ("xmin_peak", alpha_peak_compat),
    "alpha_peak": ("xmin_peak", alpha_peak),
    "alpha": (None, full_search),
}


def alpha_rows(oracle: Oracle, dense: Dense, block: int) -> list[Row]:
    """Every estimator on our eigenvalues, as users get it, and on theirs, which leaves the estimator alone."""
    linears = dense.linears(block)
    spectra = [significant(gram_eigenvalues(linear.weight.detach().numpy())) for linear in linears.values()]
    rows = []
    found: dict[str | None, Any] = {}
    for name, (rule, metric) in _RULES.items():
        if rule not in found:
            found[rule] = oracle.module.net_esd_estimator(dense.blocks[block], fix_fingers=rule)
        theirs = found[rule]
        own = [np.sort(eigenvalues.astype(np.float64)) for eigenvalues in theirs["eigs"]]
        rows += [
            {
                "metric": name,
                "matrix": matrix,
                "shape": [int(size) for size in linears[matrix].weight.shape],
                "ours": metric.fit(spectra[place]).alpha,
                "ours_on_their_eigenvalues": metric.fit(own[place]).alpha,
                "theirs": theirs["alpha"][place],
            }
            for place, matrix in enumerate(linears)
        ]
    return rows


def alpha_ratio_rows(oracle: Oracle, dense: Dense, values: Sequence[Row]) -> list[Row]:
    """`ww_sparsity` on what their estimator gave, against our allocator on the same numbers, and on our own."""
    rows = []
    for name in ("alpha_mid", "alpha_peak_compat"):
        mine = [row for row in values if row["metric"] == name]
        theirs = [row["theirs"] for row in mine]
        fed, own = (_scores(mine, name, key) for key in ("theirs", "ours"))
        for sparsity, tau in ((0.5, 0.1), (0.7, 0.3), (0.7, 0.2), (0.8, 0.2)):
            for mapping, granularity in _MAPPINGS.items():
                wanted = _their_ratios(oracle, dense, theirs, sparsity, tau, mapping)
                settings, budget = Settings(metric=name, tau=tau, granularity=granularity), Budget(sparsity, cap=1.0)
                same, ours = (levels(alpha.allocate(scores, budget, settings)) for scores in (fed, own))
                row: Row = {"metric": name, "sparsity": sparsity, "tau": tau, "granularity": granularity}
                row |= {"above_one": sum(ratio > 1.0 for ratio in wanted), "theirs": wanted, "ours": ours}
                row["difference_on_their_metric"] = vector_difference(same, wanted)
                rows.append(row | {"difference": vector_difference(ours, wanted)})
    return rows


_MAPPINGS: Final[Mapping[str, Granularity]] = {"block_wise": "block", "layer_wise": "matrix"}


def _scores(rows: Sequence[Row], metric: str, key: str) -> LayerScores:
    layers = [
        LayerScore(
            f"b{row['block']}.{row['matrix']}", row["block"], (row["shape"][0], row["shape"][1]), {metric: row[key]}
        )
        for row in rows
    ]
    return LayerScores("oracles", tuple(layers), sum(layer.parameters for layer in layers))


def _their_ratios(
    oracle: Oracle, dense: Dense, values: Sequence[float], sparsity: float, tau: float, mapping: str
) -> list[float]:
    """`ww_sparsity` reads the metric from a file, one value a matrix."""
    with TemporaryDirectory() as cache:
        np.save(Path(cache) / "metric.npy", np.asarray(values))
        options = SimpleNamespace(
            model="llama", ww_metric_cache=cache, ww_metric="metric", mapping_type=mapping, sparsity_ratio=sparsity
        )
        model = as_model(list(dense.blocks), 1)
        found: list[float] = oracle.module.ww_sparsity(options, model, torch.device("cpu"), s1=1 - tau, s2=1 + tau)
    return found


class _Finished(Exception):  # noqa: N818  (not an error: the ratios are known, what would follow is the pruning)
    """Ends an oracle that would go on to prune."""


def owl_rows(oracle: Oracle, blocks: Sequence[list[Site]]) -> list[Row]:
    """The outlier ratios and densities that `prune_wanda_outlier` prints before it asks for the text again, to prune."""
    rows = []
    for sparsity, spread in ((0.5, 0.04), (0.7, 0.08)):
        options, model = _fed(oracle, blocks, sparsity)
        vars(options).update(Hyper_m=5, Lamda=spread)
        with suppress(_Finished):
            oracle.module.prune_wanda_outlier(options, model, None, torch.device("cpu"))
        scores = [float(value) for value in oracle.told("before adjustment")]
        wanted = [1.0 - float(value) for value in oracle.told("after adjustment")]
        rows.append(_depth_row("owl", blocks, wanted, sparsity, spread, scores))
    return rows


def dlp_rows(oracle: Oracle, blocks: Sequence[list[Site]]) -> list[Row]:
    """Their block scores are neither returned nor printed: only ratios are compared."""
    rows = []
    for sparsity, spread in ((0.5, 0.04), (0.7, 0.15)):
        options, model = _fed(oracle, blocks, sparsity)
        options.alpha = spread
        found = oracle.module.get_dlp_ratios(options, model, None, torch.device("cpu"))
        rows.append(_depth_row("dlp", blocks, [1.0 - float(value) for value in found], sparsity, spread, None))
    return rows


def _fed(oracle: Oracle, blocks: Sequence[list[Site]], sparsity: float) -> tuple[SimpleNamespace, Any]:
    """Options and a model of replayed blocks; the oracle's second request for calibration text ends it."""
    sequences, tokens = blocks[0][0].inputs.shape[:2]
    hidden, requests = torch.zeros(sequences, 1, 1), iter([(None, None)])

    def loaders(*_: object, **__: object) -> tuple[None, None]:
        try:
            return next(requests)
        except StopIteration:
            raise _Finished from None

    vars(oracle.module).update(
        get_loaders=loaders, prepare_calibration_input=lambda *_, **__: (hidden, hidden.clone(), None, None)
    )
    options = SimpleNamespace(model="llama", nsamples=sequences, seed=0, seqlen=tokens, sparsity_ratio=sparsity)
    return options, as_model([Replayed(sites) for sites in blocks], tokens)


def _depth_row(
    name: str,
    blocks: Sequence[list[Site]],
    wanted: list[float],
    sparsity: float,
    spread: float,
    scores: list[float] | None,
) -> Row:
    allocator, metric = {"owl": (owl, owl_score), "dlp": (dlp, dlp_score)}[name]
    values = [metric.score_block([_matrix(site) for site in sites], Options()).value for sites in blocks]
    layers = [
        LayerScore(f"b{block}.{site.name}", block, _shape(site), {name: value})
        for block, (sites, value) in enumerate(zip(blocks, values, strict=True))
        for site in sites
    ]
    measured, budget = LayerScores("oracles", tuple(layers), 1), Budget(sparsity, cap=1.0)
    starts = np.cumsum([0, *(len(sites) for sites in blocks[:-1])])
    made = {
        compat: [
            levels(allocator.allocate(measured, budget, Settings(spread=spread, compat=compat)))[at] for at in starts
        ]
        for compat in (True, False)
    }
    row: Row = {"sparsity": sparsity, "spread": spread, "theirs": wanted, "ours": made[True]}
    row["difference"] = vector_difference(made[True], wanted)
    row["difference_without_compat"] = vector_difference(made[False], wanted)
    if scores is not None:
        row |= {"our_scores": values, "their_scores": scores, "difference_of_scores": vector_difference(values, scores)}
    return row


def _shape(site: Site) -> tuple[int, int]:
    return int(site.weight.shape[0]), int(site.weight.shape[1])


def _matrix(site: Site) -> Matrix:
    energy = site.statistics("norms").energy
    assert energy is not None
    return Matrix(_shape(site), weight=site.weight.numpy(), energy=energy.double().numpy())


def lamp_rows(oracle: Oracle, dense: Dense, every: int) -> list[Row]:
    """Ours from 1025 quantiles of |W|, as users get it, and from every weight by the same formula in float64."""
    blocks = _marked(dense, every)
    linears = [module for module in blocks.modules() if isinstance(module, torch.nn.Linear)]
    weights = [linear.weight.data for linear in linears]
    exact = [lamp.lamp_scores(np.sort(np.square(weight.double().numpy()), axis=None)) for weight in weights]
    everything = np.concatenate(exact)
    measured = LayerScores("oracles", tuple(_of_magnitudes(n, weight) for n, weight in enumerate(weights)), 1)
    rows = []
    for sparsity in SPARSITIES:
        wanted = [float(amount) for amount in oracle.module._compute_lamp_amounts(blocks, sparsity)]
        ours = levels(lamp.allocate(measured, Budget(sparsity, cap=1.0), Settings()))
        gone = everything.size - round(everything.size * (1.0 - sparsity))
        threshold = np.partition(everything, gone)[gone]
        full = [float((scores < threshold).mean()) for scores in exact]
        row: Row = {"sparsity": sparsity, "theirs": wanted, "ours": ours, "ours_from_every_weight": full}
        row["difference_from_every_weight"] = vector_difference(full, wanted)
        rows.append(row | {"difference": vector_difference(ours, wanted)})
    return rows


def erk_rows(oracle: Oracle, dense: Dense) -> list[Row]:
    blocks, rows = _marked(dense, 1), []
    weights = [module.weight for module in blocks.modules() if isinstance(module, torch.nn.Linear)]
    layers = [LayerScore(f"m{n:03}", 0, (len(w), w.shape[1]), {}) for n, w in enumerate(weights)]
    for sparsity in SPARSITIES:
        wanted = [float(amount) for amount in oracle.module._compute_erk_amounts(blocks, sparsity)]
        ours = levels(er.allocate(LayerScores("oracles", tuple(layers), 1), Budget(sparsity, cap=1.0), Settings()))
        row: Row = {"sparsity": sparsity, "theirs": wanted, "ours": ours}
        rows.append(row | {"difference": vector_difference(ours, wanted)})
    return rows


def _marked(dense: Dense, every: int) -> torch.nn.ModuleList:
    """Every so-many-th block, with the masks of ones that these functions count."""
    chosen = torch.nn.ModuleList(list(dense.blocks)[::every])
    for module in chosen.modules():
        if isinstance(module, torch.nn.Linear):
            torch_prune.identity(module, name="weight")  # type: ignore[no-untyped-call]
    return chosen


def _of_magnitudes(number: int, weight: torch.Tensor) -> LayerScore:
    shape = int(weight.shape[0]), int(weight.shape[1])
    found = magnitude.score(Matrix(shape, weight=weight.numpy()))
    values = {"magnitude": found.value} | {f"magnitude.{key}": value for key, value in found.details.items()}
    return LayerScore(f"m{number:03}", number, shape, values, found.curves)


def levels(allocation: Allocation) -> list[float]:
    return [plan.pattern.sparsity for plan in allocation.plans.values()]
