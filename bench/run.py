"""`bench`: dense beside sparse on each engine, with the machine's bandwidth, evidence, intervals and cautions.

An engine that cannot be measured is reported as "not measured" with the reason; it never becomes a number.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tailcut import __version__
from tailcut.bench import engines as registry
from tailcut.bench import pair as pairing
from tailcut.bench.bandwidth import best_of, measure_bandwidth
from tailcut.bench.engines import Engine
from tailcut.bench.lock import machine_lock
from tailcut.bench.machine import describe_machine, usable_cpus
from tailcut.bench.pair import Logits, Pair, References, Role, Seen, first_tokens
from tailcut.bench.roofline import Dimensions, broken, kv_bytes, read_dimensions, roofline, weight_bytes
from tailcut.bench.stats import drift, median_ratio
from tailcut.bench.turns import Timed
from tailcut.bench.worker import Worker
from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.manifest import MANIFEST_NAME, Manifest, read_manifest
from tailcut.progress import Reporter, silent
from tailcut.results import BandwidthPoint, BenchResult, EngineResult, Machine, PackageFacts, Ratio, Side, Workload

_NOISY = 0.10  # a block in which others used more of the machine, or a drift beyond it, is worth a caution
_LITTLE = 0.25  # of the gain that the bytes would allow
# Peak over plain float32 weights: an engine holds its packed copy beside what it read while it loads.
_LOADING = 1.5


def bench(
    dense: Path, sparse: Path, *, engines: Sequence[str], workload: Workload, report: Reporter = silent
) -> BenchResult:
    """Measure `sparse` against `dense` on every named engine, one after the other, with the machine locked."""
    loaded = {name: registry.load(name) for name in dict.fromkeys(engines)}
    if not loaded:
        raise InputError(f"no engine was named; choose from {', '.join(registry.names())}")
    if workload.threads > len(usable_cpus()):
        raise InputError(f"threads {workload.threads} are more than the {len(usable_cpus())} CPUs usable here")
    session = Session(dense, sparse, workload, report)
    with machine_lock(report):
        machine = describe_machine()
        before = measure_bandwidth(workload.threads, report=report)
        # the reference engine first: its logits, which the others are checked against, then cost no extra load
        order = sorted(loaded, key=lambda name: loaded[name].TOLERANCE > 0.0)
        seen = {name: session.engine(name, loaded[name]) for name in order}
        # a shared machine's bandwidth moves by the minute: a ceiling from one side of the session alone would refuse
        # honest runs
        bandwidth = best_of(before, measure_bandwidth(workload.threads, report=report))
    return BenchResult(
        machine=machine,
        bandwidth=bandwidth,
        workload=workload,
        dense=package_facts(dense),
        sparse=package_facts(sparse),
        engines=tuple(session.result(loaded[name], *seen[name], machine, bandwidth[-1]) for name in loaded),
        made_by=f"tailcut {__version__} bench",
    )


class Session:
    """The two packages, read once, and ONNX Runtime's logits on them, computed when an engine needs checking."""

    def __init__(self, dense: Path, sparse: Path, workload: Workload, report: Reporter) -> None:
        self.packages: dict[Role, Path] = {"dense": dense, "sparse": sparse}
        self.manifests: dict[Role, Manifest] = {role: read_manifest(path) for role, path in self.packages.items()}
        self.sizes = read_dimensions(dense)
        self.workload = workload
        self.report = report
        self.sizes_of: dict[Role, Dimensions] = {"dense": self.sizes, "sparse": read_dimensions(sparse)}
        _require_same_model(self.packages, self.sizes_of)
        rng = np.random.default_rng(workload.seed)
        tokens = rng.integers(0, self.sizes.vocab, (workload.batch, workload.context), np.int64)
        footprint = 2 * self.manifests["dense"].total_parameters * 4 * _LOADING
        self.pair = Pair(self.packages, workload, tokens, int(footprint))
        self.references = References(self._reference)

    def engine(self, name: str, engine: Engine) -> tuple[EngineResult, Seen | None]:
        """What was seen, or None with the reason in the blank result beside it."""
        blank = EngineResult(engine=name, status="not measured", licence=engine.LICENCE)
        try:
            reason = engine.available() or next(
                filter(None, (self._unfit(engine, role) for role in pairing.ROLES)), None
            )
            if reason:
                return replace(blank, reason=reason), None
            seen = pairing.measure(name, engine, self.pair, self.references, self.report)
        except MissingEnvironmentError as error:
            return replace(blank, reason=str(error)), None
        return replace(blank, prefill_reason=seen.prefill_reason), seen

    def _reference(self, role: Role) -> Logits:
        launch = registry.load("onnxruntime").launch(self.packages[role], "prefill", self.workload)
        with Worker(launch) as worker:
            worker.ask("open", **launch.settings)
            _, arrays = worker.ask("logits", {"tokens": first_tokens(self.pair)})
        logits: Logits = arrays["logits"]
        return logits

    def _unfit(self, engine: Engine, role: Role) -> str | None:
        reason = engine.unfit(self.packages[role], self.workload)
        return f"{role} package: {reason}" if reason else None

    def result(
        self, engine: Engine, blank: EngineResult, seen: Seen | None, machine: Machine, bandwidth: BandwidthPoint
    ) -> EngineResult:
        """The statistics of what was seen; a measurement that cannot be true is refused."""
        if seen is None:
            return blank
        memory = {role: memory_of(seen.raw[role].evidence, machine, bandwidth) for role in pairing.ROLES}
        sides = {role: self._side(role, engine, seen, *memory[role]) for role in pairing.ROLES}
        refusals = [broken(side.roofline, role, *memory[role]) for role, side in sides.items()]
        if reason := next(filter(None, refusals), None):
            return replace(blank, reason=reason)
        dense, sparse = sides["dense"], sides["sparse"]
        zeros = sum(layer.zeros for layer in self.manifests["sparse"].layers.values())
        result = replace(
            blank,
            status="measured",
            version=str(sparse.evidence.get("version", "")),
            engagement=engine.engagement(sparse.evidence, zeros),
            dense=dense,
            sparse=sparse,
            decode_speedup=self._speedup(seen.timed["decode"]),
            prefill_speedup=self._speedup(seen.timed["prefill"]) if "prefill" in seen.timed else None,
            byte_ratio=dense.roofline.bytes_per_token / sparse.roofline.bytes_per_token,
            dense_drift=drift(dense.decode_ms),
            procedures=tuple(timed.procedure for timed in seen.timed.values()),
        )
        return replace(result, cautions=cautions(result))

    def _speedup(self, timed: Timed) -> Ratio:
        level, work = timed.procedure.look_confidence, self.workload
        dense, sparse = (timed.ms(role) for role in pairing.ROLES)
        return median_ratio(dense, sparse, confidence=work.confidence, look=level, seed=work.seed)

    def _side(self, role: Role, engine: Engine, seen: Seen, bandwidth: BandwidthPoint, cache_bytes: int) -> Side:
        raw, decode = seen.raw[role], seen.timed["decode"]
        step_ms = float(np.median(np.concatenate([np.asarray(block) for block in decode.ms(role)])))
        compressed = engine.COMPRESSES and role == "sparse"
        counted = int(raw.evidence.get("weight_bytes") or 0)  # an engine that knows what it holds
        weights = counted or weight_bytes(self.manifests[role], self.sizes, compressed=compressed)
        cache = kv_bytes(self.sizes_of[role], self.workload, str(raw.evidence.get("cache", "")))
        opened = engine.directory(self.packages[role])
        return Side(
            role=role,
            package=_manifest_hash(opened),
            bytes_on_disk=_directory_bytes(opened),
            load_seconds=raw.load_seconds,
            prefill_ms=seen.timed["prefill"].ms(role) if "prefill" in seen.timed else (),
            decode_ms=decode.ms(role),
            others_cpu_share=decode.others(role),
            peak_rss_bytes=raw.peak_rss_bytes,
            tokens_per_second=self.workload.batch * 1e3 / step_ms,
            roofline=roofline(
                weights,
                cache,
                estimate=compressed and not counted,
                step_ms=step_ms,
                bandwidth=bandwidth,
                l3_bytes=cache_bytes,
            ),
            evidence=raw.evidence,
            logits_gap=raw.logits_gap,
        )


