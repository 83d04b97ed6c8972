"""`tailcut engines`: which engines can run here, and the environments of those that need their own."""

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from tailcut.errors import InputError
from tailcut.progress import console

app = typer.Typer(no_args_is_help=True, help="List engines, install the environment of one, show where it is.")


@app.command("list")
def list_engines(
    json: Annotated[bool, typer.Option("--json", help="Print the list as JSON on stdout.")] = False,
) -> None:
    """Every engine, whether it can run on this machine, and if not, why."""
    from tailcut.bench import engines

    reasons = {name: engines.load(name).available() for name in engines.names()}
    if json:
        rows = [{"engine": name, "available": reason is None, "reason": reason} for name, reason in reasons.items()]
        print(jsonlib.dumps(rows, indent=1))
        return
    for name, reason in reasons.items():
        print(f"{name:<18} {'available' if reason is None else f'not available: {reason}'}")


@app.command()
def install(
    engine: Annotated[str, typer.Argument(help="The engine, such as deepsparse.")],
    python: Annotated[str | None, typer.Option(help="An interpreter of a version the engine has wheels for.")] = None,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Where environments live. [default: TAILCUT_ENGINES or the data home]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an environment that is there.")] = False,
) -> None:
    """Make the engine's own environment from its lock list (tailcut: compile its kernels), unless it is there already.

    ENGINE may also be another tool that cuts models: sparseml. A broken-off install leaves nothing behind.
    """
    from tailcut.bench import engines, peers
    from tailcut.bench.environment import Recipe, home, installed_reason
    from tailcut.bench.environment import install as make

    found = peers.load(engine) if engine in peers.names() else engines.load(engine)
    compiler = getattr(found, "compile_kernels", None)
    if compiler is not None:
        print(compiler())
        return
    recipe = getattr(found, "RECIPE", None)
    if not isinstance(recipe, Recipe):
        raise InputError(f"engine {engine} needs no environment of its own")
    if recipe.licence:
        typer.echo(f"Note: {recipe.licence}", err=True)
    if not overwrite and installed_reason(recipe, directory) is None:
        print(home(recipe, directory))
        return
    with console() as report:
        print(make(recipe, python=python, base=directory, overwrite=overwrite, report=report))


@app.command()
def path(engine: Annotated[str, typer.Argument(help="The engine.")]) -> None:
    """Print the interpreter the engine's worker runs in."""
    from tailcut.bench import engines

    print(engines.load(engine).where())
