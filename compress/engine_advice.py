"""What each engine would do with weights as they are, and what to run next.

The rules are what was tried: ONNX Runtime and OpenVINO compute with zeros (docs/experiments.md), DeepSparse finds zeros
itself and wants MatMulInteger rather than QDQ, GPUs gain from 2:4 where every group obeys it.
"""

from collections import Counter
from pathlib import Path
from typing import Final

from tailcut.compress.inspection import Inspection, MatrixFacts

_FEW: Final = 0.05  # zeros that nobody cut
_WORTH: Final = 0.3  # below, a sparse product reads about what a dense one does
_HALF: Final = 0.5
_INTEGER_KINDS: Final = frozenset(
    {"QDQ", "MatMulInteger", "QLinearMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
)


def engines_of(found: Inspection) -> dict[str, str]:
    """Engine -> one sentence; empty where there are no matrices to speak of."""
    if not found.layers:
        return {}
    return {
        "tailcut CPU": _tailcut(found),
        "ONNX Runtime": _onnx_runtime(found),
        "DeepSparse": _deepsparse(found),
        "OpenVINO": _openvino(found),
        "GPU 2:4": _two_four(found),
    }


def next_of(found: Inspection, path: Path) -> tuple[str, ...]:
    """Commands that go on from here."""
    if found.format in ("model", "packed"):
        if found.sparsity >= _FEW:
            return (f"tailcut export {path} -o PACKAGE", "tailcut bench DENSE_PACKAGE PACKAGE")
        return (f"tailcut run {path} --sparsity 0.5", f"tailcut measure {path}")
    if found.format == "alphapruning-cache":
        return (f"tailcut import {path} --config MODEL -o scores.json", "tailcut allocate scores.json --sparsity 0.7")
    if found.format == "onnx-sparseml":
        return (f"tailcut import {path} --config MODEL -o DIR", "tailcut export DIR -o PACKAGE")
    if found.format:
        return (f"tailcut import {path} -o DIR", "tailcut export DIR -o PACKAGE")
    return ()


def dense_bytes(found: Inspection) -> int:
    """Bytes of the matrices at their own precision with zeros written out."""
    return sum(_dense(layer) for layer in found.layers.values())


def kinds_of(found: Inspection) -> dict[str, int]:
    """How many matrices are stored in each way, most first."""
    return dict(Counter(layer.kind for layer in found.layers.values()).most_common())


def _dense(layer: MatrixFacts) -> int:
    return layer.shape[0] * layer.shape[1] * (layer.bits or 32) // 8


def _sparse(layer: MatrixFacts) -> int:
    """Bytes as values and a mask at the stored precision."""
    weights = layer.shape[0] * layer.shape[1]
    return min(_dense(layer), (weights - layer.zeros) * (layer.bits or 32) // 8 + weights // 8)


def _tailcut(found: Inspection) -> str:
    dense = dense_bytes(found)
    sparse = sum(_sparse(layer) for layer in found.layers.values())
    sizes = f"{sparse / 1e6:.1f} MB of block weights a token instead of {dense / 1e6:.1f}"
    if found.sparsity < _FEW:
        return "dense: nothing to leave out; cut it first"
    if found.sparsity < _WORTH:
        return f"skips the zeros, but few: {sizes}; hardly faster than dense"
    return f"skips the zeros after export: {sizes}"


def _onnx_runtime(found: Inspection) -> str:
    kinds = kinds_of(found)
    if "coo" in kinds:
        return "opens sparse initializers, writes the zeros out at load and computes with them: no faster than dense"
    if _INTEGER_KINDS & kinds.keys():
        return "runs the integers, computes with the zeros: sparsity gains nothing"
    return "runs it as dense" if found.sparsity < _FEW else "computes with the zeros: the same speed as dense"


def _deepsparse(found: Inspection) -> str:
    kinds = kinds_of(found)
    if "QDQ" in kinds:
        return "runs QDQ slower than float32 (measured here); the MatMulInteger form is the fast one"
    if found.sparsity < _HALF:
        return "finds zeros itself, gains from about 50 % on: not here"
    return "finds the zeros itself, given static shapes at opset 13 to 17: `tailcut export --variant deepsparse`"


def _openvino(found: Inspection) -> str:
    kinds = kinds_of(found)
    if "coo" in kinds:
        return "does not open sparse initializers: convert to dense first"
    if found.sparsity >= _HALF and _INTEGER_KINDS & kinds.keys():
        return "reads dense zeros; may keep int8 weights sparse in memory (its sparse decompression), else as dense"
    if found.sparsity < _FEW:
        return "runs it as dense"
    return "reads dense zeros and computes with them; its sparse decompression is for int8 weights"


def _two_four(found: Inspection) -> str:
    valid = [layer for layer in found.layers.values() if obeys_two_four(layer)]
    if not valid:
        return "no matrix obeys 2:4: dense (or tailcut's unstructured GPU kernel)"
    full = sum(layer.shape[0] % 16 == 0 and layer.shape[1] % 32 == 0 for layer in valid)
    rest = "" if len(valid) == len(found.layers) else f", the other {len(found.layers) - len(valid)} run dense"
    return f"{len(valid)} of {len(found.layers)} matrices obey 2:4 ({full} with sizes that 2:4 kernels take){rest}"


def obeys_two_four(layer: MatrixFacts) -> bool:
    """Whether every group of four inputs has at most two weights, as far as its N:M says."""
    if layer.group is None:
        return False
    keep, block = (int(part) for part in layer.group.split(":"))
    return keep <= 2 * block // 4 and (block == 4 or keep <= 2)