def memory_of(evidence: Mapping[str, Any], machine: Machine, bandwidth: BandwidthPoint) -> tuple[BandwidthPoint, int]:
    """Bandwidth and last-level cache of the memory that an engine reads its weights from: the GPU's where it says so."""
    rate = float(evidence.get("device_gb_per_s") or 0.0)
    if not rate:
        return bandwidth, machine.l3_bytes
    return BandwidthPoint(0, rate, (rate,)), int(evidence.get("device_l2_bytes") or 0)


def cautions(result: EngineResult) -> tuple[str, ...]:
    """Sentences a reader should see beside the numbers."""
    found = [f"prefill was not measured: {result.prefill_reason}"] if result.prefill_reason else []
    found += _procedure_cautions(result)
    speedup = result.decode_speedup
    if result.byte_ratio is not None and speedup and speedup.low > result.byte_ratio:
        found.append(
            f"the speedup {speedup.value:.2f}x is above the byte ratio {result.byte_ratio:.2f}x: "
            "the dense baseline runs below its own roofline"
        )
    if result.byte_ratio is not None and speedup and speedup.high < 1 + (result.byte_ratio - 1) * _LITTLE:
        isa = str((result.sparse.evidence if result.sparse else {}).get("isa", "this instruction set"))
        found.append(
            f"the bytes alone would allow {result.byte_ratio:.2f}x, the engine gained {speedup.value:.2f}x: its sparse "
            f"kernel at this batch and on {isa} is not limited by memory"
        )
    if result.dense_drift is not None and result.dense_drift > 1 + _NOISY:
        found.append(f"the dense side's block medians alone moved by {result.dense_drift:.2f}x: a noisy machine")
    for side in (result.dense, result.sparse):
        if side is None:
            continue
        loud = sum(share > _NOISY for share in side.others_cpu_share)
        if loud:
            found.append(f"{loud} of {len(side.others_cpu_share)} {side.role} blocks shared the CPUs with other work")
        if side.roofline.share is None:
            found.append(f"the {side.role} weights nearly fit in cache: no share of the memory bandwidth is stated")
    return tuple(found)


