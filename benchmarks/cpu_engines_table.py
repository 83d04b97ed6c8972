"""The tables of `cpu_engines.py`: every ratio is of medians within one session."""

from collections.abc import Iterator, Sequence

import numpy as np

from tailcut.bench.many import Measured, Session
from tailcut.bench.report import markdown_row
from tailcut.bench.stats import median_ratio
from tailcut.bench.tables import interval
from tailcut.quantised import HeadPrecision, Precision
from tailcut.results import Ratio

# suffix of a package -> how its layers and its head are stored
PACKAGES: dict[str, tuple[Precision, HeadPrecision]] = {
    "": ("float32", "float32"),
    "-head8": ("float32", "int8"),
    "-int8": ("int8", "int8"),
    "-int8-head4": ("int8", "int4"),
    "-int4": ("int4", "int4"),
}
BASELINE = ("onnxruntime-fused", "float32")  # dense float32 ONNX Runtime on its best graph
HEAD = (
    "sparsity",
    "engine",
    "weights",
    "ms a step",
    "tokens/s",
    "over dense float32 ORT",
    "over the best dense int4",
    "over DeepSparse, same sparsity and precision",
)


def render(sessions: Sequence[Session]) -> str:
    """One table a phase, thread count, batch and prompt."""
    if not sessions:
        return "no sessions"
    decodes = [session for session in sessions if session.rounds > 1]
    kinds = sorted({kind(session) for session in decodes}, key=lambda item: (item[0], -item[1], item[2], item[3]))
    parts = [table([session for session in decodes if kind(session) == wanted]) for wanted in kinds]
    loads = [session for session in sessions if session.rounds == 1]
    return "\n\n".join([*parts, *([load_table(loads)] if loads else [])])


def summary(sessions: Sequence[Session], group: str = "s80", threads: int = 2) -> str:
    """The table of one group's decode session alone, for a README."""
    wanted = [s for s in sessions if s.rounds > 1 and s.group == group and kind(s)[:3] == ("decode", threads, 1)]
    return table(wanted) if wanted else "no sessions"


def kind(session: Session) -> tuple[str, int, int, int]:
    work = session.workload
    length = work.prompt_tokens if session.phase == "prefill" else work.context
    return session.phase, work.threads, work.batch, length


def title(sessions: Sequence[Session]) -> str:
    """What the sessions of one table have in common, and the commits they were measured at."""
    work, phase, machine = sessions[-1].workload, sessions[-1].phase, sessions[-1].machine
    stream = [rate for session in sessions for rate in session.stream_gb_per_s]
    rates = f"{min(stream):.1f} to {max(stream):.1f} GB/s"
    what = f"prefill of {work.prompt_tokens} tokens" if phase == "prefill" else f"decode at {work.context} tokens"
    threads = f"{work.threads} thread{'s' * (work.threads > 1)}"
    commits = ", ".join(dict.fromkeys(str(session.machine.commit)[:7] for session in sessions))
    about = f"{machine.cpu} ({' '.join(machine.isa)}), commit {commits}"
    return f"**{what}, batch {work.batch}, {threads}** on {about}; stream read between the rounds {rates}."


def table(sessions: Sequence[Session]) -> str:
    """Rows by sparsity; a row measured in several sessions is shown once, from the last that is about its package."""
    shown: dict[str, tuple[Session, Measured]] = {}
    for session in sessions:
        for row in session.rows:
            _, before = shown.get(row.label, (session, None))
            lent = session.group != "dense" and row.package == "dense"  # a reference in a session about something else
            if before is None or (row.ms and not (before.ms and lent)):
                shown[row.label] = (session, row)
    ordered = sorted(shown.values(), key=lambda pair: (sparsity(pair[1]), pair[1].weights, -speed(pair[1])))
    lines = [title(sessions), "", markdown_row(HEAD), "|" + " --- |" * len(HEAD)]
    return "\n".join([*lines, *(markdown_row(cells(session, row)) for session, row in ordered)])


def cells(session: Session, row: Measured) -> tuple[str, ...]:
    name = f"{row.engine} {row.version}".strip()
    start = (f"{sparsity(row):.0%}", name, f"{row.weights}{head_of(row)}")
    if not row.ms:
        return (*start, "not measured", row.reason, "", "", "")
    times = np.asarray(row.ms)
    per_step = session.workload.prompt_tokens if session.phase == "prefill" else 1
    rate = session.workload.batch * per_step * 1e3 / np.median(times)
    ratios = (
        over(session, row, find(session, *BASELINE)),
        over(session, row, best_int4(session)),
        deepsparse(session, row),
    )
    return (*start, f"{np.median(times):.1f}", f"{rate:.2f}", *(interval(ratio) for ratio in ratios))


def sparsity(row: Measured) -> float:
    """What was cut, from the package's name: rounding to int4 makes zeros of its own, which the manifest counts too."""
    digits = row.package.split("-")[0].removeprefix("s")
    return int(digits) / 100 if digits.isdigit() else 0.0


def head_of(row: Measured) -> str:
    """How the head is stored where it differs from the layers, from the package's name."""
    bits = row.package.rpartition("-head")[2] if "-head" in row.package else ""
    return f", head int{bits}" if bits else ""


def speed(row: Measured) -> float:
    return 1 / float(np.median(np.asarray(row.ms))) if row.ms else 0.0


def find(session: Session, engine: str, weights: str) -> Measured | None:
    """The dense row of an engine."""
    rows = (row for row in session.rows if (row.engine, row.weights, row.package) == (engine, weights, "dense"))
    return next((row for row in rows if row.ms), None)


def best_int4(session: Session) -> Measured | None:
    """The fastest dense int4 row that is not ours."""
    rows = [r for r in session.rows if r.ms and r.weights == "int4" and r.package == "dense" and r.engine != "tailcut"]
    return max(rows, key=speed, default=None)


def deepsparse(session: Session, row: Measured) -> Ratio | None:
    """Over DeepSparse on the same cut weights, for the rows of tailcut."""
    other = {"float32": "deepsparse", "int8": "deepsparse-int8"}.get(row.weights)
    package = row.package.split("-")[0]  # the same cut, whatever the precision
    rows = (r for r in session.rows if r.ms and (r.engine, r.package) == (other, package))
    return over(session, row, next(rows, None)) if row.engine == "tailcut" else None


def over(session: Session, row: Measured, base: Measured | None) -> Ratio | None:
    if base is None or base is row:
        return None
    return median_ratio(base.ms, row.ms, seed=session.workload.seed)


def load_table(sessions: Sequence[Session]) -> str:
    """Load time, peak memory and file size, each row alone on the machine."""
    head = ("package", "engine", "weights", "load, s", "peak RSS, MB", "on disk, MB")
    return "\n".join([markdown_row(head), "|" + " --- |" * len(head), *load_rows(sessions)])


def load_rows(sessions: Sequence[Session]) -> Iterator[str]:
    for row in (row for session in sessions for row in session.rows):
        size = f"{row.peak_rss_bytes / 1e6:.0f}", f"{row.bytes_on_disk / 1e6:.0f}"
        numbers = (f"{row.load_seconds:.1f}", *size) if row.ms else ("not measured", row.reason, "")
        yield markdown_row((row.package, f"{row.engine} {row.version}".strip(), row.weights, *numbers))
