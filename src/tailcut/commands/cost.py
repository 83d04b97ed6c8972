"""`tailcut cost`: what products cost here, for allocations by speed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tailcut import codec
from tailcut.errors import InputError
from tailcut.files import require_absent
from tailcut.progress import console, tables

if TYPE_CHECKING:
    from tailcut.cost import CostTable


def command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DENSE_PACKAGE|GPU.json", help="A dense package of `tailcut export`, or what `bench-gpu` wrote."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the cost table (JSON).")] = Path(
        "cost.json"
    ),
    threads: Annotated[int | None, typer.Option(help="Threads of the kernels. [default: all cores]")] = None,
    sparsities: Annotated[
        str, typer.Option(help="What to time beside dense, comma-separated.")
    ] = "0.3,0.5,0.6,0.7,0.8,0.9",
    rounds: Annotated[int, typer.Option(help="Turns that each sparsity takes.")] = 8,
    steps: Annotated[int, typer.Option(help="Decode steps before and after.")] = 16,
    cut: Annotated[
        Path | None,
        typer.Option(help="A cut package of the same model: its steps say what products cost inside of a step."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing table.")] = False,
) -> None:
    """Time every matrix shape of a model on tailcut's kernels, dense and sparse, and a dense decode step.

    Next: `tailcut allocate scores.json --speedup 2 --cost cost.json`, on the machine that will serve. From a result of
    `bench-gpu` the products are taken as they are; the rest of a decode step is then not known.
    """
    if not overwrite:
        require_absent(output)
    from tailcut.bench.cost import Effort, from_gpu, measure_costs
    from tailcut.bench.gpu import GpuResult
    from tailcut.bench.machine import physical_cpus

    if rounds < 1 or steps < 4:
        raise InputError(f"cost needs at least 1 round and 4 steps, got {rounds} and {steps}")
    wanted = _fractions(sparsities)
    if source.is_file() and cut is not None:
        raise InputError("--cut needs a dense package to compare with; a GPU result holds products alone")
    if source.is_file():
        table = from_gpu(codec.load(GpuResult, source))
    else:
        with console() as report:
            table = measure_costs(
                source,
                threads=threads or len(physical_cpus()),
                sparsities=wanted,
                effort=Effort(rounds=rounds, steps=steps),
                cut=cut,
                report=report,
            )
    codec.save(table, output)
    _show(table, output)


def _fractions(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(word) for word in text.split(",") if word.strip())
    except ValueError as error:
        raise InputError(f"sparsities {text!r} are not comma-separated fractions such as 0.5,0.8") from error
    if not found or not all(0.0 < value < 1.0 for value in found):
        raise InputError(f"sparsities must lie between 0 and 1, got {text!r}")
    return found


def _show(table: "CostTable", output: Path) -> None:
    from rich.table import Table

    patterns = list(dict.fromkeys(entry.pattern for entry in table.entries))
    shown = Table("matrix", "precision", *(f"{pattern}" for pattern in patterns))
    costs = {(entry.shape, entry.precision, entry.pattern): f"{entry.ms:.4f}" for entry in table.entries}
    for shape, precision in dict.fromkeys((entry.shape, entry.precision) for entry in table.entries):
        cells = (costs.get((shape, precision, pattern), "") for pattern in patterns)
        shown.add_row(f"{shape[0]} x {shape[1]}", precision, *cells)
    tables().print(shown)
    print(f"{output}: milliseconds a product on {table.engine}, {table.threads} threads")
    if table.cut_step_ms:
        print(
            f"inside of a step a product takes {table.factor:.2f} times what it takes alone; the table holds the former"
        )
    for precision, ms in table.fixed_ms.items():
        print(f"a dense {precision} decode step spends {ms:.3f} ms outside of them")
