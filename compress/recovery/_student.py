"""The cut model under recovery: its matrices as they exactly are, which weights are kept, and its teacher's fit."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from tailcut.allocation import Bits, Dense, LayerPlan, Unstructured
from tailcut.bitmask import Array
from tailcut.checkpoint import Checkpoint, float32
from tailcut.compress.discovery import Linear, linears_of_skeleton, read_weight
from tailcut.compress.heads import vocabulary
from tailcut.compress.resident import Weights
from tailcut.compress.skeleton import build_skeleton
from tailcut.compress.tokens import load_tokenizer
from tailcut.errors import InputError
from tailcut.manifest import Manifest, try_manifest
from tailcut.sidecar import Sidecars, file_name, open_sidecars

_TOKENIZER: Final = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class Grid:
    """Integers that a matrix must stay on: scales float32 [out] or [out, groups] (tailcut.quantised)."""

    bits: Bits
    scales: Tensor


@dataclass(frozen=True, slots=True)
class Student:
    """A cut model directory, opened."""

    weights: Weights
    linears: tuple[Linear, ...]
    plans: Mapping[str, LayerPlan]
    integers: Sidecars
    manifest: Manifest | None
    tensors: tuple[Mapping[str, str], ...]  # of each block: parameter name inside it -> checkpoint tensor

    @property
    def directory(self) -> Path:
        return self.weights.checkpoint.directory

    @property
    def blocks(self) -> int:
        return len(self.weights.skeleton.blocks)

    def of(self, number: int) -> tuple[Linear, ...]:
        """The linears of block `number`."""
        return tuple(linear for linear in self.linears if linear.block == number)

    def shard(self, number: int) -> str:
        """File of block `number`; the last file, number == blocks, holds everything else."""
        return f"model-{number + 1:05d}-of-{self.blocks + 1:05d}.safetensors"

    def sidecar(self, number: int) -> str:
        """File of the integers of block `number`, where it has any."""
        return file_name(number, self.blocks)

    def matrix(self, linear: Linear) -> Tensor:
        """float32 [out, in] as it is meant: integer times scale where it is quantised, else as stored."""
        if linear.name in self.integers:
            return torch.from_numpy(self.integers.read(linear.name).dense())
        return torch.from_numpy(float32(read_weight(self.weights.checkpoint, linear)).copy())

    def keep(self, linear: Linear) -> Tensor:
        """bool [out, in]: True where a weight is not zero."""
        return self.matrix(linear) != 0

    def grid(self, linear: Linear) -> Grid | None:
        """The grid of a quantised matrix."""
        if linear.name not in self.integers:
            return None
        found = self.integers.read(linear.name)
        return Grid(found.bits, torch.from_numpy(found.scales.copy()))

    def exact(self, index: int) -> dict[str, Array]:
        """Quantised matrices of a block as they are meant: checkpoint name -> float32 in the stored layout."""
        quantised = [linear for linear in self.of(index) if linear.name in self.integers]
        matrices = {linear: self.matrix(linear).numpy() for linear in quantised}
        return {linear.tensor: (array.T if linear.transposed else array) for linear, array in matrices.items()}

    def mask_sha256(self) -> str:
        """Hash of which weights of which matrices are not zero."""
        digest = hashlib.sha256()
        for linear in sorted(self.linears, key=lambda item: item.name):
            digest.update(f"{linear.name} {linear.shape}\n".encode())
            digest.update(np.packbits(self.keep(linear).numpy()).tobytes())
            self.weights.checkpoint.release()
        return digest.hexdigest()

    def zeros(self) -> int:
        """Zeros of all matrices."""
        return sum(linear.parameters - int(self.keep(linear).sum()) for linear in self.linears)


def open_weights(directory: Path, device: str, dtype: torch.dtype) -> Weights:
    """A model directory with its skeleton; nothing is read yet."""
    checkpoint = Checkpoint(directory)
    return Weights(checkpoint, build_skeleton(checkpoint), device, dtype)


def open_student(directory: Path, device: str) -> Student:
    """A cut model directory; plans are its manifest's, or follow from its zeros where it has none."""
    weights = open_weights(directory, device, torch.float32)
    linears = linears_of_skeleton(weights.checkpoint, weights.skeleton)
    manifest = try_manifest(directory)
    tensors = tuple(weights.block_tensors(index) for index in range(len(weights.skeleton.blocks)))
    bare = Student(weights, linears, {}, open_sidecars(directory, manifest), manifest, tensors)
    stated = manifest.layers if manifest is not None and manifest.kind == "model" else {}
    plans = {
        linear.name: stated[linear.name].plan if linear.name in stated else _plan_of(bare, linear) for linear in linears
    }
    return replace(bare, plans=plans)


def _plan_of(student: Student, linear: Linear) -> LayerPlan:
    zeros = linear.parameters - int(student.keep(linear).sum())
    return LayerPlan(Unstructured(zeros / linear.parameters) if zeros else Dense())


def require_pair(student: Student, teacher: Weights) -> bool:
    """Whether every matrix has its teacher's shape; InputError where the two do not belong together."""
    ours, theirs = student.weights.checkpoint, teacher.checkpoint
    kinds = ours.config.get("model_type"), theirs.config.get("model_type")
    if kinds[0] != kinds[1]:
        raise InputError(f"{theirs.directory}: the teacher is a {kinds[1]}, {ours.directory} is a {kinds[0]}")
    sizes = vocabulary(student.weights), vocabulary(teacher)
    if sizes[0] != sizes[1] or not _same_tokens(ours.directory, theirs.directory):
        raise InputError(
            f"{theirs.directory}: the teacher has another vocabulary ({sizes[1]} tokens) than {ours.directory} "
            f"({sizes[0]} tokens); give the model that it was cut from"
        )
    shapes: dict[str, tuple[int, ...]] = {
        linear.name: linear.shape for linear in linears_of_skeleton(theirs, teacher.skeleton)
    }
    paired = shapes == {linear.name: linear.shape for linear in student.linears}
    zeros = student.zeros()
    if paired and not zeros and not len(student.integers):
        raise InputError(
            f"{ours.directory}: none of its block weights is zero or quantised, there is nothing to keep; "
            "give a directory that `tailcut compress` wrote"
        )
    wrong = next((linear for linear in student.linears if not _fits(linear.shape, shapes.get(linear.name, ()))), None)
    if wrong is not None and (zeros or len(student.integers)):
        raise InputError(
            f"{ours.directory}: {wrong.name} is {list(wrong.shape)}, in the teacher {list(shapes.get(wrong.name, ()))}; "
            "its zeros are those of another model"
        )
    return paired


def _fits(shape: tuple[int, ...], teachers: tuple[int, ...]) -> bool:
    """Whether a matrix can be what cutting units left of its teacher's (zeros may lie in it, too)."""
    return len(shape) == len(teachers) and all(ours <= theirs for ours, theirs in zip(shape, teachers, strict=True))


def _same_tokens(ours: Path, theirs: Path) -> bool:
    """Whether two directories' tokenizers give the same numbers to the same pieces; True where the teacher has none."""
    if not (theirs / _TOKENIZER).is_file() or not (ours / _TOKENIZER).is_file():
        return True
    if (theirs / _TOKENIZER).read_bytes() == (ours / _TOKENIZER).read_bytes():
        return True
    return bool(load_tokenizer(ours).get_vocab() == load_tokenizer(theirs).get_vocab())
