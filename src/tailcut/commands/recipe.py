"""`tailcut recipe`: allocations written as recipes of other tools, and recipes of other tools read."""

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from tailcut import codec
from tailcut.allocation import Allocation
from tailcut.errors import InputError
from tailcut.files import require_absent, write_file

if TYPE_CHECKING:
    from tailcut.recipe_import import Imported, Matrix

app = typer.Typer(no_args_is_help=True, help="Hand a plan to llm-compressor or SparseML, or read one of their recipes.")

_Out = Annotated[Path, typer.Option("--output", "-o", help="The file to write.")]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]


def _list(asked: bool) -> None:
    if not asked:
        return
    from tailcut import recipe_formats

    for name in recipe_formats.names():
        print(f"{name}  {recipe_formats.load(name).SUMMARY}")
    raise typer.Exit


@app.command("export")
def export_plan(
    allocation: Annotated[Path, typer.Argument(help="What `tailcut allocate` wrote.")],
    out: _Out,
    format_name: Annotated[str, typer.Option("--format", help="llm-compressor or sparseml.")],
    pruner: Annotated[str, typer.Option(help="Who cuts over there: wanda or sparsegpt.")] = "wanda",
    model: Annotated[
        Path | None,
        typer.Option(help="The model directory: checks the names, and puts the targets in the model's order."),
    ] = None,
    per_matrix: Annotated[
        bool, typer.Option("--per-matrix", help="Name every matrix, also where all matrices of each block are alike.")
    ] = False,
    overwrite: _Overwrite = False,
    json: Annotated[bool, typer.Option("--json", help="Print the notes as JSON on stdout.")] = False,
    listed: Annotated[
        bool, typer.Option("--list", callback=_list, is_eager=True, help="List the formats and leave.")
    ] = False,
) -> None:
    """Write ALLOCATION as a recipe of another tool, with one sparsity for each target.

    What the format cannot express is refused, every matrix named; what the other tool does otherwise is printed.
    """
    from tailcut import recipe_formats
    from tailcut.recipe_formats import Wanted

    if not overwrite:
        require_absent(out)
    plan = codec.load(Allocation, allocation)
    order = None if model is None else tuple(matrix.name for matrix in _matrices(model))
    written = recipe_formats.load(format_name).write(plan, Wanted(pruner, per_matrix, order))
    write_file(out, written.text.encode())
    if json:
        print(jsonlib.dumps({"recipe": str(out), "notes": written.notes}, indent=1))
        return
    print(out)
    for note in written.notes:
        print(f"note: {note}")


@app.command("import")
def import_theirs(
    source: Annotated[
        Path, typer.Argument(help="A recipe of SparseML or llm-compressor (YAML, or Markdown that begins with one).")
    ],
    out: _Out,
    model: Annotated[Path, typer.Option(help="The model directory it is for.")],
    plan: Annotated[
        Path | None,
        typer.Option(help="Where to write the plan if matrices get different sparsities. [default: OUT.plan.json]"),
    ] = None,
    recover_text: Annotated[
        list[Path] | None, typer.Option(help="Text to recover with, if the recipe distils; may be given several times.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Write nothing if anything does not carry over; exit code 2.")
    ] = False,
    overwrite: _Overwrite = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print what was and was not taken over as JSON on stdout.")
    ] = False,
) -> None:
    """Read SOURCE into a recipe for `tailcut run`; whatever does not carry over is named, with what to do instead.

    No code in SOURCE is run: eval(...) is read as arithmetic, tags construct nothing.
    """
    from tailcut.recipe_import import import_recipe

    target = plan or out.with_name(f"{out.stem}.plan.json")
    for path in () if overwrite else (out, target):
        require_absent(path)
    texts = [str(path.resolve()) for path in recover_text or ()]
    found = import_recipe(source, str(model.resolve()), _matrices(model), texts)
    if strict and found.unsupported:
        raise InputError(f"{source}: {len(found.unsupported)} items do not carry over: {' | '.join(found.unsupported)}")
    if found.plan is not None:
        codec.save(found.plan, target)
    write_file(out, _recipe_text(source, found).encode())
    _show(found, out, target, json)


def _matrices(model: Path) -> "tuple[Matrix, ...]":
    from tailcut.checkpoint import Checkpoint
    from tailcut.compress.discovery import find_linears
    from tailcut.recipe_import import Matrix

    def block(name: str, index: int) -> str:
        mark = f".{index}."
        return name[: name.index(mark) + len(mark) - 1] if mark in name else name

    return tuple(
        Matrix(linear.name, block(linear.name, linear.block), linear.parameters)
        for linear in find_linears(Checkpoint(model))
    )


def _recipe_text(source: Path, found: "Imported") -> str:
    """YAML whose comments name what is missing; a sentence stays one line, whatever names of the file it holds."""
    lines = [f"read from {source.name}", *(f"not taken over: {sentence}" for sentence in found.unsupported)]
    head = "".join(f"# {' '.join(line.split())}\n" for line in lines)
    return head + str(yaml.safe_dump(dict(found.settings), sort_keys=False))


def _show(found: "Imported", out: Path, plan: Path, json: bool) -> None:
    planned = None if found.plan is None else str(plan)
    if json:
        body = {"recipe": str(out), "plan": planned, "mapped": found.mapped, "unsupported": found.unsupported}
        print(jsonlib.dumps(body, indent=1))
        return
    print(out)
    if planned:
        print(f"plan: {planned} (tailcut compress MODEL --allocation {planned})")
    for sentence in found.mapped:
        print(f"taken over: {sentence}")
    for sentence in found.unsupported:
        print(f"not taken over: {sentence}")
