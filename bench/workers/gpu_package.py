"""A package's model on the GPU: its weights for the lean loop, and the products that each engine multiplies with.

dense          the faster of cuBLAS and torch.compile for each shape, zeros written out
2:4            tailcut's kernels for every matrix that is 2:4 (bfloat16, int8 or int4 as the package stores it), else dense
cusparselt     PyTorch's semi-structured tensors for every matrix that is 2:4, else dense
int4           every matrix of the blocks rounded to 4 bits, by torch's tinygemm
The output matrix stays bfloat16 and dense in all of them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from tailcut.bench.package_weights import PackageWeights, Weight
    from tailcut.bench.workers import gpu_contenders as contenders
    from tailcut.bench.workers import gpu_timing as timing
    from tailcut.kernels.gpu.model import Model
    from tailcut.kernels.gpu.weights import BlockWeights, Weights
else:
    import gpu_contenders as contenders
    import gpu_timing as timing

_COPIES = 4  # of a matrix that two ways to multiply are timed with, so that caches hold little of it
_ROUNDS = 5


@dataclass
class Loaded:
    """A model that can run and what its matrices became."""

    weights: Weights
    bits: Dict[str, int]  # of the matrices that the package stores rounded, by place
    kinds: Counter[str] = field(default_factory=Counter)
    paths: Counter[str] = field(default_factory=Counter)
    weight_bytes: int = 0
    zeros: int = 0


def load_weights(directory: Path, device: str = "cuda", dtype: torch.dtype = torch.bfloat16) -> Loaded:
    """Every weight of a package of the llama family, rounded matrices as float32 q * scale."""
    from tailcut.bench.package_weights import EMBEDDING, HEAD, PackageWeights
    from tailcut.kernels.gpu.llama import read_architecture
    from tailcut.kernels.gpu.weights import Weights

    package = PackageWeights(directory)
    architecture = read_architecture(package.config)
    bits: Dict[str, int] = {}

    def read(name: str) -> Tensor:
        return _tensor(package.read(f"{name}.weight").dense()).to(device, dtype)

    blocks = tuple(_block(package, index, bits, device, dtype) for index in range(architecture.layers))
    embedding = read(EMBEDDING)
    head = embedding if architecture.tied else read(HEAD)
    return Loaded(Weights(architecture, embedding, blocks, read("model.norm"), head), bits)


def _block(package: PackageWeights, index: int, bits: Dict[str, int], device: str, dtype: torch.dtype) -> BlockWeights:
    from tailcut.kernels.gpu.weights import PLACES, BlockWeights

    prefix = f"model.layers.{index}"
    matrices: Dict[str, Tensor] = {}
    for place, names in PLACES.items():
        parts = [package.read(f"{prefix}.{name}.weight") for name in names]
        scales = parts[0].scales
        rounded = scales is not None
        if scales is not None:
            bits[f"layers.{index}.{place}"] = 4 if scales.ndim == 2 else 8
        stacked = torch.cat([_tensor(part.dense()) for part in parts])
        matrices[place] = stacked.to(device, torch.float32 if rounded else dtype)
    norms = [_norm(package.read(f"{prefix}.{name}.weight"), device, dtype) for name in _NORMS]
    return BlockWeights(norms[0], norms[1], matrices)


_NORMS = ("input_layernorm", "post_attention_layernorm")


def _norm(weight: Weight, device: str, dtype: torch.dtype) -> Tensor:
    return _tensor(weight.dense()).to(device, dtype)


def _tensor(array: Any) -> Tensor:  # noqa: ANN401 - any array of a package
    contiguous = np.ascontiguousarray(array)
    if contiguous.dtype.name == "bfloat16":
        return torch.from_numpy(contiguous.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(contiguous.copy())


def assemble(loaded: Loaded, engine: str, rows: int) -> Model:
    """The model with every matrix as `engine` has it; `rows` sequences are decoded together."""
    from tailcut.kernels.gpu import model

    weights = loaded.weights
    dense = BestDense(rows)

    def make(place: str, weight: Tensor) -> contenders.Made:
        zeros = int((weight == 0).sum())
        made, kind = _make(engine, weight, loaded.bits.get(place, 16), weights.dtype, dense)
        x = torch.zeros(rows, weight.shape[1], dtype=weights.dtype, device=weights.device)
        loaded.zeros += zeros
        _count(loaded, made, kind, x)
        return made

    def gate_up(place: str, weight: Tensor) -> contenders.Apply | model.Activated:
        made = make(place, weight)
        return model.Activated(made.gated) if made.gated and weights.device.type == "cuda" else made.apply

    def head(place: str, weight: Tensor) -> contenders.Apply:
        made = dense(weight)
        loaded.weight_bytes += made.weight_bytes
        return made.apply

    with torch.inference_mode():
        return model.assemble(weights, lambda place, weight: make(place, weight).apply, head, gate_up=gate_up)


def _count(loaded: Loaded, made: contenders.Made, kind: str, x: Tensor) -> None:
    made.ready(x)
    loaded.kinds[kind] += 1
    loaded.paths[made.path(x)] += 1
    loaded.weight_bytes += made.bytes_for(x) if made.bytes_for else made.weight_bytes


def _make(engine: str, weight: Tensor, bits: int, dtype: torch.dtype, dense: BestDense) -> tuple[contenders.Made, str]:
    """One matrix as an engine holds it, and the name of that."""
    if engine == "int4":
        return contenders.int4(weight.to(dtype)), "int4"
    sparse = engine in ("2:4", "cusparselt") and is_two_four(weight)
    if sparse and engine == "2:4":
        exact = weight if bits < 16 else weight.to(dtype)
        return contenders.packed_two_four(exact, bits, dtype, "sparse"), f"2:4, {bits} bits"
    if sparse:
        return contenders.cusparselt(weight.to(dtype)), "2:4, 16 bits"
    return dense(weight.to(dtype)), "dense, 16 bits"


def is_two_four(weight: Tensor) -> bool:
    """Whether no group of four columns of a row has more than two values that are not zero."""
    if weight.shape[1] % 4:
        return False
    return bool(((weight != 0).reshape(len(weight), -1, 4).sum(-1) <= 2).all())


class BestDense:
    """Dense products: for each shape cuBLAS or torch.compile, whichever is faster for `rows` rows; timed once."""

    def __init__(self, rows: int, capture: timing.Capture = timing.Graph) -> None:
        self.rows, self.capture = rows, capture
        self._faster: Dict[tuple[int, ...], bool] = {}

    def __call__(self, weight: Tensor) -> contenders.Made:
        shape = tuple(weight.shape)
        plain = contenders.dense(weight)
        if weight.device.type != "cuda":
            return plain
        if shape not in self._faster:
            self._faster[shape] = self._compiled_is_faster(weight)
        if not self._faster[shape]:
            return plain
        compiled, rows = contenders.compiled(weight), self.rows
        fused = compiled.gated
        assert fused is not None  # noqa: S101 - what `compiled` makes has it

        def apply(x: Tensor) -> Tensor:  # compiled for that many rows only; a prompt has others
            return compiled.apply(x) if len(x) == rows else plain.apply(x)

        def gated(x: Tensor) -> Tensor:
            from tailcut.kernels.gpu.step import swiglu

            return fused(x) if len(x) == rows else swiglu(plain.apply(x))

        return contenders.Made(apply, weight.nbytes, lambda: weight, plain.again, path=compiled.path, gated=gated)

    def _compiled_is_faster(self, weight: Tensor) -> bool:
        x = torch.zeros(self.rows, weight.shape[1], dtype=weight.dtype, device=weight.device)
        copies = [weight, *(weight.clone() for _ in range(_COPIES - 1))]
        graphs: List[timing.Timed] = []
        for make in (contenders.dense, contenders.compiled):
            applied = [make(copy).apply for copy in copies]
            graphs.append(self.capture([lambda apply=apply: apply(x) for apply in applied]))  # type: ignore[misc]
        plain, compiled = timing.in_turn(graphs, _ROUNDS)
        return sorted(compiled)[_ROUNDS // 2] < sorted(plain)[_ROUNDS // 2]
