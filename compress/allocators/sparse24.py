"""2:4 here, dense there: which matrices become 2:4, by score, for a global sparsity of at most one half.

The highest scores (metric, "prune more" first) become 2:4 while the budget lasts; what is left when the next one does
not fit goes to those of the others whose sizes together come nearest to it, higher scores first among equals. The
budget is not passed, and no further matrix fits. Matrices whose inputs are not whole groups stay dense.

Granularity: block takes or leaves a block's matrices together (score: their mean); matrix each by itself; mixed each
by the sum of its own and its block's place on the linear map, which is our reading of the paper's word.
A pattern in the budget replaces 2:4, such as 4:8; `tau` plays no part: only the order of scores counts.
"""

from math import gcd
from typing import Final

from tailcut.allocation import NM, Allocation, Budget, Dense, LayerPlan, LayerScore, LayerScores
from tailcut.compress.allocators import Granularity, Settings
from tailcut.compress.allocators._budget import Vector, ordered, origin
from tailcut.compress.allocators._values import block_mean_of_each, linear_map, members, metric_values
from tailcut.errors import InputError

STEPS: Final = True
METRICS: Final = ("alpha_peak",)
SETTINGS: Final = ("metric", "granularity")
# sizes are told apart to this fraction of what is left to fill, or exactly where that is coarser
_FINE: Final = 1 << 16


def allocate(scores: LayerScores, budget: Budget, settings: Settings) -> Allocation:
    """2:4 in the matrices that can spare it most, nothing in the others: for sparsities up to one half on GPUs that
    take 2:4. Needs one value a matrix, of any metric, and looks only at their order. Ours. Default metric:
    alpha_peak; granularity: block (matrix and mixed are the others). --pattern replaces 2:4.
    """
    layers, pattern = ordered(scores), budget.pattern or NM(2, 4)
    metric, granularity = (settings.metric or METRICS[0]).replace("-", "_"), settings.granularity or "block"
    fitting = [index for index, layer in enumerate(layers) if layer.shape[1] % pattern.block == 0]
    capacity = _capacity(layers, fitting, pattern, budget)
    values = score_by(layers, metric_values(layers, metric), granularity)
    units = _units(layers, fitting, values, granularity)
    sizes = [sum(layers[index].parameters for index in unit) for unit in units]
    cut = {layers[index].name for place in choose(sizes, capacity) for index in units[place]}
    plans = {layer.name: LayerPlan(pattern if layer.name in cut else Dense()) for layer in scores.layers}
    said = f"{pattern} in {len(cut)} of {len(layers)} matrices"
    unfit = len(layers) - len(fitting)
    if unfit:
        said += f"; {unfit} stay dense because their inputs are not a multiple of {pattern.block}"
    facts = {"metric": metric, "granularity": granularity, "patterns": said}
    return Allocation(plans, origin("sparse24", scores, budget, **facts))


def score_by(layers: tuple[LayerScore, ...], values: Vector, granularity: Granularity) -> Vector:
    """Score of each matrix [layers] at this granularity: its block's mean, its own, or both on one scale."""
    if granularity == "matrix":
        return values
    means = block_mean_of_each(layers, values)
    return means if granularity == "block" else linear_map(means, 1.0) + linear_map(values, 1.0)


def choose(sizes: list[int], capacity: int) -> list[int]:
    """Places in `sizes` (best score first) to take: the longest beginning that fits, then the best filling."""
    taken, left = 0, capacity
    while taken < len(sizes) and sizes[taken] <= left:
        left -= sizes[taken]
        taken += 1
    rest = [place for place in range(taken, len(sizes)) if sizes[place] <= left]
    return [*range(taken), *(rest[place] for place in _fill([sizes[place] for place in rest], left))]


def _fill(sizes: list[int], capacity: int) -> list[int]:
    """The subset whose sum is largest without passing `capacity`; of several, the first in order of places.

    Bit k of an integer says whether the sizes from a place on can add up to k steps.
    """
    if not sizes:
        return []
    step = max(gcd(*sizes), -(-capacity // _FINE))
    weights, limit = [-(-size // step) for size in sizes], capacity // step
    reach, mask = [1], (1 << (limit + 1)) - 1
    for weight in reversed(weights):
        reach.append((reach[-1] | reach[-1] << weight) & mask)
    reach.reverse()
    wanted, found = reach[0].bit_length() - 1, []
    for place, weight in enumerate(weights):
        if weight <= wanted and reach[place + 1] >> (wanted - weight) & 1:
            found.append(place)
            wanted -= weight
    return found


def _capacity(layers: tuple[LayerScore, ...], fitting: list[int], pattern: NM, budget: Budget) -> int:
    """How many parameters may carry the pattern; InputError if the budget asks for more than there are."""
    if pattern.sparsity > budget.cap:
        raise InputError(f"{pattern} removes {pattern.sparsity:g} of a matrix, the cap allows {budget.cap:g}")
    total, able = sum(layer.parameters for layer in layers), sum(layers[index].parameters for index in fitting)
    most = pattern.sparsity * able / total
    if budget.sparsity > most + 1e-12:
        raise InputError(
            f"a sparsity of {budget.sparsity:g} is more than {pattern} can give here ({most:g} with {pattern} in the "
            f"{len(fitting)} of {len(layers)} matrices whose inputs are a multiple of {pattern.block}); "
            "ask for less, or use --allocator nm-mixed"
        )
    return min(able, int(budget.sparsity * total / pattern.sparsity + 1e-6)) if pattern.sparsity else 0


def _units(
    layers: tuple[LayerScore, ...], fitting: list[int], values: Vector, granularity: Granularity
) -> list[list[int]]:
    """What is taken or left together, best score first; equal scores in order of block and name."""
    if granularity == "block":
        able = set(fitting)
        inside = [[index for index in indices if index in able] for indices in members(layers).values()]
        units = [unit for unit in inside if unit]
    else:
        units = [[index] for index in fitting]
    return sorted(units, key=lambda unit: -values[unit[0]])
