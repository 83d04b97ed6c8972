"""Many engines side by side on one machine, in one session: each row is an engine on a package.

All workers of a session are open at once. A round reads a memory stream (was the machine quiet?) and then visits every
row once, in an order that starts one row later each round; a visit takes some warm-up steps, then timed ones. Workers
that wait are stopped by a signal, so that threads which spin after their work disturb nobody.
A row that cannot run, or whose logits are not the model's, stays in the result with the reason.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt

from tailcut.bench import engines
from tailcut.bench.bandwidth import Stream
from tailcut.bench.engines import Engine, Phase
from tailcut.bench.load import OthersLoad
from tailcut.bench.lock import machine_lock
from tailcut.bench.machine import describe_machine
from tailcut.bench.roofline import read_dimensions
from tailcut.bench.run import package_facts
from tailcut.bench.worker import Worker
from tailcut.codec import FORBID_EXTRA
from tailcut.errors import InputError, MissingEnvironmentError, TailcutError
from tailcut.manifest import read_manifest, try_manifest
from tailcut.progress import Reporter, silent
from tailcut.results import Blocks, Machine, PackageFacts, Workload

Weights = Literal["float32", "float16", "bfloat16", "int8", "int4"]
Tokens = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]
# Largest allowed |logits - reference| / |reference|, L2 over the first tokens: rounding of the weights a matrix (1 %, 9 %)
# grows over the layers of a random model (int4: 0.78 after 32); logits of another function are 1.4 apart.
LIMITS: Final[dict[str, float]] = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1, "int8": 0.3, "int4": 0.9}
CHECK_TOKENS: Final = 8
_TIMEOUT_S: Final = 1800.0


@dataclass(frozen=True, slots=True)
class Row:
    """An engine on a package. `weights` is the precision that the engine multiplies with."""

    engine: str
    package: Path
    weights: Weights

    @property
    def label(self) -> str:
        return f"{self.engine} {self.weights} {self.package.name}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What every row of a session is asked to do. Decoding: `rounds` visits of `steps` steps; prefill: one each."""

    workload: Workload
    phase: Phase
    rounds: int
    steps: int
    warmup: int = 2


@dataclass(frozen=True, slots=True)
class Measured:
    """One row of one session; `reason` says why there are no samples."""

    engine: str
    package: str  # the directory's name
    weights: Weights
    facts: PackageFacts | None = None
    reason: str = ""
    version: str = ""
    ms: Blocks = ()  # [rounds][steps]
    others_cpu_share: tuple[float, ...] = ()
    logits_gap: float | None = None  # L2, relative, to ONNX Runtime's float32 graph of the same package
    load_seconds: float = 0.0
    peak_rss_bytes: int = 0
    bytes_on_disk: int = 0  # of the directory that the engine opened
    evidence: dict[str, Any] = field(default_factory=dict)
    sparse_kernel: bool = False
    sparse_reason: str = ""
    licence: str = ""

    @property
    def label(self) -> str:
        return f"{self.engine} {self.weights} {self.package}"


@dataclass(frozen=True, slots=True)
class Session:
    """One session with all raw samples."""

    __pydantic_config__: ClassVar = FORBID_EXTRA
    machine: Machine
    workload: Workload
    phase: Phase
    rounds: int
    steps: int
    group: str  # what the session is about: "s80", "dense"
    stream_gb_per_s: tuple[float, ...]  # one a round
    rows: tuple[Measured, ...]

    def row(self, label: str) -> Measured | None:
        return next((row for row in self.rows if row.label == label), None)


def measure(group: str, rows: Sequence[Row], plan: Plan, report: Reporter = silent) -> Session:
    """Open every row that can run, check its logits, and time all of them in turn."""
    if not rows:
        raise InputError(f"{group}: no rows to measure; name engines and packages that are there")
    sizes = read_dimensions(rows[0].package)
    rng = np.random.default_rng(plan.workload.seed)
    tokens = rng.integers(0, sizes.vocab, (plan.workload.batch, plan.workload.context), np.int64)
    with machine_lock(report), ExitStack() as stack:
        seats = []
        for done, row in enumerate(rows):
            report("open", done, len(rows), row.label)
            seats.append(Seat(row, plan, tokens, stack))
        stream = Stream(plan.workload.threads)
        rates = []
        for number in range(plan.rounds):
            rates.append(stream.gb_per_s())
            turn = [*seats[number % len(seats) :], *seats[: number % len(seats)]]
            for seat in turn:
                seat.visit()
            report(group, number + 1, plan.rounds, f"stream {rates[-1]:.1f} GB/s; {_note(seats)}")
        found = tuple(seat.close() for seat in seats)
    work = plan.workload
    return Session(describe_machine(), work, plan.phase, plan.rounds, plan.steps, group, tuple(rates), found)


def limit_of(row: Row) -> float:
    """What the logits may differ by: the roundest part of the model decides, the head's where it is stored in fewer bits."""
    manifest = try_manifest(row.package)
    head = str(manifest.details.get("head_precision", "")) if manifest else ""
    return max(LIMITS[row.weights], LIMITS.get(head, 0.0))


