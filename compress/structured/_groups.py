"""Dependency groups of one decoder block: which rows and columns of which matrices must go together.

    heads  unit = one key/value head with all its queries: rows of q, k and v, columns of the output projection. Queries
           per key/value head stay what they were, so that the shapes remain the family's own
    mlp    unit = one inner channel: a row of each matrix that goes up, a column of the one that comes down

Found from the block's own modules. The attention is the module that says how wide a head is; what else is linear is the
MLP. That a group is right is then asked of the family itself: its class is built with one unit less in the config, and every
parameter must have the shape that the cut would leave (`require_buildable`). Biases go with their rows; norms over one head's
channels are shared by all heads and stay; anything else in the attention that has a size of its own is refused.

Why no tracing library: torch-pruning 1.6.1 was tried on tiny models of transformers 5. Its groups of MLP channels are
these; on the expanded keys of grouped queries it did not come to an end (docs/structured-pruning.md).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from tailcut.compress.skeleton import Skeleton, linears_of, shaped_block
from tailcut.errors import InputError
from tailcut.shapes import HEADS, KV_HEADS, WIDTHS

Kind = Literal["heads", "mlp"]
Axis = Literal["rows", "columns"]
_OUT: Final = ("o_proj", "out_proj")


@dataclass(frozen=True, slots=True)
class Part:
    """What one matrix gives to every unit: `channels` neighbouring rows or columns, the units lying side by side."""

    linear: str  # module name inside the block
    axis: Axis
    start: int  # where the first unit begins (matrices that join several projections)
    units: int
    channels: int
    across: int  # length of the other axis

    @property
    def span(self) -> slice:
        """All of the units' rows or columns."""
        return slice(self.start, self.start + self.units * self.channels)

    def indices(self, units: Tensor) -> Tensor:
        """Unit numbers [n] -> rows or columns of the matrix [n * channels], int64."""
        return (self.start + units[:, None] * self.channels + torch.arange(self.channels)).flatten()


@dataclass(frozen=True, slots=True)
class Group:
    """The units of one kind in one block."""

    kind: Kind
    units: int
    parts: tuple[Part, ...]
    queries: int = 1  # query heads of a unit
    head_dim: int = 0

    @property
    def unit_parameters(self) -> int:
        """Weights of matrices that go with one unit."""
        return sum(part.channels * part.across for part in self.parts)

    @property
    def down(self) -> Part:
        """The matrix whose columns the units are: it reads what they computed."""
        return next(part for part in self.parts if part.axis == "columns")

    def settings(self, kept: int, width_key: str) -> dict[str, int]:
        """The config that builds the block with `kept` units."""
        if self.kind == "mlp":
            return {width_key: kept}
        return {HEADS: kept * self.queries, KV_HEADS: kept, "head_dim": self.head_dim}


def find_groups(skeleton: Skeleton, index: int) -> tuple[dict[Kind, Group], dict[Kind, str]]:
    """The groups of block `index` that can be cut, and a reason for each kind that cannot."""
    block = skeleton.blocks[index]
    found: dict[Kind, Group] = {}
    reasons: dict[Kind, str] = {}
    makers: dict[Kind, Callable[[nn.Module], Group]] = {"heads": _heads, "mlp": _mlp}
    for kind, make in makers.items():
        try:
            group = make(block)
            if group.units > 1:
                require_buildable(skeleton, index, group)
            found[kind] = group
        except InputError as error:
            reasons[kind] = str(error)
    return found, reasons


def width_key(skeleton: Skeleton) -> str:
    """How this family's config spells the MLP's width."""
    config: object = skeleton.model.config.get_text_config(decoder=True)
    known = [name for name in WIDTHS if hasattr(config, name)]
    return known[0] if known else WIDTHS[0]


def kept_indices(groups: Mapping[Kind, Group], kept: Mapping[Kind, Tensor]) -> dict[str, dict[Axis, Tensor]]:
    """Kept units by kind -> rows and columns that stay, by linear; an axis that is not named stays whole."""
    chosen: dict[str, dict[Axis, list[Tensor]]] = {}
    for kind, units in kept.items():
        for part in groups[kind].parts:
            chosen.setdefault(part.linear, {}).setdefault(part.axis, []).append(part.indices(units))
    return {name: {axis: torch.cat(lists) for axis, lists in axes.items()} for name, axes in chosen.items()}


def require_buildable(skeleton: Skeleton, index: int, group: Group) -> None:
    """InputError unless the family's class, told of one unit less, makes the shapes that cutting one would leave."""
    block, units = skeleton.blocks[index], torch.arange(group.units - 1)
    want = {name: tuple(parameter.shape) for name, parameter in block.named_parameters()}
    for name, axes in kept_indices({group.kind: group}, {group.kind: units}).items():
        want |= _cut_shapes(block.get_submodule(name), name, want, axes)
    smaller = shaped_block(skeleton, index, group.settings(group.units - 1, width_key(skeleton)))
    got = {name: tuple(parameter.shape) for name, parameter in smaller.named_parameters()}
    wrong = next((name for name in want if got.get(name) != want[name]), None)
    if wrong is not None or want.keys() != got.keys():
        raise InputError(f"its config cannot state fewer of them ({wrong or 'parameters'} would not follow)")


