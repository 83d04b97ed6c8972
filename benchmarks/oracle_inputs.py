"""One model and one calibration text for both sides: the inputs of every linear, and models that the oracles can walk.

The oracles loop over `model.model.layers`, call each block once a sequence, and read their linears' inputs from forward
hooks. A `Replayed` block is such a block without the arithmetic between its linears: each gets the inputs that were
captured in the dense model, so that both sides see the same numbers to the last bit. A `Called` block is the real one.
"""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tailcut.compress.statistics import Accumulator, Needs, Statistics
from tailcut.windows import Tokens


@dataclass(frozen=True, slots=True)
class Site:
    """One linear of a block of the dense model, and what goes into it."""

    name: str  # inside the block
    weight: Tensor  # [out, in] float32
    inputs: Tensor  # [sequences, tokens, in] float32

    def statistics(self, needs: Needs) -> Statistics:
        """Ours, sequence by sequence as the oracles take them."""
        sums = Accumulator(self.weight.shape[1], needs)
        for sequence in self.inputs:
            sums.add(sequence[None], 1)
        return sums.result()

    def gram(self) -> Tensor:
        """X^T X, float64 [in, in]."""
        rows = self.inputs.flatten(0, 1).double()
        return rows.T @ rows

    def linear(self) -> nn.Linear:
        """A linear of its own with these weights."""
        out, width = self.weight.shape
        made = nn.Linear(width, out, bias=False)
        made.weight = nn.Parameter(self.weight.clone(), requires_grad=False)
        return made


class Dense:
    """A Hugging Face model in float32; `opened` puts calibration windows in front of its first block."""

    def __init__(self, model_dir: Path) -> None:
        factory: Any = AutoModelForCausalLM
        self.model: Any = factory.from_pretrained(model_dir, dtype=torch.float32).eval()
        self.blocks: nn.ModuleList = self.model.model.layers
        self._calls: list[Mapping[str, Any]] = []

    def linears(self, block: int) -> dict[str, nn.Linear]:
        """Those of one block by their names in it, in module order."""
        found = self.blocks[block].named_modules()
        return {name: module for name, module in found if isinstance(module, nn.Linear)}

    def opened(self, tokens: Tokens) -> Tensor:
        """Windows [sequences, tokens] -> hidden states in front of block 0 [sequences, tokens, hidden]."""
        entering: list[Tensor] = []
        for place, window in enumerate(tokens):
            noted: list[tuple[Tensor, Mapping[str, Any]]] = []
            watched = self.blocks if place == 0 else self.blocks[:1]  # blocks are called alike for every window
            handles = [
                block.register_forward_pre_hook(partial(_note, noted, alone=place > 0), with_kwargs=True)
                for block in watched
            ]
            with suppress(_Enough):
                self.model(input_ids=torch.from_numpy(window)[None], use_cache=False)
            for handle in handles:
                handle.remove()
            self._calls = self._calls or [named for _, named in noted]
            entering.append(noted[0][0])
        return torch.cat(entering)

    def sites(self, tokens: Tokens, wanted: AbstractSet[int]) -> Iterator[tuple[int, list[Site]]]:
        """The wanted blocks with their linears, in order; only one block's inputs are in memory."""
        hidden = self.opened(tokens) if wanted else torch.empty(0)
        for index, block in enumerate(self.blocks[: max(wanted, default=-1) + 1]):
            linears = self.linears(index) if index in wanted else {}
            seen: dict[str, list[Tensor]] = {name: [] for name in linears}
            handles = [
                module.register_forward_pre_hook(lambda _, given, to=seen[name]: to.append(given[0]))
                for name, module in linears.items()
            ]
            hidden = torch.cat([self.run(index, block, one[None]) for one in hidden])
            for handle in handles:
                handle.remove()
            if linears:
                yield index, [Site(name, linears[name].weight.data, torch.cat(seen[name])) for name in linears]

    def run(self, index: int, block: nn.Module, hidden: Tensor) -> Tensor:
        """One block on one sequence [1, tokens, hidden], as the model calls it."""
        out = block(hidden, **self._calls[index])
        result: Tensor = out[0] if isinstance(out, tuple) else out
        return result


class _Enough(Exception):  # noqa: N818  (not an error: what the rest of the model makes of a window is not needed)
    """Ends a forward."""


def _note(
    noted: list[tuple[Tensor, Mapping[str, Any]]],
    _: nn.Module,
    given: tuple[Tensor, ...],
    named: Mapping[str, Any],
    *,
    alone: bool,
) -> None:
    noted.append((given[0], named))
    if alone:
        raise _Enough


class Replayed(nn.Module):
    """A block of these linears alone: call number n gives each the inputs of sequence n (modulo their number).

    Hooks see the inputs; what comes out are zeros, since no oracle that is run on it looks at outputs.
    """

    def __init__(self, sites: list[Site]) -> None:
        super().__init__()
        self._replay = {site.name: (site.linear(), site.inputs) for site in sites}
        self._turn = 0
        for name, (linear, _) in self._replay.items():
            vars(linear)["forward"] = partial(_zeros, linear.out_features)
            folder, _, leaf = name.rpartition(".")
            holder: nn.Module = self
            for part in folder.split(".") if folder else ():
                if not hasattr(holder, part):
                    holder.add_module(part, nn.Module())
                holder = holder.get_submodule(part)
            holder.add_module(leaf, linear)

    def forward(self, hidden: Tensor, **_: object) -> tuple[Tensor]:
        for linear, inputs in self._replay.values():
            linear(inputs[self._turn % len(inputs)][None])
        self._turn += 1
        return (hidden,)

    def weights(self) -> dict[str, Tensor]:
        """What has become of them."""
        return {name: linear.weight.data for name, (linear, _) in self._replay.items()}


def _zeros(width: int, inputs: Tensor) -> Tensor:
    return torch.zeros(*inputs.shape[:-1], width)


class Called(nn.Module):
    """A real block under the call that the oracles were written for: hidden states first, a tuple back."""

    def __init__(self, dense: Dense, index: int) -> None:
        super().__init__()
        self.block = dense.blocks[index]
        self.__dict__.update(dense=dense, index=index)

    def forward(self, hidden: Tensor, **_: object) -> tuple[Tensor]:
        dense: Dense = self.__dict__["dense"]
        return (dense.run(self.__dict__["index"], self.block, hidden),)


def as_model(blocks: list[nn.Module], tokens: int) -> Any:  # noqa: ANN401  (what the oracles take for a model)
    """The attributes of a model that the oracles' loops read."""
    inner = SimpleNamespace(layers=nn.ModuleList(blocks))
    return SimpleNamespace(model=inner, config=SimpleNamespace(use_cache=False), hf_device_map={}, seqlen=tokens)
