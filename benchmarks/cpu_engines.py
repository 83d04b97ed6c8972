"""Decode speed of all engines side by side, in one session a sparsity and thread count; also batches, prefill, load.

    python benchmarks/cpu_engines.py decode  --packages DIR --threads 2,1 -o benchmarks/results/cpu_engines.json
    python benchmarks/cpu_engines.py decode  --packages DIR --threads 2 --batches 4,16,64 --groups s80 -o FILE
    python benchmarks/cpu_engines.py prefill --packages DIR --threads 2 --prompts 128,512 --groups s80 -o FILE
    python benchmarks/cpu_engines.py load    --packages DIR -o FILE
    python benchmarks/cpu_engines.py table FILE

DIR comes from `cpu_packages.py`. A session holds one group of packages (`s80`, or `dense`) and, in every session, the
references: dense float32 ONNX Runtime and the dense int4 peers; so every ratio comes from samples taken in turn
within minutes. A row already measured in the output file with the same settings, machine and packages is kept, so a
broken-off run goes on; --again measures all. The file is rewritten after each session.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
from cpu_engines_table import PACKAGES, render  # beside this script

from tailcut import codec
from tailcut.bench import engines
from tailcut.bench.machine import describe_machine
from tailcut.bench.many import Measured, Plan, Row, Session, Weights, measure
from tailcut.bench.run import package_facts
from tailcut.errors import InputError
from tailcut.files import write_file
from tailcut.progress import Reporter, console
from tailcut.results import Workload

REFERENCES: tuple[tuple[str, Weights], ...] = (
    ("onnxruntime-fused", "float32"),
    ("onnxruntime-int4", "int4"),
    ("llamacpp-q4", "int4"),
)
DENSE: tuple[tuple[str, Weights], ...] = (
    ("onnxruntime", "float32"),
    ("onnxruntime-int8", "int8"),
    ("llamacpp-q8", "int8"),
    ("openvino-int8", "int8"),
    ("openvino-int4", "int4"),
)
OWN_FORMAT: tuple[tuple[str, Weights], ...] = (("deepsparse", "float32"), ("deepsparse-int8", "int8"))
_MEMORY = 0.75  # of the free memory; engines hold more for a moment while they load
_ACTIVATIONS = 1 << 26  # bytes a sequence


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.action != "table":
        with console() as report:
            run(options, report)
    print(render(read(options.output)))


def run(options: argparse.Namespace, report: Reporter) -> None:
    """Every session that the options ask for and the file does not hold yet."""
    sessions = read(options.output) if options.output.exists() else []
    for group, plan in plans(options):
        rows = list(rows_of(options, group, plan))
        if not options.again and all(known(sessions, group, plan, row) for row in rows if not is_reference(row)):
            continue
        free = int(psutil.virtual_memory().available * _MEMORY)
        for part in [[row] for row in rows] if options.action == "load" else parts(rows, plan.workload.batch, free):
            sessions.append(measure(group, part, plan, report))
            write(options.output, sessions)


def parts(rows: Sequence[Row], batch: int, free_bytes: int) -> list[list[Row]]:
    """The rows in as few sessions as fit in memory together; each has the references."""
    references = [row for row in rows if is_reference(row)]
    base = sum(footprint(row, batch) for row in references)
    found: list[list[Row]] = [[]]
    room = free_bytes - base
    for row in (row for row in rows if not is_reference(row)):
        size = footprint(row, batch)
        if found[-1] and size > room:
            found.append([])
            room = free_bytes - base
        found[-1].append(row)
        room -= size
    return [[*part, *references] for part in found if part or references]


def footprint(row: Row, batch: int) -> int:
    """About what a worker holds: the files that it opens, and room for activations and cache."""
    directory = engines.load(row.engine).directory(row.package)
    files = sum(path.stat().st_size for path in directory.iterdir()) if directory.is_dir() else 0
    return files + batch * _ACTIVATIONS


def plans(options: argparse.Namespace) -> Iterator[tuple[str, Plan]]:
    """Sessions in order of importance: the first group with every thread count, then the next."""
    for group in options.groups:
        for threads in options.threads:
            if options.action == "prefill":
                for prompt in options.prompts:
                    work = workload(options, threads, prompt=prompt, context=max(options.context, prompt + 8))
                    yield group, Plan(work, "prefill", rounds=options.rounds, steps=1)
            else:
                for batch in options.batches:
                    work = workload(options, threads, batch=batch)
                    yield group, Plan(work, "decode", rounds=options.rounds, steps=options.steps)


def workload(
    options: argparse.Namespace, threads: int, *, batch: int = 1, prompt: int | None = None, context: int | None = None
) -> Workload:
    context = context or options.context
    prompt = prompt or options.prompts[0]
    return Workload(batch=batch, prompt_tokens=prompt, new_tokens=4, context=context, threads=threads)


def rows_of(options: argparse.Namespace, group: str, plan: Plan) -> Iterator[Row]:
    """What is measured in a group: tailcut first, then the engine with its own sparse format, then the references.

    Dense rows of other engines stand in their own group; in another one those that --engines names.
    """
    root: Path = options.packages
    if not any((root / f"{group}{suffix}").is_dir() for suffix in PACKAGES):
        raise InputError(f"{root / group}: no such packages; make them with benchmarks/cpu_packages.py")
    dense = [pair for pair in DENSE if group == "dense" or pair[0] in options.engines]
    pairs = [*OWN_FORMAT, *REFERENCES, *dense]
    rows = [Row("tailcut", root / f"{group}{suffix}", weights) for suffix, (weights, _) in PACKAGES.items()]
    if options.action == "load":  # the same file on ONNX Runtime without the library
        rows.append(Row("onnxruntime", root / group, "float32"))
    sparse = [name for name, _ in OWN_FORMAT]
    rows += [Row(name, root / (group if name in sparse else "dense"), weights) for name, weights in pairs]
    yield from (row for row in rows if chosen(options, row) and row.package.is_dir())


def chosen(options: argparse.Namespace, row: Row) -> bool:
    """Named by --engines or no names given, of a wanted precision, and an engine this checkout has."""
    named = not options.engines or row.engine in options.engines or is_reference(row)
    wanted = named and row.engine not in options.leave_out
    return wanted and row.weights in options.weights and row.engine in engines.names()


def is_reference(row: Row | Measured) -> bool:
    name = row.package if isinstance(row, Measured) else row.package.name
    return name == "dense" and (row.engine, row.weights) in REFERENCES


def known(sessions: Sequence[Session], group: str, plan: Plan, row: Row) -> bool:
    """Whether a session of these settings, this machine and these packages holds the row with samples."""
    machine, facts = describe_machine(), package_facts(row.package)
    for session in sessions:
        found = session.row(row.label)
        settings = session.workload, session.phase, session.rounds, session.steps, session.group
        if (
            found is not None
            and found.ms
            and found.facts == facts
            and settings == (plan.workload, plan.phase, plan.rounds, plan.steps, group)
            and session.machine.fingerprint == machine.fingerprint
        ):
            return True
    return False


def read(path: Path) -> list[Session]:
    sessions = json.loads(path.read_bytes())["sessions"]
    return [codec.from_json(Session, json.dumps(session), str(path)) for session in sessions]


def write(path: Path, sessions: Sequence[Session]) -> None:
    body = {"sessions": [json.loads(codec.to_json(session)) for session in sessions]}
    write_file(path, (json.dumps(body, ensure_ascii=False) + "\n").encode())


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    for name, text in (("decode", "time decode steps"), ("prefill", "time whole prompts"), ("load", "open and step")):
        action = actions.add_parser(name, help=text)
        action.add_argument("--packages", type=Path, required=True)
        action.add_argument("--groups", type=words, default=["s80", "dense", "s70", "s90", "s50", "s60"])
        action.add_argument("--engines", type=words, default=[], help="only these, and the references")
        action.add_argument("--leave-out", type=words, default=[], help="not these, references or not")
        action.add_argument("--weights", type=words, default=["float32", "int8", "int4"], help="only these precisions")
        action.add_argument("--threads", type=integers, default=[2, 1])
        action.add_argument("--batches", type=integers, default=[1])
        action.add_argument("--prompts", type=integers, default=[128])
        action.add_argument("--context", type=int, default=512)
        action.add_argument("--rounds", type=int, default=1 if name == "load" else 3 if name == "prefill" else 6)
        action.add_argument("--steps", type=int, default=1 if name == "load" else 4)
        action.add_argument("--again", action="store_true", help="measure also what the file holds already")
        action.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/cpu_engines.json"))
    table = actions.add_parser("table", help="render the Markdown tables of a result file")
    table.add_argument("output", type=Path)
    return parser.parse_args(arguments)


def words(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def integers(text: str) -> list[int]:
    return [int(part) for part in words(text)]


if __name__ == "__main__":
    main()
