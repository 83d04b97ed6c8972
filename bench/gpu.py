"""What `tailcut bench-gpu` measures: products of single matrices, and whole decode steps, each beside dense cuBLAS.

The measuring happens in `bench/workers/gpu_worker.py`, in a process of its own; here are the values that come back and
what follows from them. Units: microseconds for a product, milliseconds for a step, 1e9 bytes a second.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from tailcut import __version__
from tailcut.bench.gpu_device import describe_gpu, gpu_problem
from tailcut.bench.lock import machine_lock
from tailcut.bench.machine import describe_machine
from tailcut.bench.worker import SCRIPTS, Launch, Worker, WorkerError
from tailcut.codec import FORBID_EXTRA
from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.progress import Reporter, silent
from tailcut.results import Machine

DENSE: Final = "dense"  # cuBLAS, bfloat16: what every product's speedup is over
COMPILED: Final = "dense compiled"  # torch.compile, tuned: decode steps are compared with the faster of the two
# out x in of LLaMA-7B, Llama-3-8B and Mistral
SHAPES: Final = ((4096, 4096), (11008, 4096), (4096, 11008), (14336, 4096), (4096, 14336), (6144, 4096), (8192, 8192))
ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 256, 2048)
CONTENDERS: Final = (
    DENSE,
    "2:4 bf16",
    "2:4 int8",
    "2:4 int4",
    "cusparselt 2:4",
    "int4",
    "unstructured 50% bf16",
    "unstructured 80% bf16",
    "unstructured 80% int8",
)
DECODERS: Final = (DENSE, COMPILED, *CONTENDERS[1:])
_TIMEOUT_S: Final = 1800.0


@dataclass(frozen=True, slots=True)
class Product:
    """One matrix [out, in] times `rows` rows of x by one contender; `reason` says why there are no samples."""

    shape: tuple[int, int]
    rows: int
    contender: str
    us: tuple[float, ...] = ()  # one a round: a CUDA graph over distinct copies of the matrix, divided by its length
    weight_bytes: int = 0
    moved_bytes: int = 0  # weights, x and the result, each once
    path: str = ""  # which kernel it was, in the words of what chose it
    sqnr_db: float | None = None  # of the result against a float64 product with the weights as stored
    weights_sqnr_db: float | None = None  # the same against the weights before they were rounded to fewer bits
    reason: str = ""

    @property
    def median_us(self) -> float | None:
        return float(np.median(self.us)) if self.us else None

    @property
    def gb_per_s(self) -> float | None:
        return self.moved_bytes / self.median_us / 1e3 if self.median_us else None


@dataclass(frozen=True, slots=True)
class Decode:
    """Decode steps of one model by one contender; the same loop, captured in a CUDA graph, for each."""

    model: str
    contender: str
    batch: int
    context: int  # tokens in the cache when the timed steps begin
    ms: tuple[float, ...] = ()
    weight_bytes: int = 0
    cache_bytes: int = 0  # keys and values that one step reads
    memory_bytes: int = 0  # of the GPU, at most
    path: str = ""
    reason: str = ""

    @property
    def median_ms(self) -> float | None:
        return float(np.median(self.ms)) if self.ms else None

    @property
    def gb_per_s(self) -> float | None:
        return (self.weight_bytes + self.cache_bytes) / self.median_ms / 1e6 if self.median_ms else None


@dataclass(frozen=True, slots=True)
class GpuResult:
    """Everything one session measured on one GPU, raw samples and all."""

    __pydantic_config__: ClassVar = FORBID_EXTRA
    machine: Machine
    gpu: Mapping[str, Any]
    copy_gb_per_s: tuple[float, ...]  # device to device, bytes read and written, one a pass
    products: tuple[Product, ...] = ()
    decodes: tuple[Decode, ...] = ()
    made_by: str = ""

    @property
    def bandwidth(self) -> float:
        return float(np.median(self.copy_gb_per_s)) if self.copy_gb_per_s else float("nan")

    def product(self, shape: Sequence[int], rows: int, contender: str) -> Product | None:
        wanted = (tuple(shape), rows, contender)
        return next((p for p in self.products if (p.shape, p.rows, p.contender) == wanted), None)

    def decode(self, like: Decode, contender: str) -> Decode | None:
        wanted = (like.model, like.batch, like.context, contender)
        return next((d for d in self.decodes if (d.model, d.batch, d.context, d.contender) == wanted), None)

    def speedup(self, found: Product) -> float | None:
        """Dense time over this one's, of the same shape and rows."""
        dense = self.product(found.shape, found.rows, DENSE)
        return _ratio(dense.median_us if dense else None, found.median_us)

    def ceiling(self, found: Product) -> float | None:
        """Dense bytes over this one's: what a product limited by memory can gain."""
        dense = self.product(found.shape, found.rows, DENSE)
        return dense.moved_bytes / found.moved_bytes if dense and dense.moved_bytes and found.moved_bytes else None

    def best_dense(self, like: Decode) -> Decode | None:
        """The faster of the dense loops with this one's model, batch and context."""
        found = [self.decode(like, name) for name in (DENSE, COMPILED)]
        return min((d for d in found if d and d.median_ms), key=lambda d: d.median_ms or 0.0, default=None)

    def decode_speedup(self, found: Decode) -> float | None:
        """The best dense loop's time over this one's."""
        dense = self.best_dense(found)
        return _ratio(dense.median_ms if dense else None, found.median_ms)

    def decode_ceiling(self, found: Decode) -> float | None:
        dense = self.best_dense(found)
        if dense is None or not dense.weight_bytes or not found.weight_bytes:
            return None
        return (dense.weight_bytes + dense.cache_bytes) / (found.weight_bytes + found.cache_bytes)


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """What a session measures. `rounds` times every contender of a case takes its turn."""

    shapes: tuple[tuple[int, int], ...] = SHAPES
    rows: tuple[int, ...] = ROWS
    contenders: tuple[str, ...] = CONTENDERS
    models: tuple[str, ...] = ("llama-7b",)
    decode_contenders: tuple[str, ...] = DECODERS
    context: int = 512
    batch: int = 1
    rounds: int = 15
    steps: int = 50  # timed decode steps a contender
    pool_bytes: int = 800_000_000  # distinct weights that one graph goes through: far beyond the L2 cache
    seed: int = 0
    tune: bool = True  # False: the dispatch's rule decides, and times that earlier sessions kept

    def __post_init__(self) -> None:
        for out, columns in self.shapes:
            if out < 1 or columns < 4 or columns % 4:
                raise InputError(f"shape {out}x{columns}: 2:4 needs a multiple of 4 columns, at least 4, and a row")
        for name in ("context", "batch", "rounds", "steps", "pool_bytes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if any(rows < 1 for rows in self.rows):
            raise InputError(f"rows of x must be at least 1, got {min(self.rows)}")
        for wanted in (*self.contenders, *self.decode_contenders):
            if wanted not in DECODERS:
                raise InputError(f"unknown contender {wanted!r}; choose from {', '.join(DECODERS)}")


def launch() -> Launch:
    """The worker that measures, in this interpreter."""
    return Launch(sys.executable, SCRIPTS / "gpu_worker.py", {})


def measure(plan: GpuPlan, report: Reporter = silent, launched: Launch | None = None) -> GpuResult:
    """One session; MissingEnvironmentError without a usable GPU. A contender that fails keeps its place with the reason."""
    if launched is None and (problem := gpu_problem(triton=True)):
        raise MissingEnvironmentError(problem)
    with machine_lock(report), Worker(launched or launch(), timeout_s=_TIMEOUT_S) as worker:
        opened, _ = worker.ask("open")
        products = _products(worker, plan, report)
        decodes = _decodes(worker, plan, report)
        worker.close()
    return GpuResult(
        machine=describe_machine(),
        gpu=opened["gpu"] if launched is not None else describe_gpu(),
        copy_gb_per_s=tuple(opened["copy_gb_per_s"]),
        products=tuple(products),
        decodes=tuple(decodes),
        made_by=f"tailcut {__version__} bench-gpu",
    )


def _products(worker: Worker, plan: GpuPlan, report: Reporter) -> list[Product]:
    found: list[Product] = []
    settings: dict[str, Any] = {
        "rounds": plan.rounds,
        "pool_bytes": plan.pool_bytes,
        "seed": plan.seed,
        "tune": plan.tune,
    }
    for done, shape in enumerate(plan.shapes):
        report("products", done, len(plan.shapes), f"{shape[0]} x {shape[1]}")
        body: dict[str, Any] = {"shape": list(shape), "rows": list(plan.rows), "contenders": list(plan.contenders)}
        try:
            reply, _ = worker.ask("product", **body, **settings)
        except WorkerError as error:
            raise WorkerError(f"{shape[0]} x {shape[1]}: {error}") from error
        found += [product_of(entry, shape) for entry in reply["products"]]
    return found


def product_of(entry: Mapping[str, Any], shape: tuple[int, int]) -> Product:
    """One contender's part of a worker's answer."""
    return Product(shape=shape, **{**entry, "us": tuple(entry.get("us", ()))})


def _decodes(worker: Worker, plan: GpuPlan, report: Reporter) -> list[Decode]:
    found: list[Decode] = []
    for done, model in enumerate(plan.models):
        report("decode", done, len(plan.models), model)
        work: dict[str, Any] = {"model": model, "batch": plan.batch, "context": plan.context}
        settings: dict[str, Any] = {
            "steps": plan.steps,
            "seed": plan.seed,
            "tune": plan.tune,
            "contenders": list(plan.decode_contenders),
        }
        reply, _ = worker.ask("decode", **work, **settings)
        found += [Decode(**work, **{**entry, "ms": tuple(entry.get("ms", ()))}) for entry in reply["decodes"]]
    return found


def _ratio(dense: float | None, other: float | None) -> float | None:
    return dense / other if dense and other else None
