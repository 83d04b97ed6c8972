"""One engine, dense beside sparse: open both, check what runs, then time them in turns (bench/turns.py)."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from tailcut.bench.engines import PHASES, Engine, Phase
from tailcut.bench.turns import ROLES, Role, Timed, Tokens, Turns
from tailcut.bench.worker import Worker, WorkerError
from tailcut.errors import MissingEnvironmentError
from tailcut.progress import Reporter
from tailcut.results import Workload

__all__ = ["ROLES", "Logits", "Pair", "Raw", "References", "Role", "Seen", "Tokens", "measure", "open_sides"]

Logits = npt.NDArray[np.float32]
CHECK_TOKENS = 8
_TIMEOUT_S = 1800.0  # compiling a large sparse model takes minutes


@dataclass(frozen=True, slots=True)
class Pair:
    """The two packages and what they are asked to do. `tokens` int64 [batch, context]."""

    packages: dict[Role, Path]
    workload: Workload
    tokens: Tokens
    footprint_bytes: int  # memory the two workers together will need, roughly


@dataclass(slots=True)
class References:
    """ONNX Runtime's logits [1, n, vocab] of the first tokens on each package, computed at most once."""

    compute: Callable[[Role], Logits]
    known: dict[Role, Logits] = field(default_factory=dict)

    def get(self, role: Role) -> Logits:
        if role not in self.known:
            self.known[role] = self.compute(role)
        return self.known[role]


@dataclass(slots=True)
class Raw:
    """What was seen of one side beside its times; filled phase by phase."""

    load_seconds: float = 0.0
    peak_rss_bytes: int = 0
    logits_gap: float | None = None  # the largest of its phases
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a measurement gave, and why prefill is missing from it ("" when it is not)."""

    raw: dict[Role, Raw]
    timed: dict[Phase, Timed]
    prefill_reason: str


def measure(name: str, engine: Engine, pair: Pair, references: References, report: Reporter) -> Seen:
    """Both sides' samples and evidence; WorkerError with the reason if decoding cannot be measured honestly.

    Where prefill is a graph of its own, its failure does not take the decode measurement along.
    """
    raw: dict[Role, Raw] = {"dense": Raw(), "sparse": Raw()}
    if not engine.SEPARATE_PHASES:
        asked = PHASES if pair.workload.prefill_block_count else PHASES[1:]
        timed = _measure(name, engine, pair, raw, asked, references, report)
        return Seen(raw, timed, "" if "prefill" in timed else "not asked for")
    timed = _measure(name, engine, pair, raw, ("decode",), references, report)
    if not pair.workload.prefill_block_count:
        return Seen(raw, timed, "not asked for")
    try:
        return Seen(raw, timed | _measure(name, engine, pair, raw, ("prefill",), references, report), "")
    except MissingEnvironmentError as error:
        return Seen(raw, timed, str(error))


def _measure(
    name: str,
    engine: Engine,
    pair: Pair,
    raw: dict[Role, Raw],
    phases: tuple[Phase, ...],
    references: References,
    report: Reporter,
) -> dict[Phase, Timed]:
    """The blocks of these phases with one worker a side, and `raw` filled."""
    with ExitStack() as stack:
        workers = open_sides(stack, name, engine, pair, phases[0], raw, references)
        timed = {phase: Turns(name, phase, pair.workload, pair.tokens, workers, report).run() for phase in phases}
        for role in ROLES:
            raw[role].peak_rss_bytes = max(raw[role].peak_rss_bytes, workers[role].close())
    return timed


def open_sides(
    stack: ExitStack,
    name: str,
    engine: Engine,
    pair: Pair,
    phase: Phase,
    raw: dict[Role, Raw],
    references: References,
) -> dict[Role, Worker]:
    """One worker a side, shown to compute its package; what they said of themselves goes into `raw`."""
    _require_memory(pair)
    workers = {role: _open(stack, engine, pair, role, phase, raw[role]) for role in ROLES}
    for role in ROLES:
        gap = _require_same_logits(name, engine, workers[role], pair, role, references)
        raw[role].logits_gap = max(raw[role].logits_gap or 0.0, gap)
    return workers


def _open(stack: ExitStack, engine: Engine, pair: Pair, role: Role, phase: Phase, raw: Raw) -> Worker:
    launch = engine.launch(pair.packages[role], phase, pair.workload)
    worker = stack.enter_context(Worker(launch, timeout_s=_TIMEOUT_S))
    opened, _ = worker.ask("open", **launch.settings)
    evidence, _ = worker.ask("describe")
    reason = engine.refuse(evidence)
    if reason:
        raise WorkerError(f"{role} package, {phase}: {reason}")
    if not raw.evidence:  # decoding opens first: its load and evidence are what the result states
        raw.load_seconds = float(opened["load_seconds"])
        raw.evidence = evidence
    return worker


def _require_memory(pair: Pair) -> None:
    free = psutil.virtual_memory().available
    if pair.footprint_bytes > free:
        raise MissingEnvironmentError(
            f"dense and sparse side by side need about {pair.footprint_bytes / 1e9:.1f} GB of memory, "
            f"{free / 1e9:.1f} GB are free"
        )


def _require_same_logits(
    name: str, engine: Engine, worker: Worker, pair: Pair, role: Role, references: References
) -> float:
    """How far an engine's first logits are from ONNX Runtime's on the same weights; refused beyond its tolerance."""
    _, arrays = worker.ask("logits", {"tokens": first_tokens(pair)})
    if engine.TOLERANCE == 0.0:  # this is ONNX Runtime: spare the engines after it a load of both packages
        references.known[role] = arrays["logits"]
        return 0.0
    want = references.get(role)
    gap = float(np.abs(arrays["logits"] - want).max() / np.abs(want).max())
    limit = allowed_gap(engine, pair.packages[role])
    if not gap <= limit:  # also catches NaN
        raise WorkerError(
            f"{role} package: logits differ from ONNX Runtime's by {gap:.1e} of their scale, at most "
            f"{limit:.0e} is allowed; {name} computes something else than the model"
        )
    return gap


def allowed_gap(engine: Engine, package: Path) -> float:
    """The engine's TOLERANCE, or what its `tolerance` says of this package where arithmetic depends on the weights."""
    own = getattr(engine, "tolerance", None)
    return float(own(package)) if callable(own) else engine.TOLERANCE


def first_tokens(pair: Pair) -> Tokens:
    """The tokens whose logits are compared, int64 [1, n]."""
    return np.ascontiguousarray(pair.tokens[:1, : min(CHECK_TOKENS, pair.workload.prompt_tokens)])
