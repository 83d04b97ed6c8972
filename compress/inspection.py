"""What is in a model directory: zeros per matrix as they are on disk, and what the bitmask format would save."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from tailcut.bitmask import Array, nonzero_bits
from tailcut.checkpoint import Checkpoint
from tailcut.codec import FORBID_EXTRA
from tailcut.compress.discovery import find_linears, read_weight
from tailcut.progress import Reporter, silent


@dataclass(frozen=True, slots=True)
class MatrixFacts:
    """One prunable matrix: its plan if a manifest states one, its zeros, its bytes stored dense and bitmask-packed."""

    block: int
    shape: tuple[int, int]  # [out features, in features]
    zeros: int
    dense_bytes: int
    bitmask_bytes: int
    group: str | None  # N:4 or N:8 that every group obeys with groups that are full; else 2:4 or 4:8 if obeyed
    bits: int = 0  # of one weight as it is stored; 0: not looked at
    stored_bytes: int = 0  # as it lies in the file, scales aside
    kind: str = "dense"  # dense, bitmask, coo, QDQ, MatMulInteger, Q4_1, ...

    @property
    def sparsity(self) -> float:
        return self.zeros / max(1, self.shape[0] * self.shape[1])


@dataclass(frozen=True, slots=True)
class Inspection:
    """A whole directory or file. `total_parameters` counts every stored tensor, tied weights once (0: not known)."""

    __pydantic_config__: ClassVar = FORBID_EXTRA
    layers: Mapping[str, MatrixFacts]
    total_parameters: int
    bytes_on_disk: int
    what: str = ""  # in a few words
    format: str = ""  # the importer that reads it, or one of ours: "model", "packed", "package"
    engines: Mapping[str, str] = field(default_factory=dict)  # engine -> what it would do with it
    next: tuple[str, ...] = ()  # commands to run
    notes: tuple[str, ...] = ()

    @property
    def prunable_parameters(self) -> int:
        return sum(layer.shape[0] * layer.shape[1] for layer in self.layers.values())

    @property
    def zeros(self) -> int:
        return sum(layer.zeros for layer in self.layers.values())

    @property
    def sparsity(self) -> float:
        """Zeros over the linears of the decoder blocks."""
        return self.zeros / max(1, self.prunable_parameters)

    @property
    def whole_model_sparsity(self) -> float:
        """The same zeros over every parameter."""
        return self.zeros / max(1, self.total_parameters)


def inspect_directory(model_dir: Path, report: Reporter = silent) -> Inspection:
    """Count the zeros of every prunable matrix, one matrix at a time. No manifest is needed or believed."""
    checkpoint = Checkpoint(model_dir)
    linears = find_linears(checkpoint)
    layers: dict[str, MatrixFacts] = {}
    for done, linear in enumerate(linears, 1):
        weight = read_weight(checkpoint, linear)
        packed = checkpoint.packed_bytes(linear.tensor)
        stored, kind = (packed, "bitmask") if packed is not None else (weight.nbytes, "dense")
        layers[linear.name] = facts_of(weight, linear.block, 8 * weight.dtype.itemsize, stored, kind)
        checkpoint.release()
        report("inspect", done, len(linears), linear.name)
    size = sum(path.stat().st_size for path in checkpoint.files)
    return Inspection(layers, checkpoint.total_parameters(), size)


def facts_of(weight: Array, block: int, bits: int, stored: int, kind: str = "dense") -> MatrixFacts:
    """weight [out, in]; -0.0 is a zero of the model though the bitmask format stores it as a value."""
    rows, columns = int(weight.shape[0]), int(weight.shape[1])
    alive = weight.astype(np.float32) != 0
    kept = int(np.count_nonzero(nonzero_bits(weight)))
    # values, one bit a weight with rows padded to bytes, and two int64 tables (row offsets, shape)
    packed = kept * weight.dtype.itemsize + rows * ((columns + 7) // 8) + 8 * rows + 16
    zeros = int(alive.size - alive.sum())
    return MatrixFacts(block, (rows, columns), zeros, weight.nbytes, packed, _group(alive), bits, stored, kind)


def _group(alive: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> str | None:
    """alive [out, in]. A pattern is what the matrix was cut to if its mean group is as full as its fullest one."""
    columns, density = alive.shape[1], float(alive.mean()) if alive.size else 0.0
    fullest = {m: int(alive.reshape(-1, m).sum(1).max(initial=0)) for m in (4, 8) if columns % m == 0}
    cut = [f"{n}:{m}" for m, n in fullest.items() if n < m and density * m > n - 0.5]
    obeyed = [f"{n}:{m}" for n, m in ((2, 4), (4, 8)) if fullest.get(m, m) <= n]
    return next(iter(cut + obeyed), None)
