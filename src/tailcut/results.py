"""What a benchmark measured and what a gate made of it: raw samples with units, intervals, evidence, verdict.

Units are in the names. Ratios are stated as dense over sparse for speed (more than 1: sparse is faster) and as
sparse over dense for costs (perplexity, size, memory). Nothing here imports torch or an engine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from tailcut.codec import FORBID_EXTRA
from tailcut.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_PASS, InputError

Blocks = tuple[tuple[float, ...], ...]  # samples of each ABBA block
Outcome = Literal["pass", "fail", "inconclusive"]
EXIT_CODES: Mapping[str, int] = {"pass": EXIT_PASS, "fail": EXIT_GATE_FAILED, "inconclusive": EXIT_INCONCLUSIVE}


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it was measured. No host or user names: `fingerprint` hashes the hardware lines only."""

    cpu: str
    isa: tuple[str, ...]  # the SIMD flags that matter for these kernels
    cores: int  # physical cores this process may use
    logical_cpus: int
    ram_bytes: int
    l3_bytes: int
    governor: str | None  # frequency governor; None where the system does not say
    kernel: str
    versions: Mapping[str, str]
    commit: str | None  # of tailcut, with "+changes" when the tree is not clean; None outside git
    fingerprint: str


@dataclass(frozen=True, slots=True)
class BandwidthPoint:
    """Read bandwidth with so many threads: the best pass, and every pass, in 1e9 bytes per second."""

    threads: int
    best_gb_per_s: float
    samples_gb_per_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Stopping:
    """When to stop adding ABBA blocks of decoding (bench/stopping.py); the interval holds although it is looked at often."""

    precision: float | None = None  # half the interval over the speedup
    at_least: float | None = None  # the interval is clear of this speedup, on either side
    minutes: float | None = None  # of the blocks of one engine
    min_blocks: int = 4
    max_blocks: int = 32

    def __post_init__(self) -> None:
        for name in ("precision", "at_least", "minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"{name} must be a positive number, got {value}")
        if self.precision is None and self.at_least is None and self.minutes is None:
            raise InputError("nothing says when to stop; state precision, at_least or minutes")
        if not 3 <= self.min_blocks <= self.max_blocks <= 200:
            raise InputError(
                f"min_blocks {self.min_blocks} and max_blocks {self.max_blocks} must be in order and from 3 to 200"
            )


@dataclass(frozen=True, slots=True)
class Workload:
    """What every engine is asked to do, dense and sparse alike."""

    batch: int = 1
    prompt_tokens: int = 64
    new_tokens: int = 32  # decode steps each side takes in one ABBA block (half of them in each of its two visits)
    context: int = 256  # KV cache length the decode steps end at, the new token included
    threads: int = 1
    blocks: int = 8  # ABBA blocks of decoding, where `stopping` does not decide
    prefill_blocks: int | None = None  # None: min(blocks, 4), a prefill costs as much as dozens of steps
    warmup_steps: int = 2  # discarded after each switch from one side to the other, at least
    seed: int = 0
    confidence: float = 0.95
    stopping: Stopping | None = None  # None: `blocks`

    def __post_init__(self) -> None:
        for name in ("batch", "prompt_tokens", "new_tokens", "threads", "blocks"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.prompt_tokens + self.new_tokens > self.context:
            raise InputError(
                f"context {self.context} cannot hold {self.prompt_tokens} prompt and {self.new_tokens} new tokens"
            )
        if self.steps_per_visit + self.warmup_steps >= self.context:
            raise InputError(f"context {self.context} cannot hold {self.new_tokens} steps and their warm-up")
        if not 0.5 <= self.confidence < 1.0:
            raise InputError(f"confidence must be in [0.5, 1), got {self.confidence}")

    @property
    def steps_per_visit(self) -> int:
        return (self.new_tokens + 1) // 2

    @property
    def prefill_block_count(self) -> int:
        return min(self.blocks, 4) if self.prefill_blocks is None else self.prefill_blocks


@dataclass(frozen=True, slots=True)
class Discarded:
    """An ABBA block that is in no statistic because the sentinel found the machine disturbed."""

    block: int  # its place among all blocks that were measured, from 0
    reason: str
    dense_ms: tuple[float, ...]
    sparse_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Sentinel:
    """Readings of the reference computation (bench/sentinel.py) in ms: compute, memory."""

    compute_limit_ms: float  # a block with a reading beyond a limit is disturbed
    memory_limit_ms: float
    calibration_compute_ms: tuple[float, ...]  # before the first block: the limits are made from these
    calibration_memory_ms: tuple[float, ...]
    compute_ms: Blocks  # around and inside each block that was measured
    memory_ms: Blocks


@dataclass(frozen=True, slots=True)
class Procedure:
    """How the blocks of one phase came about."""

    phase: Literal["prefill", "decode"]
    cpus: tuple[int, ...]  # that both workers were kept on, one thread each
    settling_visits: int  # untimed, of each side after loading, until it got no faster
    warmup_steps: int  # discarded after each switch
    measured_blocks: int
    discarded: tuple[Discarded, ...]
    loud: bool  # so few blocks were undisturbed that none was discarded: no claim can rest on these times
    ended: str  # why no further block was measured
    seconds: float  # from before the first block to after the last
    look_confidence: float  # of the interval at each look, so that all looks together have the workload's
    sentinel: Sentinel


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of medians with its interval from a paired bootstrap over blocks (bench/stats.py)."""

    value: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Roofline:
    """Bytes one decode step must read (weights as the engine holds them, and the KV cache) and the rate that means."""

    weight_bytes: int
    kv_bytes: int
    estimate: bool  # True: the engine's own format is unknown; a bitmask-sized lower bound stands in
    gb_per_s: float
    share: float | None  # of the measured read bandwidth; None when the bytes fit in cache

    @property
    def bytes_per_token(self) -> int:
        return self.weight_bytes + self.kv_bytes


@dataclass(frozen=True, slots=True)
class Side:
    """One of the pair under one engine."""

    role: Literal["dense", "sparse"]
    package: str  # sha256 of the manifest of the package that ran
    bytes_on_disk: int
    load_seconds: float
    prefill_ms: Blocks  # one prefill of the whole prompt each (time to first token)
    decode_ms: Blocks  # one step each (time per output token, all sequences of the batch at once)
    others_cpu_share: tuple[float, ...]  # of the machine, used by anyone else while this side decoded, per block
    peak_rss_bytes: int
    tokens_per_second: float  # batch / median decode step
    roofline: Roofline
    evidence: Mapping[str, str | int | float | bool | None]  # what the engine says it ran
    logits_gap: float | None = None  # largest |logits - ONNX Runtime's| over the largest |ONNX Runtime's|, same weights


@dataclass(frozen=True, slots=True)
class Engagement:
    """Whether the engine showed that a sparse kernel ran on the sparse package, and the sentence that says so."""

    proven: bool
    reason: str


@dataclass(frozen=True, slots=True)
class EngineResult:
    """A paired measurement, or the reason why there is none."""

    engine: str
    status: Literal["measured", "not measured"]
    reason: str = ""
    version: str = ""
    engagement: Engagement | None = None
    dense: Side | None = None
    sparse: Side | None = None
    decode_speedup: Ratio | None = None
    prefill_speedup: Ratio | None = None
    prefill_reason: str = ""  # why prefill was not measured although decoding was
    byte_ratio: float | None = None  # dense over sparse bytes per token: the ceiling of a bandwidth-bound speedup
    dense_drift: float | None = None  # largest over smallest block median of the dense side: what noise alone does
    licence: str = ""  # a sentence to show beside the numbers, where the engine's licence asks for care
    cautions: tuple[str, ...] = ()
    procedures: tuple[Procedure, ...] = ()  # one a phase; none in files of earlier versions

    def procedure(self, phase: Literal["prefill", "decode"]) -> Procedure | None:
        return next((item for item in self.procedures if item.phase == phase), None)


@dataclass(frozen=True, slots=True)
class Quality:
    """Perplexity of the pair on one text; `ratio` is sparse over dense with a paired bootstrap over windows."""

    __pydantic_config__: ClassVar = FORBID_EXTRA
    text: str
    text_sha256: str
    joining: str
    context: int  # tokens a window, the begin-of-text token included
    bos: int | None  # the tokenizer's own begin-of-text token at the start of every window; None: it has none
    tokens_scored: int
    dense_perplexity: float
    sparse_perplexity: float
    ratio: Ratio
    dense_nll: tuple[float, ...]  # nats, summed over each window
    sparse_nll: tuple[float, ...]
    measured_with: str = ""  # "onnxruntime", "torch": what computed the logits
    kl_nats: tuple[float, ...] = ()  # mean KL(dense || sparse) over each window's positions, nats; (): not measured
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PackageFacts:
    """What the manifest of a package says, for the tables of a report."""

    sha256: str  # of the manifest
    bytes_on_disk: int
    sparsity: float  # zeros over the prunable linears of the decoder blocks
    whole_model_sparsity: float
    total_parameters: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BenchResult:
    """Everything one `tailcut bench` measured on one machine in one session."""

    __pydantic_config__: ClassVar = FORBID_EXTRA
    VISIBLE_TEXT: ClassVar[bool] = True
    machine: Machine
    bandwidth: tuple[BandwidthPoint, ...]
    workload: Workload
    dense: PackageFacts
    sparse: PackageFacts
    engines: tuple[EngineResult, ...]
    quality: tuple[Quality, ...] = ()
    made_by: str = ""

    def engine(self, name: str) -> EngineResult | None:
        return next((result for result in self.engines if result.engine == name), None)


@dataclass(frozen=True, slots=True)
class Check:
    """One limit against one value. `low` and `high` bound the value; they equal it where it is exact."""

    name: str
    outcome: Outcome
    limit: float | None
    value: float | None
    low: float | None
    high: float | None
    sentence: str
    engine: str = ""  # the engine it is about; "": the package


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says: fail if a check fails, else inconclusive if one is, else pass."""

    __pydantic_config__: ClassVar = FORBID_EXTRA
    VISIBLE_TEXT: ClassVar[bool] = True
    outcome: Outcome
    engine: str  # the engine that was judged
    checks: tuple[Check, ...]
    note: str = ""
    limits: Mapping[str, float | bool | str | None] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.outcome]


@dataclass(frozen=True, slots=True)
class RecoveryPoint:
    """One look at a recovery under way. `loss` and `heldout` are in the stage's unit."""

    step: int  # optimiser steps so far; of a method that goes block by block, the block
    tokens: int  # learnt from so far
    seconds: float
    heldout: float  # on held-out text; of a block, after its recovery
    loss: float | None = None  # mean on training text since the last look; of a block, before its recovery


@dataclass(frozen=True, slots=True)
class RecoveryStage:
    """One method of a recovery."""

    method: str
    unit: str  # "KL, nats a token", "relative output error"
    ended: str  # why no further step was taken
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_step: int | None = None  # whose weights were kept; None: the last
    curve: tuple[RecoveryPoint, ...] = ()


@dataclass(frozen=True, slots=True)
class RecoveryResult:
    """What `tailcut recover` did to one model: `recovery.json` in the directory that it wrote."""

    __pydantic_config__: ClassVar = FORBID_EXTRA
    VISIBLE_TEXT: ClassVar[bool] = True
    stages: tuple[RecoveryStage, ...]
    teacher: str
    teacher_sha256: str
    texts: Mapping[str, str]  # file name -> sha256
    train_tokens: int  # of the text; a stage may have gone over them more than once
    heldout_tokens: int
    heldout_kl_before: float  # KL(teacher || model) of the next token, nats, float32
    heldout_kl_after: float
    sparsity: float
    mask_sha256_before: str  # of which block weights are not zero
    mask_sha256_after: str  # the same unless `new_zeros`
    new_zeros: int = 0  # kept weights that rounding made zero
    made_by: str = ""
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)
