"""`tailcut fleet`: measure on every machine of a Ray cluster, gather the results in one store."""

import json as jsonlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailcut.commands._options import expanded
from tailcut.commands._store import StoreFile
from tailcut.errors import EXIT_ENVIRONMENT
from tailcut.progress import console
from tailcut.sweep_grid import read_grid, split_words

if TYPE_CHECKING:
    from tailcut.fleet import Heard, Task

app = typer.Typer(no_args_is_help=True, help="Measure on every machine of a Ray cluster (tailcut[fleet]).")

Address = Annotated[str | None, typer.Option(help="The cluster, HOST:PORT. [default: RAY_ADDRESS, or the local one]")]
Minutes = Annotated[float | None, typer.Option(help="Give up on machines that take longer.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.command()
def machines(address: Address = None, json: Json = False) -> None:
    """The machines a measurement would run on."""
    from tailcut.fleet import cluster, nodes

    with cluster(address) as ray:
        found = nodes(ray)
    if json:
        print(jsonlib.dumps([{"id": node.id, "address": node.address, "cpus": node.cpus} for node in found], indent=1))
        return
    for node in found:
        print(f"{node}: {node.cpus:g} CPUs")


@app.command()
@expanded
def bench(
    dense: Annotated[Path, typer.Argument(help="The dense package, under this path on every machine.")],
    sparse: Annotated[Path, typer.Argument(help="The sparse package, likewise.")],
    stored: StoreFile,
    engines: Annotated[str, typer.Option(help="Comma-separated, as in `tailcut bench`.")] = "tailcut,onnxruntime",
    threads: Annotated[int | None, typer.Option(help="Of each engine. [default: all cores of each machine]")] = None,
    prompt: Annotated[int, typer.Option(help="Prompt tokens of the prefill.")] = 64,
    context: Annotated[int, typer.Option(help="KV cache length at the end of the decode steps.")] = 256,
    new_tokens: Annotated[int, typer.Option(help="Decode steps a side takes in one ABBA block.")] = 32,
    blocks: Annotated[int, typer.Option(help="ABBA blocks of decoding.")] = 8,
    address: Address = None,
    minutes: Minutes = None,
    json: Json = False,
) -> None:
    """Time SPARSE against DENSE on every machine. Exit code 4 if a machine gave no result; the others' are kept."""
    from tailcut.fleet import BenchTask

    settings = {"prompt_tokens": prompt, "context": context, "new_tokens": new_tokens, "blocks": blocks}
    if threads is not None:
        settings["threads"] = threads
    task = BenchTask(str(dense.absolute()), str(sparse.absolute()), split_words(engines), settings)
    _run(task, stored, address, minutes, json)


@app.command()
@expanded
def sweep(
    source: Annotated[str, typer.Argument(metavar="MODEL|RECIPE.yaml", help="As in `tailcut sweep`.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="A directory on every machine; each uses its own below.")],
    stored: StoreFile,
    address: Address = None,
    minutes: Minutes = None,
    json: Json = False,
) -> None:
    """Run a sweep on every machine; run again to go on where each was. Exit code 4 if a machine gave no result."""
    from tailcut.fleet import SweepTask

    _run(SweepTask(read_grid(source, {}), str(out.absolute())), stored, address, minutes, json)


def _run(task: "Task", stored: StoreFile, address: str | None, minutes: float | None, json: bool) -> None:
    from tailcut.fleet import cluster, everywhere

    store = stored.open()

    def keep(heard: "Heard") -> None:
        store.append(heard.results, heard.model or None)

    with cluster(address) as ray, console() as report:
        timeout = None if minutes is None else 60 * minutes
        answers = everywhere(ray, task, heard=keep, timeout_s=timeout, report=report)
    _show(answers, json)
    if any(answer.reason for answer in answers):
        raise typer.Exit(EXIT_ENVIRONMENT)


def _show(answers: "Sequence[Heard]", json: bool) -> None:
    rows: list[dict[str, Any]] = [
        {
            "node": str(answer.node),
            "machine": answer.results[0].machine.fingerprint if answer.results else None,
            "results": len(answer.results),
            "reason": answer.reason,
        }
        for answer in answers
    ]
    if json:
        print(jsonlib.dumps(rows, indent=1))
        return
    for row in rows:
        said = (
            f"no result: {row['reason']}" if row["reason"] else f"{row['results']} recorded, machine {row['machine']}"
        )
        print(f"{row['node']}: {said}")
