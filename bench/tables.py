"""The tables of a report and of the console: one place that says what a number is called and how it is written."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tailcut.results import BenchResult, Blocks, EngineResult, Quality, Ratio, Side, Verdict


@dataclass(frozen=True, slots=True)
class Table:
    """Plain text cells; whoever shows them escapes them."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def speed_table(result: BenchResult) -> Table:
    """Decode and prefill of every engine, dense over sparse."""
    work = result.workload
    threads = f"{work.threads} thread{'s' if work.threads > 1 else ''}"
    return Table(
        f"Speed (batch {work.batch}, prompt {work.prompt_tokens}, context {work.context}, {threads})",
        (
            "engine",
            "decode dense",
            "decode sparse",
            "decode speedup",
            "byte ceiling",
            "prefill dense",
            "prefill sparse",
            "prefill speedup",
        ),
        tuple(_speed_row(engine) for engine in result.engines),
        "Medians over all blocks; speedup is the ratio of medians with its bootstrap interval. The byte ceiling is "
        "what a purely bandwidth-bound decode could gain.",
    )


def _speed_row(engine: EngineResult) -> tuple[str, ...]:
    if engine.dense is None or engine.sparse is None:
        return (engine.engine, "not measured", "", "", "", "", "", "")
    return (
        f"{engine.engine} {engine.version}",
        milliseconds(engine.dense.decode_ms),
        milliseconds(engine.sparse.decode_ms),
        interval(engine.decode_speedup),
        f"{engine.byte_ratio:.2f}x" if engine.byte_ratio else "",
        milliseconds(engine.dense.prefill_ms),
        milliseconds(engine.sparse.prefill_ms),
        interval(engine.prefill_speedup),
    )


def procedure_table(result: BenchResult) -> Table:
    """How each engine's blocks came about; no rows for results of earlier versions."""
    rows = tuple(
        (
            engine.engine,
            one.phase,
            str(one.measured_blocks),
            str(len(one.discarded)) + (" (never quiet enough to tell)" if one.loud else ""),
            f"{one.settling_visits} visits, then {one.warmup_steps} steps",
            f"{one.seconds:.0f} s",
            one.ended,
        )
        for engine in result.engines
        for one in engine.procedures
    )
    header = ("engine", "phase", "blocks", "discarded", "warm-up", "time", "ended because")
    note = (
        "A block is dense, sparse, sparse, dense. It is discarded, on both sides, when a fixed reference computation "
        "beside it ran slower than before the first block."
    )
    return Table("How it was measured", header, rows, note)


def roofline_table(result: BenchResult) -> Table:
    """Bytes a token, rate and share of the machine's read bandwidth, and memory of each side."""
    rows = [
        _roofline_row(engine, side)
        for engine in result.engines
        for side in (engine.dense, engine.sparse)
        if side is not None
    ]
    best = result.bandwidth[-1]
    return Table(
        f"Roofline (this machine reads {best.best_gb_per_s:.1f} GB/s with {best.threads} thread(s))",
        ("engine", "side", "tokens/s", "MB a token", "GB/s", "share", "peak memory", "load"),
        tuple(rows),
        "A value marked ~ counts compressed weights as bitmasks, an estimate: the engine's own format is not known.",
    )


def _roofline_row(engine: EngineResult, side: Side) -> tuple[str, ...]:
    line = side.roofline
    mark = "~" if line.estimate else ""
    return (
        engine.engine,
        side.role,
        f"{side.tokens_per_second:.1f}",
        f"{mark}{line.bytes_per_token / 1e6:.0f}",
        f"{mark}{line.gb_per_s:.1f}",
        f"{mark}{line.share:.0%}" if line.share is not None else "in cache",
        f"{side.peak_rss_bytes / 1e6:.0f} MB",
        f"{side.load_seconds:.1f} s",
    )


