"""N:M patterns of one group size M that differ from block to block: lighter tails keep fewer of M.

AlphaPruning reports such mixtures (table 18: averages of 4:8, 3:8 and 2:8) without publishing how they are made,
and OWL's own variant rounds without repairing the budget. Here: the target of weights removed of M follows the metric
by AlphaPruning's linear map within [1, M - 1] ([0, M - 1] where layers may stay dense), is rounded down, and the
largest remainders remove one more (Hamilton's apportionment, weighted by parameters), so that the mean is met to
half of the smallest unit, a unit being one weight of M in one block (granularity block) or matrix (matrix, mixed).

Group size: the pattern's, or `group`, or 8. Any metric will do: `owl` gives OWL's mixture with an exact budget.
Of these patterns hardware takes 2:4 and what implies it (`NM.implies`): 1:4, 1:8 and 2:8 too, but neither 4:8 nor
3:8. How many matrices that is stands in the provenance under `two_four`.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from tailcut.allocation import NM, Allocation, Budget, Dense, LayerPlan, LayerScore, LayerScores
from tailcut.compress.allocators import Settings
from tailcut.compress.allocators._budget import ordered, origin
from tailcut.compress.allocators._steps import apportion, share_out
from tailcut.compress.allocators._values import metric_values
from tailcut.compress.allocators.alpha import default_tau
from tailcut.errors import InputError

STEPS: Final = True
METRICS: Final = ("alpha_peak",)
SETTINGS: Final = ("metric", "tau", "granularity", "group", "allow_dense")
_GROUP: Final = 8
_TWO_FOUR: Final = NM(2, 4)


def allocate(scores: LayerScores, budget: Budget, settings: Settings) -> Allocation:
    """N:M patterns of one M, by default 8, that differ: matrices with lighter tails keep fewer of M, and the mean is
    met to the nearest unit (Hamilton's rounding). Needs one value a matrix, of any metric. AlphaPruning's table 18;
    the rounding is ours. Default metric: alpha_peak; tau and granularity as for alpha; group: M; allow_dense: some
    layers may lose nothing. Say how much with --sparsity or with the mean pattern, such as --pattern 4:8.
    """
    layers, group = ordered(scores), group_of(budget, settings)
    require_groups(layers, group)
    bounds = bounds_of(budget, settings, group)
    tau = default_tau(budget.sparsity) if settings.tau is None else settings.tau
    metric, granularity = (settings.metric or METRICS[0]).replace("-", "_"), settings.granularity or "block"
    mean = budget.sparsity * group
    shares = share_out(layers, metric_values(layers, metric), granularity, tau, mean, bounds)
    levels = range(int(bounds[0]), int(bounds[1]) + 1)
    chosen = apportion(shares, levels, mean * float(shares.sizes.sum()), nearest=True)
    removed = {layers[i].name: levels[n] for unit, n in zip(shares.units, chosen, strict=True) for i in unit}
    plans = {layer.name: LayerPlan(pattern_of(removed[layer.name], group)) for layer in scores.layers}
    facts = {"metric": metric, "tau": repr(tau), "granularity": granularity, "group": str(group)}
    facts |= summary([plans[layer.name] for layer in layers])
    return Allocation(plans, origin("nm-mixed", scores, budget, **facts))


def group_of(budget: Budget, settings: Settings) -> int:
    """M, of one pattern or setting; InputError where they or the sparsity disagree."""
    if budget.pattern is None:
        return settings.group or _GROUP
    if abs(budget.pattern.sparsity - budget.sparsity) > 1e-9:
        raise InputError(
            f"the mean pattern {budget.pattern} has sparsity {budget.pattern.sparsity:g}, the budget says "
            f"{budget.sparsity:g}; give one of them (with --group {budget.pattern.block} beside --sparsity)"
        )
    if settings.group not in (None, budget.pattern.block):
        raise InputError(f"the mean pattern {budget.pattern} and a group of {settings.group} do not agree; give one")
    return budget.pattern.block


def require_groups(layers: Sequence[LayerScore], group: int) -> None:
    """InputError where a matrix's inputs are not whole groups."""
    for layer in layers:
        if layer.shape[1] % group:
            raise InputError(
                f"{layer.name}: {layer.shape[1]} inputs are not a multiple of {group}, which N:{group} needs; "
                "use --group 4, or --allocator sparse24, which leaves such matrices dense"
            )


def bounds_of(budget: Budget, settings: Settings, group: int) -> tuple[float, float]:
    """Fewest and most weights removed of M; InputError unless the mean lies between."""
    low, high = 0 if settings.allow_dense else 1, min(group - 1, int(budget.cap * group + 1e-9))
    mean = budget.sparsity * group
    if not low - 1e-9 <= mean <= high + 1e-9:
        raise InputError(
            f"a mean sparsity of {budget.sparsity:g} cannot be made of N:{group} patterns between "
            f"{low / group:g} and {high / group:g} (cap {budget.cap:g}); choose one in that range, another group, "
            "or --allow-dense for less"
        )
    return float(low), float(high)


def pattern_of(removed: int, group: int) -> NM | Dense:
    """What is left when `removed` of every `group` weights are."""
    return NM(group - removed, group) if removed else Dense()


def summary(plans: Sequence[LayerPlan]) -> dict[str, str]:
    """How often each pattern occurs, and how many matrices sparse tensor cores take."""
    counts = Counter(str(plan.pattern) for plan in plans)
    patterns = ", ".join(f"{name} x {counts[name]}" for name in sorted(counts))
    fit = sum(isinstance(plan.pattern, NM) and plan.pattern.implies(_TWO_FOUR) for plan in plans)
    return {"patterns": patterns, "two_four": f"{fit} of {len(plans)} matrices obey 2:4"}
