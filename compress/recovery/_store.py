"""Recovered matrices into shards, in the student's dtypes and layouts, checked against the student's own zeros."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tailcut.bitmask import Array
from tailcut.compress.discovery import Linear
from tailcut.compress.journal import Journal
from tailcut.compress.masks import require_groups
from tailcut.compress.quantisers._grid import Quantised
from tailcut.compress.recovery._student import Student
from tailcut.compress.resident import as_array, as_tensor
from tailcut.errors import InputError
from tailcut.sidecar import Errors, Integral, tensors_of


@dataclass(frozen=True, slots=True)
class Recovered:
    """One matrix: float32 [out, in] before rounding, and its integers where it is quantised."""

    weight: Tensor
    integers: Quantised | None = None
    output_error: float | None = None  # see `RealisedLayer`


def store_block(
    journal: Journal,
    student: Student,
    index: int,
    matrices: Mapping[str, Recovered],
    others: Mapping[str, Tensor] | None = None,
) -> None:
    """Write block `index`: matrices by module name, `others` (norms, biases) by checkpoint name, the rest as it was."""
    checkpoint = student.weights.checkpoint
    tensors = {name: checkpoint.read(name) for name in student.tensors[index].values()}
    sidecar: dict[str, Array] = {}
    for linear in student.of(index):
        tensors[linear.tensor], integers = _finished(student, linear, matrices[linear.name])
        sidecar |= integers
    for name, value in (others or {}).items():
        tensors[name] = as_stored(name, value, checkpoint.read(name))
    if sidecar:
        journal.store(student.sidecar(index), sidecar)
    journal.store(student.shard(index), tensors)


def store_rest(journal: Journal, student: Student, changed: Mapping[str, Tensor] | None = None) -> None:
    """Write embeddings, norms, head and whatever else the checkpoint holds; `changed` by checkpoint name."""
    checkpoint = student.weights.checkpoint
    blocks = {name for tensors in student.tensors for name in tensors.values()}
    tensors = {name: checkpoint.read(name) for name in checkpoint.names if name not in blocks}
    for name, value in (changed or {}).items():
        tensors[name] = as_stored(name, value, tensors[name])
    journal.store(student.shard(student.blocks), tensors)


def as_stored(name: str, value: Tensor, before: Array) -> Array:
    """A float32 tensor in the dtype of what it replaces; InputError where that overflows."""
    rounded = value.detach().to(as_tensor(before.reshape(-1)[:0]).dtype)
    if not bool(rounded.isfinite().all()):
        raise InputError(f"{name}: recovered weights overflow {before.dtype}; lower the learning rate")
    return as_array(rounded).astype(before.dtype, copy=False)


def _finished(student: Student, linear: Linear, made: Recovered) -> tuple[Array, dict[str, Array]]:
    """One matrix as it is stored, and its part of the sidecar."""
    finished = (made.weight if made.integers is None else made.integers.dense()).detach().float().cpu()
    if bool(finished.masked_fill(student.keep(linear), 0.0).any()):
        raise InputError(f"{linear.name}: recovery filled a weight that was zero; please report this")
    require_groups(linear.name, finished, student.plans[linear.name].pattern)
    before = student.weights.checkpoint.read(linear.tensor)
    # adding 0.0 turns -0.0 into 0.0, so that every zero is a zero to the bitmask format as well
    stored = as_stored(linear.name, (finished.T if linear.transposed else finished) + 0.0, before)
    bits = student.plans[linear.name].bits
    if made.integers is None or bits is None:
        return stored, {}
    integral = Integral(made.integers.q.cpu().numpy(), made.integers.scales.cpu().numpy(), bits)
    return stored, tensors_of(linear.name, integral, Errors(_distance(finished, made.weight), made.output_error))


def _distance(finished: Tensor, learnt: Tensor) -> float:
    """||stored - W|| / ||W||."""
    wanted = learnt.detach().double().cpu()
    norm = float(wanted.norm())
    return float((finished.double() - wanted).norm()) / norm if norm else 0.0


def count_new_zeros(before: Student, after: Student) -> int:
    """Kept weights that became zero; InputError if a zero was filled."""
    count = 0
    for linear in before.linears:
        old, new = before.keep(linear).numpy(), after.keep(linear).numpy()
        if bool(np.any(new & ~old)):
            raise InputError(f"{linear.name}: recovery filled a weight that was zero; please report this")
        count += int(old.sum()) - int(new.sum())
    return count


def float32_of(tensor: Tensor) -> Tensor:
    """Detached float32 on the CPU."""
    return tensor.detach().to("cpu", torch.float32)
