"""`tailcut zero-shot`: multiple-choice accuracy of a model and its sparse copies, by lm-eval, from local files."""

from pathlib import Path
from typing import Annotated, cast

import typer

from tailcut import codec
from tailcut.accuracy import Row, ZeroShot
from tailcut.errors import InputError
from tailcut.files import require_absent
from tailcut.progress import console, tables

ALL = "boolq,rte,winogrande,arc_easy,openbookqa"


def command(
    dense: Annotated[Path, typer.Argument(help="A Hugging Face directory: what the others are compared with.")],
    sparse: Annotated[
        list[Path] | None, typer.Argument(help="Directories made of it, plain or packed; none: DENSE alone.")
    ] = None,
    tasks: Annotated[
        Path | None, typer.Option(help="The directory with the tasks' files, such as boolq_val.jsonl.")
    ] = None,
    names: Annotated[str, typer.Option(help="Which tasks, comma-separated.")] = ALL,
    limit: Annotated[int | None, typer.Option(help="Only the first so many items of each task.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16, of every model alike.")] = "float32",
    batch: Annotated[int, typer.Option(help="Requests at a time.")] = 8,
    out: Annotated[Path, typer.Option("--output", "-o", help="Where to write the result (JSON).")] = Path(
        "zero_shot.json"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout too.")] = False,
) -> None:
    """Ask DENSE and each SPARSE the same questions, without examples, and show accuracy and paired change.

    Prompts, choices and metrics are those of the installed lm-eval (`pip install 'tailcut[eval]'`); the items come from
    files of your own, nothing is downloaded. docs/zero-shot.md says what a file holds. An interrupted run goes on.
    """
    if tasks is None:
        raise InputError("say where the tasks' files are: --tasks DIR (docs/zero-shot.md says what they hold)")
    if not overwrite:
        require_absent(out)
    from tailcut.compress.zero_shot_tasks import read_tasks

    items = read_tasks(tasks, [name.strip() for name in names.split(",") if name.strip()])
    from tailcut.compress.zero_shot import Options, Precision, forget_work, zero_shot

    options = Options(device, cast("Precision", dtype), batch, limit)
    with console(quiet=json) as report:
        result = zero_shot([dense, *(sparse or [])], items, out, options, report)
    codec.save(result, out)
    forget_work(out)
    if json:
        print(codec.to_json(result), end="")
    else:
        show(result)
        print(f"{out}: {len(result.models)} models on {sum(task.items for task in result.tasks.values())} items")


def show(result: ZeroShot) -> None:
    """The table on stdout: percent, standard errors in points, recovery of the dense accuracy."""
    from rich.table import Table

    table = Table("model", "task", "metric", "items", "accuracy %", "change (points)", "gained / lost", "recovery %")
    for row in result.rows:
        table.add_row(row.model, row.task, row.metric, str(row.items), *_cells(row), end_section=row.task == "mean")
    tables().print(table)
    limit = result.settings.get("limit")
    said = "all items" if limit is None else f"the first {limit} items of each task"
    print(f"± standard error; change: over the same items, less the first model; mean: over tasks, by acc; {said}")


def _cells(row: Row) -> tuple[str, str, str, str]:
    accuracy = f"{100 * row.accuracy.value:.1f} ± {100 * row.accuracy.error:.1f}"
    if row.change is None:
        return accuracy, "", "", ""
    change = f"{100 * row.change.value:+.1f} ± {100 * row.change.error:.1f}"
    recovery = "" if row.recovery is None else f"{100 * row.recovery:.1f}"
    return accuracy, change, f"{row.change.gained} / {row.change.lost}", recovery