class Seat:
    """One row while its session runs: the worker, stopped except during its visits, or the reason for its absence."""

    def __init__(self, row: Row, plan: Plan, tokens: Tokens, stack: ExitStack) -> None:
        self.row, self.plan, self.tokens = row, plan, tokens
        self.engine: Engine = engines.load(row.engine)
        self.samples: list[tuple[float, ...]] = []
        self.others: list[float] = []
        self.reason = ""
        self.worker: Worker | None = None
        self.facts: dict[str, Any] = {}
        try:
            self._open(stack)
        except TailcutError as error:
            self._drop(str(error))

    def _open(self, stack: ExitStack) -> None:
        row, plan = self.row, self.plan
        reason = self.engine.available() or self.engine.unfit(row.package, plan.workload)
        if reason:
            raise MissingEnvironmentError(reason)
        want = reference(row, plan.workload)
        launch = self.engine.launch(row.package, plan.phase, plan.workload)
        self.worker = stack.enter_context(Worker(launch, timeout_s=_TIMEOUT_S))
        opened, _ = self.worker.ask("open", **launch.settings)
        evidence, _ = self.worker.ask("describe")
        if reason := self.engine.refuse(evidence):
            raise MissingEnvironmentError(reason)
        gap = self._gap(want)
        self.facts = {"load_seconds": float(opened["load_seconds"]), "evidence": evidence, "logits_gap": gap}
        self.load = OthersLoad([self.worker.pid])
        self._ask()  # fills the cache and touches every page
        self.worker.rest()

    def _gap(self, want: Logits) -> float:
        _, arrays = self._working.ask("logits", {"tokens": check_tokens(self.row, self.plan.workload)})
        gap = relative_l2(arrays["logits"], want)
        limit = limit_of(self.row)
        if not gap <= limit:  # also catches NaN
            raise MissingEnvironmentError(
                f"logits differ from ONNX Runtime's float32 by {gap:.2g} (L2, relative), {limit:.2g} is allowed for "
                f"{self.row.weights}; it computes something else than the model"
            )
        return gap

    def visit(self) -> None:
        """One turn of a round; a row that fails is dropped, the session goes on."""
        if self.worker is None:
            return
        self.load.start()
        try:
            times = self._ask()
        except TailcutError as error:
            self._drop(str(error))
            return
        self.others.append(self.load.share())
        self.samples.append(times)
        self.worker.rest()

    def _ask(self) -> tuple[float, ...]:
        """The times of one visit in ms."""
        plan, work = self.plan, self.plan.workload
        if plan.phase == "prefill":
            prompt = {"tokens": np.ascontiguousarray(self.tokens[:, : work.prompt_tokens])}
            _, arrays = self._working.ask("prefill", prompt, repeats=1, warmup=0)
        else:
            settings = {"context": work.context, "seed": work.seed, "steps": plan.steps, "warmup": plan.warmup}
            _, arrays = self._working.ask("decode", {"tokens": self.tokens}, **settings)
        times = np.asarray(arrays["ms"], np.float64)
        if times.size == 0 or not np.all(np.isfinite(times) & (times > 0)):
            raise MissingEnvironmentError(f"engine {self.row.engine} returned no usable {plan.phase} times")
        return tuple(float(value) for value in times)

    @property
    def _working(self) -> Worker:
        if self.worker is None:
            raise MissingEnvironmentError(self.reason or "no worker is open")
        return self.worker

    def _drop(self, reason: str) -> None:
        self.reason = reason
        if self.worker is not None:
            self.worker.kill()
            self.worker = None

    def close(self) -> Measured:
        """End the worker and state what was seen."""
        row = self.row
        blank: dict[str, Any] = {"engine": row.engine, "package": row.package.name, "weights": row.weights}
        facts = package_facts(row.package) if (row.package / "manifest.json").is_file() else None
        if self.worker is None:
            return Measured(**blank, facts=facts, reason=self.reason, licence=self.engine.LICENCE)
        peak = self.worker.close()
        evidence = self.facts["evidence"]
        zeros = sum(layer.zeros for layer in read_manifest(row.package).layers.values())
        shown = self.engine.engagement(evidence, zeros)
        opened = self.engine.directory(row.package)
        return Measured(
            **blank,
            facts=facts,
            version=str(evidence.get("version", "")),
            ms=tuple(self.samples),
            others_cpu_share=tuple(self.others),
            peak_rss_bytes=peak,
            bytes_on_disk=sum(path.stat().st_size for path in opened.iterdir() if path.is_file()),
            sparse_kernel=shown.proven,
            sparse_reason=shown.reason,
            licence=self.engine.LICENCE,
            **self.facts,
        )


def relative_l2(got: Logits, want: Logits) -> float:
    """|got - want| / |want|, both [..., vocab]."""
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def check_tokens(row: Row, workload: Workload) -> Tokens:
    """The tokens whose logits are compared, int64 [1, n]."""
    vocabulary = read_dimensions(row.package).vocab
    return np.random.default_rng(workload.seed).integers(0, vocabulary, (1, CHECK_TOKENS), np.int64)


def reference(row: Row, workload: Workload) -> Logits:
    """ONNX Runtime's logits on the package's standard graph, every matrix in float32; kept beside the package."""
    tokens, kept = check_tokens(row, workload), kept_logits(row.package)
    if kept.is_file():
        return np.asarray(np.load(kept), np.float32)
    launch = engines.load("onnxruntime").launch(row.package, "prefill", workload)
    with Worker(launch, timeout_s=_TIMEOUT_S) as worker:
        worker.ask("open", **launch.settings)
        _, arrays = worker.ask("logits", {"tokens": tokens})
    np.save(kept, arrays["logits"])
    return np.asarray(arrays["logits"], np.float32)


def kept_logits(package: Path) -> Path:
    """Where the reference logits of a package are kept."""
    return package.with_name(f"{package.name}.logits-{package_facts(package).sha256[:16]}.npy")


def _note(seats: Sequence[Seat]) -> str:
    shown = (f"{s.row.engine} {np.median(s.samples[-1]):.1f}" for s in seats if s.samples)
    return ", ".join(shown) + " ms"
