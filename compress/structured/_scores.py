"""Importance of every unit of a model: one [units] tensor for each group of each block."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from tailcut.compress.discovery import Linear
from tailcut.compress.inputs import DenseInputs
from tailcut.compress.resident import Weights
from tailcut.compress.structured import Importance, Member, Settings
from tailcut.compress.structured._gradients import Slopes, backward
from tailcut.compress.structured._groups import Group, Kind, Part
from tailcut.errors import InputError
from tailcut.progress import Reporter
from tailcut.windows import Tokens

Groups = Sequence[Mapping[Kind, Group]]  # of each block
Scores = dict[str, Tensor]  # "3.mlp" -> float32 [units] on the CPU


def key(index: int, kind: Kind) -> str:
    """Name of one group's scores."""
    return f"{index}.{kind}"


def score_units(
    weights: Weights,
    groups: Groups,
    importance: Importance,
    settings: Settings,
    tokens: Tokens | None,
    linears: Sequence[Linear],
    report: Reporter,
) -> Scores:
    """Scores of every group; `tokens` are windows of text, None only where the importance reads none."""
    blocks, found = len(groups), Scores()

    def take(index: int, block: nn.Module, more: Callable[[str, Part], Member]) -> None:
        for kind, group in groups[index].items():
            members = [more(part.linear, part) for part in group.parts]
            with torch.inference_mode():
                values = importance.score(members, settings)
            found[key(index, kind)] = _checked(f"block {index}: {kind}", values, group.units)

    if importance.NEEDS == "gradients":
        for index, block, slopes in backward(weights, _given(tokens), _teller(report, blocks)):
            take(index, block, lambda name, part, b=block, s=slopes: member(b, part, s[name]))  # type: ignore[misc]
        return found
    inputs = DenseInputs(weights, _given(tokens), 0, 0) if importance.NEEDS == "inputs" else None
    for index in range(blocks):
        report("importance", index, blocks, f"block {index}")
        mine = [linear for linear in linears if linear.block == index]
        energy = inputs.advance(index, mine).energy if inputs is not None else {}
        prefix = weights.skeleton.block_prefix(index)
        by_name = {name.removeprefix(prefix): torch.from_numpy(values).float() for name, values in energy.items()}
        with weights.block(index) as block:
            take(index, block, lambda name, part, b=block, e=by_name: member(b, part, None, e.get(name)))  # type: ignore[misc]
    report("importance", blocks, blocks)
    return found


def member(block: nn.Module, part: Part, slopes: Slopes | None = None, energy: Tensor | None = None) -> Member:
    """One matrix's part in a group, channel by channel."""
    module = block.get_submodule(part.linear)
    stored = not isinstance(module, nn.Linear)  # Conv1D: [in, out]

    def lay(matrix: Tensor) -> Tensor:
        turned = matrix.T if stored != (part.axis == "columns") else matrix  # [units' axis, other axis]
        return turned[part.span].reshape(part.units, part.channels, -1).float()

    weight = lay(module.get_parameter("weight").detach())
    of_inputs = None
    if energy is not None:
        spread = energy.to(weight.device)
        if part.axis == "columns":
            of_inputs = spread[part.span].view(weight.shape[0], part.channels, 1)
        else:
            of_inputs = spread.view(1, 1, -1)
    if slopes is None:
        return Member(weight, energy=of_inputs)
    return Member(weight, lay(slopes.gradient), lay(slopes.fisher))


def _given(tokens: Tokens | None) -> Tokens:
    if tokens is None:
        raise ValueError("this importance reads text")
    return tokens


def _teller(report: Reporter, blocks: int) -> Callable[[str, int], None]:
    def tell(way: str, index: int) -> None:
        done = index if way == "forward" else 2 * blocks - 1 - index
        report("importance", done, 2 * blocks, f"{way}, block {index}")

    return tell


def _checked(what: str, values: Tensor, units: int) -> Tensor:
    if tuple(values.shape) != (units,) or not bool(values.isfinite().all()):
        raise InputError(f"{what}: the importance is not a finite number for each of {units} units; use another text")
    return values.float().cpu()