def _procedure_cautions(result: EngineResult) -> list[str]:
    found = []
    for procedure in result.procedures:
        what, count = f"{procedure.measured_blocks} {procedure.phase} blocks", len(procedure.discarded)
        if procedure.loud:
            found.append(
                f"the machine was disturbed in nearly all of {what}: none was discarded, and no claim can rest on the "
                "times; measure again on a quieter machine"
            )
        elif count:
            found.append(f"{count} of {what} were discarded because the machine was disturbed")
    return found


def package_facts(package: Path) -> PackageFacts:
    """What the report's tables say of a package."""
    manifest = read_manifest(package)
    return PackageFacts(
        sha256=_manifest_hash(package),
        bytes_on_disk=_directory_bytes(package),
        sparsity=manifest.sparsity,
        whole_model_sparsity=manifest.whole_model_sparsity,
        total_parameters=manifest.total_parameters,
        notes=manifest.notes,
    )


def _require_same_model(packages: Mapping[Role, Path], sizes: Mapping[Role, Dimensions]) -> None:
    """Structured pruning takes heads and blocks; what tokens mean and how wide they are stays."""
    dense, sparse = sizes["dense"], sizes["sparse"]
    kept = replace(dense, layers=sparse.layers, kv_heads=sparse.kv_heads, cached_heads=sparse.cached_heads)
    larger = sparse.layers > dense.layers or sparse.kv_heads > dense.kv_heads
    if kept != sparse or larger:
        raise InputError(
            f"{packages['dense'].name} and {packages['sparse'].name} are not the same model: {dense} against {sparse}"
        )


def _manifest_hash(package: Path) -> str:
    path = package / MANIFEST_NAME
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _directory_bytes(package: Path) -> int:
    return sum(path.stat().st_size for path in package.iterdir() if path.is_file())