def _cut_shapes(
    module: nn.Module, name: str, shapes: Mapping[str, tuple[int, ...]], axes: Mapping[Axis, Tensor]
) -> dict[str, tuple[int, ...]]:
    weight = list(shapes[f"{name}.weight"])
    cut: dict[str, tuple[int, ...]] = {}
    for axis, places in axes.items():
        weight[storage_axis(module, axis)] = len(places)
        if axis == "rows" and f"{name}.bias" in shapes:
            cut[f"{name}.bias"] = (len(places),)
    return cut | {f"{name}.weight": tuple(weight)}


def storage_axis(module: nn.Module, axis: Axis) -> int:
    """Dimension of the stored weight that holds outputs (rows) or inputs; GPT-2's Conv1D stores [in, out]."""
    return 1 if (axis == "columns") == isinstance(module, nn.Linear) else 0


def sizes(module: nn.Module) -> tuple[int, int]:
    """Outputs and inputs of a linear."""
    shape = module.get_parameter("weight").shape
    return (int(shape[0]), int(shape[1])) if isinstance(module, nn.Linear) else (int(shape[1]), int(shape[0]))


def _attention(block: nn.Module) -> str:
    """Name inside the block of the module that has heads; InputError where there is not exactly one."""
    found: list[str] = [
        n for n, module in block.named_modules() if n and (hasattr(module, "head_dim") or hasattr(module, "head_size"))
    ]
    if len(found) != 1:
        raise InputError(f"its blocks hold {len(found)} attention modules; tailcut cuts models with one in each")
    return found[0]


def _inside(block: nn.Module, attention: str) -> Iterator[tuple[str, nn.Module]]:
    return ((name, module) for name, module in linears_of(block) if name.startswith(f"{attention}."))


def _heads(block: nn.Module) -> Group:
    attention = _attention(block)
    module: Any = block.get_submodule(attention)
    width = int(getattr(module, "head_dim", None) or module.head_size)
    linears = {name.rpartition(".")[2]: (name, *sizes(one)) for name, one in _inside(block, attention)}
    out = next((linears.pop(leaf) for leaf in _OUT if leaf in linears), None)
    if out is None or out[2] % width:
        raise InputError("its attention has no output projection over whole heads")
    heads, joined = out[2] // width, linears.keys() == {"qkv_proj"}
    if not joined and linears.keys() != {"q_proj", "k_proj", "v_proj"}:
        raise InputError(
            f"its attention is made of {', '.join(sorted(linears))}; q_proj, k_proj, v_proj or qkv_proj are cut"
        )
    kv_heads = (linears["qkv_proj"][1] // width - heads) // 2 if joined else linears["k_proj"][1] // width
    _require_plain_attention(module, width)
    if kv_heads < 1 or heads % kv_heads:
        raise InputError(f"{heads} query heads do not share {kv_heads} key/value heads evenly")
    queries, hidden = heads // kv_heads, next(iter(linears.values()))[2]
    channels = {"q_proj": queries * width, "k_proj": width, "v_proj": width}
    starts = {"q_proj": 0, "k_proj": heads * width, "v_proj": (heads + kv_heads) * width}
    parts = [
        Part(linears["qkv_proj" if joined else leaf][0], "rows", starts[leaf] if joined else 0, kv_heads, count, hidden)
        for leaf, count in channels.items()
    ]
    return Group(
        "heads", kv_heads, (*parts, Part(out[0], "columns", 0, kv_heads, queries * width, out[1])), queries, width
    )


def _require_plain_attention(module: nn.Module, width: int) -> None:
    """Norms over one head's channels may stay; a parameter with an entry for each head may not be overlooked."""
    inside = {f"{name}." for name, _ in linears_of(module)}
    for name, parameter in module.named_parameters():
        if not name.startswith(tuple(inside)) and tuple(parameter.shape) != (width,):
            raise InputError(f"its attention holds {name} of shape {list(parameter.shape)}, which spans several heads")


def _mlp(block: nn.Module) -> Group:
    attention = _attention(block)
    linears = [(name, *sizes(one)) for name, one in linears_of(block) if not name.startswith(f"{attention}.")]
    if len(linears) not in (2, 3):
        raise InputError(f"it has {len(linears)} matrices outside the attention; MLPs of two or three are cut")
    *ups, (down, hidden, wide) = linears
    joined = len(ups) == 1 and ups[0][1] == 2 * wide
    if any(out != (2 * wide if joined else wide) or inputs != hidden for _, out, inputs in ups):
        raise InputError("its matrices do not go up to the width that the last one comes down from")
    starts = [(ups[0][0], 0), (ups[0][0], wide)] if joined else [(name, 0) for name, _, _ in ups]
    parts = [Part(name, "rows", start, wide, 1, hidden) for name, start in starts]
    return Group("mlp", wide, (*parts, Part(down, "columns", 0, wide, 1, hidden)))
