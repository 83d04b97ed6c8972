"""What one compression is: everything that decides its bytes, checked before anything is written."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, cast

import torch
import transformers

from tailcut import __version__, plugins
from tailcut.allocation import NM, Allocation, LayerPlan
from tailcut.checkpoint import Checkpoint
from tailcut.compress.blocks import max_positions
from tailcut.compress.calibration import Calibration, CalibrationTokens, draw
from tailcut.compress.cutting import Method
from tailcut.compress.discovery import Linear, linears_of_skeleton
from tailcut.compress.masks import require_divisible
from tailcut.compress.pruners import Pruner
from tailcut.compress.quantisers import Quantiser
from tailcut.compress.resident import Forward, Weights, forward_dtype
from tailcut.compress.skeleton import build_skeleton
from tailcut.compress.spectra import resolve_device
from tailcut.errors import InputError
from tailcut.progress import Reporter
from tailcut.sidecar import file_name

PRUNERS: Final = "tailcut.compress.pruners"
QUANTISERS: Final = "tailcut.compress.quantisers"
JOINT_PRUNER: Final = "sparsegpt"  # whose sweep a quantiser that prunes is


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that decides the output."""

    weights: Weights
    linears: tuple[Linear, ...]
    allocation: Allocation
    pruner_name: str
    quantiser_name: str | None  # None: no plan has bits
    method: Method
    calibration: Calibration
    tokens: CalibrationTokens | None  # None: the pruner needs no statistics
    source: str  # fingerprint of the model's files

    @property
    def checkpoint(self) -> Checkpoint:
        return self.weights.checkpoint

    @property
    def blocks(self) -> int:
        return len(self.weights.skeleton.blocks)

    def shard(self, number: int) -> str:
        """File of block `number`; the last file, number == blocks, holds everything else."""
        return f"model-{number + 1:05d}-of-{self.blocks + 1:05d}.safetensors"

    def sidecar(self, number: int) -> str:
        """File of the integers of block `number`, where it has any."""
        return file_name(number, self.blocks)

    def of(self, number: int) -> tuple[Linear, ...]:
        """The linears of block `number`."""
        return tuple(linear for linear in self.linears if linear.block == number)

    def fingerprint(self) -> str:
        """Equal fingerprints, equal bytes."""
        parts = {
            "source": self.source,
            "plans": {name: asdict(plan) for name, plan in sorted(self.allocation.plans.items())},
            "provenance": dict(self.allocation.provenance),
            "pruner": self.pruner_name,
            "quantiser": [self.quantiser_name, self.method.clip],
            "tokens": self.tokens.sha256 if self.tokens else None,
            "device": self.weights.device.type,
            "forward": str(self.weights.dtype),
            "versions": [__version__, torch.__version__, transformers.__version__],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def choose(plans: Iterable[LayerPlan], pruner: str, quantiser: str, clip: bool) -> Method:
    """The named pruner, and the quantiser if any of the plans has bits."""
    module = cast(Pruner, plugins.load(PRUNERS, pruner))
    rounding = cast(Quantiser, plugins.load(QUANTISERS, quantiser))
    if all(plan.bits is None for plan in plans):
        return Method(module)
    if rounding.PRUNES and pruner != JOINT_PRUNER:
        raise InputError(
            f"the quantiser {quantiser} prunes in {JOINT_PRUNER}'s own sweep, not as {pruner} does; "
            f"choose --pruner {JOINT_PRUNER}, or --quantiser gptq after {pruner}"
        )
    return Method(module, rounding, clip)


def prepare(
    model_dir: Path,
    allocation: Allocation,
    names: tuple[str, str | None],
    method: Method,
    calibration: Calibration,
    device: str,
    report: Reporter,
    forward: Forward = "float32",
) -> Job:
    """Every check that needs no output, so that a wrong input fails before anything is written."""
    where, dtype = resolve_device(device), forward_dtype(forward)
    checkpoint = Checkpoint(model_dir)
    skeleton = build_skeleton(checkpoint)
    linears = linears_of_skeleton(checkpoint, skeleton)
    _require_matching(allocation, linears)
    tokens = None
    if any(method.needs(plan) for plan in allocation.plans.values()):
        tokens = draw(calibration, model_dir, max_positions(skeleton.model))
    for number, name in enumerate(checkpoint.names):
        report("check", number + 1, len(checkpoint.names), name)
        checkpoint.read_finite(name)
        checkpoint.release()
    weights = Weights(checkpoint, skeleton, where, dtype)
    return Job(weights, linears, allocation, *names, method, calibration, tokens, checkpoint.fingerprint())


def _require_matching(allocation: Allocation, linears: Sequence[Linear]) -> None:
    """The allocation names exactly this model's linears, with plans that can be carried out."""
    known = {linear.name for linear in linears}
    for name in sorted(known ^ allocation.plans.keys()):
        where = "the allocation has no plan for it" if name in known else "the model has no such linear"
        raise InputError(f"{name}: {where}; allocate again from scores of this model")
    for linear in linears:
        plan = allocation.plans[linear.name]
        if isinstance(plan.pattern, NM):
            require_divisible(linear.name, linear.shape[1], plan.pattern)
