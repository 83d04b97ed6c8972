"""Parameters of a checkpoint by module name, as float32, one at a time.

Some checkpoints leave out the prefix of the base model ("transformer.", "model.") that transformers adds when it
loads them; the spec lists the prefixes that may be absent.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tailcut.checkpoint import Checkpoint, float32
from tailcut.errors import InputError
from tailcut.export.spec import DecoderSpec

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Weights:
    """Reads a model's parameters under the names that transformers gives the modules."""

    checkpoint: Checkpoint
    spec: DecoderSpec

    def has(self, module: str, part: str = "weight") -> bool:
        """Whether the checkpoint stores `module.part`."""
        return self._find(module, part) is not None

    def dtype(self, module: str) -> np.dtype[Any]:
        """How a module's weight is stored."""
        return self.checkpoint.dtype(self._name(module, "weight"))

    def vector(self, module: str, part: str, size: int) -> Matrix:
        """A bias or norm weight, float32 [size]."""
        return self._read(module, part, (size,))

    def matrix(self, module: str, out: int, inputs: int) -> Matrix:
        """A linear's weight, float32 [out, in], however it is stored; may be a transposed view."""
        if self.spec.conv1d:
            return self._read(module, "weight", (inputs, out)).T
        return self._read(module, "weight", (out, inputs))

    def table(self, module: str, columns: int) -> Matrix:
        """An embedding, float32 [rows, columns]."""
        name = self._name(module, "weight")
        return self._read(module, "weight", (self.checkpoint.shape(name)[0], columns))

    def _read(self, module: str, part: str, shape: tuple[int, ...]) -> Matrix:
        name = self._name(module, part)
        stored = self.checkpoint.shape(name)
        if stored != shape:
            raise InputError(f"{name}: has shape {list(stored)}, the config asks for {list(shape)}")
        return float32(self.checkpoint.read_finite(name))

    def _name(self, module: str, part: str) -> str:
        found = self._find(module, part)
        if found is None:
            raise InputError(
                f"{self.checkpoint.directory}: no tensor named {module}.{part}; the checkpoint does not fit its config"
            )
        return found

    def _find(self, module: str, part: str) -> str | None:
        full = f"{module}.{part}"
        shorter = (full.removeprefix(prefix) for prefix in self.spec.prefixes if full.startswith(prefix))
        return next((name for name in (full, *shorter) if name in self.checkpoint), None)
