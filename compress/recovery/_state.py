"""The state of a learning on disk: one safetensors file, written under another name and renamed.

p.NAME m.NAME v.NAME   learnt weights and AdamW's two moments, float32
b.NAME                 the best weights so far, where those are not the present ones
facts                  the rest as JSON bytes (uint8): step, seconds, curve, best step, the mask's hash
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tailcut.bitmask import Array
from tailcut.checkpoint import read_shard, write_shard
from tailcut.errors import InputError
from tailcut.results import RecoveryPoint


@dataclass(slots=True)
class State:
    """What a learning has come to. `best` holds float32 tensors on the CPU."""

    step: int = 0
    seconds: float = 0.0
    looks: int = 0
    best_step: int = 0
    ended: str = ""
    resumed: int = 0  # the step that this process began at
    curve: list[RecoveryPoint] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # since the last look
    best: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def best_value(self) -> float | None:
        """Held-out loss of the best weights; None before the first look."""
        return min((point.heldout for point in self.curve), default=None)


def write_state(
    path: Path, state: State, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer, mask: str
) -> None:
    """Replace the file atomically."""
    tensors: dict[str, Array] = {}
    for name, parameter in parameters.items():
        tensors[f"p.{name}"] = _array(parameter)
        kept = optimiser.state.get(parameter, {})
        tensors |= {f"{key}.{name}": _array(kept[full]) for key, full in _MOMENTS.items() if full in kept}
        if state.best_step != state.step:
            tensors[f"b.{name}"] = _array(state.best[name])
    facts = {name: getattr(state, name) for name in ("step", "seconds", "looks", "best_step", "ended", "losses")}
    facts |= {"curve": [asdict(point) for point in state.curve], "mask_sha256": mask}
    tensors["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    part = path.with_name(f"{path.name}.part")
    write_shard(part, tensors)
    part.replace(path)


def read_state(
    path: Path | None, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer, mask: str
) -> State:
    """The state that lies there, put into parameters and optimiser; a new one where nothing lies."""
    if path is None or not path.is_file():
        return State()
    tensors = read_shard(path)
    facts: dict[str, Any] = json.loads(tensors["facts"].tobytes())
    if facts.pop("mask_sha256") != mask:
        raise InputError(f"{path}: a checkpoint of another mask; remove {path.parent} and start again")
    curve = [RecoveryPoint(**point) for point in facts.pop("curve")]
    state = State(**facts, curve=curve, resumed=int(facts["step"]))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(_tensor(tensors[f"p.{name}"]))
            if f"m.{name}" in tensors:
                moments = {
                    full: _tensor(tensors[f"{key}.{name}"]).to(parameter.device) for key, full in _MOMENTS.items()
                }
                # on the weights' device: what a fused AdamW asks for, and others take
                count = torch.tensor(float(state.step), device=parameter.device)
                optimiser.state[parameter] = {"step": count} | moments
    kind = "b" if state.best_step != state.step else "p"
    state.best = {name: _tensor(tensors[f"{kind}.{name}"]) for name in parameters}
    return state


_MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq"}


def _array(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().float().cpu().numpy())


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32))
