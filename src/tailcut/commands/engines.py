"""`tailcut engines`: which engines and foreign clients can run here, and the environments of those that need their own."""

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tailcut.errors import InputError
from tailcut.progress import console

if TYPE_CHECKING:
    from tailcut.bench.clients import Client
    from tailcut.bench.engines import Engine
    from tailcut.bench.peers import Peer

app = typer.Typer(
    no_args_is_help=True, help="List engines and clients, install the environment of one, show where it is."
)


@app.command("list")
def list_engines(
    json: Annotated[bool, typer.Option("--json", help="Print the list as JSON on stdout.")] = False,
) -> None:
    """Every engine (it is timed), client (it opens packages) and peer (it cuts), whether it can run here, if not, why."""
    from tailcut.bench import clients, engines, peers

    rows = [("engine", name, engines.load(name).available()) for name in engines.names()]
    rows += [("client", name, clients.load(name).available()) for name in clients.names()]
    rows += [("peer", name, peers.load(name).available()) for name in peers.names()]
    if json:
        found = [{kind: name, "available": reason is None, "reason": reason} for kind, name, reason in rows]
        print(jsonlib.dumps(found, indent=1))
        return
    for kind, name, reason in rows:
        print(f"{kind:<7} {name:<19} {'available' if reason is None else f'not available: {reason}'}")


@app.command()
def install(
    engine: Annotated[str, typer.Argument(help="The engine or client, such as deepsparse.")],
    python: Annotated[str | None, typer.Option(help="An interpreter of a version the engine has wheels for.")] = None,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Where environments live. [default: TAILCUT_ENGINES or the data home]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an environment that is there.")] = False,
) -> None:
    """Make the own environment of an engine or client from its lock list (tailcut: compile its kernels), unless it is there.

    A broken-off install leaves nothing behind.
    """
    from tailcut.bench.environment import Recipe, home, installed_reason
    from tailcut.bench.environment import install as make

    found = _named(engine)
    compiler = getattr(found, "compile_kernels", None)
    if compiler is not None:
        print(compiler())
        return
    own = getattr(found, "install", None)
    if own is not None:
        with console() as report:
            print(own(base=directory, overwrite=overwrite, report=report))
        return
    recipe = getattr(found, "RECIPE", None)
    if not isinstance(recipe, Recipe):
        raise InputError(f"{engine} needs no environment of its own")
    if recipe.licence:
        typer.echo(f"Note: {recipe.licence}", err=True)
    if not overwrite and installed_reason(recipe, directory) is None:
        print(home(recipe, directory))
        return
    with console() as report:
        print(make(recipe, python=python, base=directory, overwrite=overwrite, report=report))


@app.command()
def path(engine: Annotated[str, typer.Argument(help="The engine or client.")]) -> None:
    """Print the interpreter or program the worker of an engine or client runs in."""
    print(_named(engine).where())


def _named(name: str) -> "Engine | Client | Peer":
    """An engine, else a client of this name: where both are called so, they share one environment; else a peer."""
    from tailcut.bench import clients, engines, peers

    known = {*engines.names(), *clients.names(), *peers.names()}
    spelt = name.replace("_", "-")
    if spelt not in known:
        raise InputError(f"unknown engine or client {name!r}; choose one of {', '.join(sorted(known))}")
    if spelt in peers.names():
        return peers.load(spelt)
    return engines.load(spelt) if spelt in engines.names() else clients.load(spelt)
