"""Which matrix of a foreign graph is which linear of the model it came from.

By name first: exporters keep a module's path in the weight's name, the node's or the output's. Where they lost it (folded
transposes are called `onnx::MatMul_123`), by value: given the dense weights, a pruned or rounded copy still points their way
(the cosine of unrelated matrices of 16,384 samples is about 0.01).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from tailcut.bitmask import Array
from tailcut.compress.importers._onnx_graph import OnnxLinear
from tailcut.errors import InputError

Shapes = Mapping[str, tuple[int, int]]  # module -> [out, in]
_SAMPLES: Final = 16_384
_LEAST: Final = 0.2  # cosine of a copy; even 95 % sparse ones lie above
_CLEAR: Final = 2.0  # times the second best


def assign(
    found: Sequence[OnnxLinear], wanted: Shapes, dense: Callable[[str], Array] | None, where: str
) -> dict[str, OnnxLinear]:
    """Module -> its matrix, for as many as can be told; InputError where a name fits two matrices of its shape."""
    named = _by_name(found, wanted, where)
    taken = {id(matrix) for matrix in named.values()}
    missing = {module: shape for module, shape in wanted.items() if module not in named}
    left = [matrix for matrix in found if id(matrix) not in taken]
    if missing and left and dense is not None:
        named |= _by_value(left, missing, dense)
    return named


def _by_name(found: Sequence[OnnxLinear], wanted: Shapes, where: str) -> dict[str, OnnxLinear]:
    named: dict[str, OnnxLinear] = {}
    for matrix in found:
        module = next((module for label in matrix.labels if (module := _module_of(label, wanted)) is not None), None)
        if module is None or wanted[module] != matrix.shape:
            continue
        if module in named:
            raise InputError(f"{where}: two matrices are called {module}; the graph is not of one decoder pass")
        named[module] = matrix
    return named


def _module_of(label: str, wanted: Shapes) -> str | None:
    """The module whose path stands in a label, whole words only, with or without its first word ("model.")."""
    padded = f".{label}."
    for module in wanted:
        if f".{module}." in padded:
            return module
    shorter = (module for module in wanted if padded.startswith(f".{module.partition('.')[2]}."))
    return next(shorter, None)


def _by_value(left: Sequence[OnnxLinear], missing: Shapes, dense: Callable[[str], Array]) -> dict[str, OnnxLinear]:
    named: dict[str, OnnxLinear] = {}
    for shape in sorted(set(missing.values())):
        modules = [module for module, size in missing.items() if size == shape]
        matrices = [matrix for matrix in left if matrix.shape == shape]
        if not matrices:
            continue
        ours = np.stack([_sample(dense(module)) for module in modules])
        theirs = np.stack([_sample(matrix.read().dense()) for matrix in matrices])
        cosines = ours @ theirs.T
        for row, module in enumerate(modules):
            best = int(np.argmax(cosines[row]))
            others = np.delete(cosines[row], best)
            clear = cosines[row, best] > _CLEAR * max(0.0, float(others.max(initial=0.0)))
            mutual = int(np.argmax(cosines[:, best])) == row
            if cosines[row, best] >= _LEAST and clear and mutual:
                named[module] = matrices[best]
    return named


def _sample(weight: Array) -> npt.NDArray[np.float32]:
    """Evenly spaced entries of W [out, in], as a vector of length 1."""
    flat = weight.reshape(-1)
    places = np.linspace(0, flat.size - 1, min(flat.size, _SAMPLES)).astype(np.int64)
    picked = np.asarray(flat[places], np.float32)
    norm = float(np.linalg.norm(picked))
    return picked / norm if norm else picked