def quality_table(quality: Sequence[Quality]) -> Table:
    kl = any(item.kl_nats for item in quality)
    rows = tuple(
        (
            f"{item.text} ({item.tokens_scored} tokens, windows of {item.context})",
            f"{item.dense_perplexity:.2f}",
            f"{item.sparse_perplexity:.2f}",
            interval(item.ratio),
            *((f"{statistics.mean(item.kl_nats):.4f} nats" if item.kl_nats else "",) if kl else ()),
            item.measured_with,
        )
        for item in quality
    )
    notes = " ".join(dict.fromkeys(note for item in quality for note in item.notes))
    header = ("text", "dense", "sparse", "ratio", *(("KL from dense",) if kl else ()), "scored with")
    return Table("Perplexity", header, rows, notes)


def size_table(result: BenchResult) -> Table:
    """Packages as shipped, and what each engine opened."""
    dense, sparse = result.dense, result.sparse
    rows = [_size_row("package", dense.bytes_on_disk, sparse.bytes_on_disk)]
    rows += [
        _size_row(f"opened by {engine.engine}", engine.dense.bytes_on_disk, engine.sparse.bytes_on_disk)
        for engine in result.engines
        if engine.dense is not None and engine.sparse is not None
    ]
    note = (
        f"{sparse.sparsity:.1%} of the block linears' weights are zero, {sparse.whole_model_sparsity:.1%} of all "
        f"{sparse.total_parameters / 1e6:.1f} M parameters."
    )
    return Table("Size on disk", ("what", "dense", "sparse", "ratio"), tuple(rows), note)


def _size_row(what: str, dense: int, sparse: int) -> tuple[str, ...]:
    ratio = f"{sparse / dense:.2f}" if dense else ""
    return (what, f"{dense / 1e6:.1f} MB", f"{sparse / 1e6:.1f} MB", ratio)


def checks_table(verdict: Verdict) -> Table:
    rows = tuple((check.outcome, check.name, check.sentence) for check in verdict.checks)
    return Table("Checks", ("outcome", "check", "why"), rows, verdict.note)


def machine_table(result: BenchResult) -> Table:
    machine = result.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    rows = (
        ("processor", f"{machine.cpu}, {machine.cores} cores of {machine.logical_cpus} CPUs usable"),
        ("instruction sets", " ".join(machine.isa)),
        ("memory", f"{machine.ram_bytes / 1e9:.1f} GB, last-level cache {machine.l3_bytes / 1e6:.0f} MB"),
        ("frequency governor", machine.governor or "not shown by the system"),
        ("kernel", machine.kernel),
        ("versions", versions),
        ("commit", machine.commit or "not a checkout"),
        ("fingerprint", machine.fingerprint),
    )
    return Table("Machine", ("", ""), rows)


def evidence_table(result: BenchResult) -> Table:
    """What each engine says it ran, beside what that proves."""
    rows = []
    for engine in result.engines:
        if engine.sparse is None:
            rows.append((engine.engine, "not measured", engine.reason))
            continue
        shown = engine.engagement
        rows.append((engine.engine, "yes" if shown and shown.proven else "no", shown.reason if shown else ""))
    return Table("Did a sparse kernel run?", ("engine", "proven", "evidence"), tuple(rows))


def caveats(result: BenchResult) -> tuple[str, ...]:
    """Sentences that belong beside the numbers, each once."""
    found = []
    for engine in result.engines:
        if engine.licence:
            found.append(engine.licence)
        found += [f"{engine.engine}: {caution}" for caution in engine.cautions]
    found += [note for item in result.quality for note in item.notes]
    found += [*result.dense.notes, *result.sparse.notes]
    return tuple(dict.fromkeys(found))


def interval(ratio: Ratio | None) -> str:
    return f"{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio else ""


def milliseconds(blocks: Blocks) -> str:
    flat = [value for block in blocks for value in block]
    return f"{statistics.median(flat):.2f} ms" if flat else ""
