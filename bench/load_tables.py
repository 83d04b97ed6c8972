"""What `bench-load` shows of a result: a table of streams and one of contexts for each engine, and the cautions."""

import sys

from tailcut.bench.load_values import (
    ContextPoint,
    EngineLoad,
    Latency,
    LoadPlan,
    LoadPoint,
    LoadResult,
    LoadSide,
    stated,
)
from tailcut.bench.tables import Table, interval, milliseconds

_PERCENTS = ("p50", "p90", "p95", "p99")
_SHOWN = ("p50", "p95", "p99")  # ratios; the result file has all


def show(result: LoadResult) -> None:
    """Print tables and notes to stdout."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    # in a log there is no terminal to wrap for
    console = Console() if sys.stdout.isatty() else Console(width=130)
    for table in load_tables(result):
        shown = RichTable(*table.header, title=Text(table.title), title_justify="left")
        for row in table.rows:
            shown.add_row(*map(Text, row))
        console.print(shown)
        console.print(Text(table.note))
    for sentence in load_notes(result):
        console.print(Text(f"note: {sentence}"))


def load_tables(result: LoadResult) -> list[Table]:
    """The tables of every engine that has points."""
    found = []
    for engine in result.engines:
        if any(point.dense for point in engine.streams):
            found += [_streams(engine, result.plan), _stream_ratios(engine)]
        if any(point.dense_ms for point in engine.contexts):
            found.append(_contexts(engine, result.plan))
    return found


def load_notes(result: LoadResult) -> tuple[str, ...]:
    """What was not measured and why, and what to bear in mind."""
    found = []
    for engine in result.engines:
        if engine.reason:
            what = "stopped" if engine.status == "measured" else "not measured"
            found.append(f"{engine.engine}: {what}: {engine.reason}")
        found += [f"{engine.engine}, {stated(p.streams)}: not measured: {p.reason}" for p in engine.streams if p.reason]
        found += [
            f"{engine.engine}, context {p.context}: not measured: {p.reason}" for p in engine.contexts if p.reason
        ]
        sharing = {point.sharing for point in engine.streams if point.sharing}
        found += [f"{engine.engine}: {text}" for text in sorted(sharing)]
        found += [f"{engine.engine}: {caution}" for caution in engine.cautions]
        if engine.licence:
            found.append(engine.licence)
    return tuple(found)


def _streams(engine: EngineLoad, plan: LoadPlan) -> Table:
    header = ("streams", "side", "tokens/s", *(f"{kind} {p}" for kind in ("first", "next") for p in _PERCENTS))
    rows = [row for point in engine.streams for row in _stream_rows(point)]
    note = "Milliseconds from a request's arrival to its first token, and from one token to the next."
    return Table(f"{engine.engine}: streams ({_asked(plan)})", header, tuple(rows), note)


def _stream_rows(point: LoadPoint) -> list[tuple[str, ...]]:
    if point.dense is None or point.sparse is None:
        return []
    return [(str(point.streams), "dense", *_side(point.dense)), (str(point.streams), "sparse", *_side(point.sparse))]


def _stream_ratios(engine: EngineLoad) -> Table:
    header = ("streams", "tokens/s", *(f"{kind} {p}" for kind in ("first", "next") for p in _SHOWN))
    rows = []
    for point in engine.streams:
        if point.throughput is not None:
            kinds = ((point.ttft or {}).get(p) for p in _SHOWN), ((point.itl or {}).get(p) for p in _SHOWN)
            rows.append(
                (str(point.streams), interval(point.throughput), *(interval(r) for kind in kinds for r in kind))
            )
    note = "How many times better sparse is, with the interval over blocks; of times, of each block's percentiles."
    return Table(f"{engine.engine}: sparse beside dense", header, tuple(rows), note)


def _side(side: LoadSide) -> tuple[str, ...]:
    return (f"{side.tokens_per_second:.1f}", *_latency(side.ttft_ms), *_latency(side.itl_ms))


def _latency(found: Latency | None) -> tuple[str, ...]:
    values = [None if found is None else getattr(found, name) for name in _PERCENTS]
    return tuple("" if value is None else f"{value:.1f}" for value in values)


def _contexts(engine: EngineLoad, plan: LoadPlan) -> Table:
    return Table(
        f"{engine.engine}: decode step against context ({_threads(plan)})",
        ("context", "dense", "sparse", "speedup", "bytes allow", "cache's share of bytes"),
        tuple(_context_row(point) for point in engine.contexts if point.dense_ms),
        "Medians of steps that end at this many cached positions. The cache is read whole for every token and is no "
        "smaller for sparse weights; its share is that of the sparse side.",
    )


def _context_row(point: ContextPoint) -> tuple[str, ...]:
    return (
        str(point.context),
        milliseconds(point.dense_ms),
        milliseconds(point.sparse_ms),
        interval(point.speedup),
        f"{point.byte_ratio:.2f}x" if point.byte_ratio else "",
        f"{point.cache_share:.0%}" if point.cache_share is not None else "",
    )


def _asked(plan: LoadPlan) -> str:
    arrivals = (
        "each asks again at once" if plan.rate is None else f"requests arrive at a rate of {plan.rate:g} a second"
    )
    return f"{arrivals}; prompt {plan.prompt_tokens}, {plan.new_tokens} new tokens, {_threads(plan)}"


def _threads(plan: LoadPlan) -> str:
    return f"{plan.threads} thread{'s' if plan.threads > 1 else ''}"
