"""Clients: foreign programs that open what tailcut writes. One file each, found by listing this folder.

A client module says which target of `tailcut export` it opens, whether it can run here and how its worker is started. It
never imports the client: that happens only in the worker's process (`bench/workers/`), which answers

    open     {"directory": …, "threads": …, …}           -> {"load_seconds": …}
    greedy   {"prompt": [ids], "count": n}               -> {"tokens": [n ids], "prefill_s": …, "decode_s": …,
                                                             "proof": {…}, "versions": {…}}

`tokens` are the likeliest ones, end-of-text included; `decode_s` is the time of all tokens after the first. `proof` is
what the client itself says that it ran: providers, execution types, supported fractions. Errors are the client's own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol, cast

from tailcut import plugins
from tailcut.bench.environment import Recipe
from tailcut.bench.worker import Launch, Worker
from tailcut.errors import InputError

HF: Final = "hf"  # the Hugging Face directory itself, no export
PACKED: Final = "compressed-tensors"  # what `tailcut pack --format compressed-tensors` writes


class Client(Protocol):
    """What a file in this folder provides.

    A client whose environment is not made by pip has RECIPE None and
    `install(*, base: Path | None, overwrite: bool, report: Reporter) -> Path`, which makes it and returns where it is.
    """

    TARGET: str  # the target of `tailcut export` whose output it opens, or HF or PACKED
    LICENCE: str  # the client's licence
    RECIPE: Recipe | None  # its environment; None: tailcut's own interpreter, or `install`

    def available(self) -> str | None:
        """None if the client can run on this machine, else why not and what to do."""
        ...

    def where(self) -> str:
        """The interpreter, or the program, that the worker runs in."""
        ...

    def launch(self, directory: Path, threads: int) -> Launch:
        """How to start the worker that opens `directory` on `threads` threads."""
        ...


def names() -> tuple[str, ...]:
    return plugins.names(__name__)


def load(name: str) -> Client:
    return cast(Client, plugins.load(__name__, name))


def greedy(
    name: str, directory: Path, prompt: list[int], count: int, *, threads: int = 1, timeout_s: float = 600.0
) -> Mapping[str, Any]:
    """What the client answers to `prompt`, with `load_seconds`; WorkerError carries the client's own message."""
    if not prompt or count < 1:
        raise InputError(f"{name}: a prompt of {len(prompt)} tokens and {count} to generate; both must be at least 1")
    launch = load(name).launch(directory, threads)
    with Worker(launch, timeout_s=timeout_s) as worker:
        opened, _ = worker.ask("open", **dict(launch.settings))
        answer, _ = worker.ask("greedy", prompt=prompt, count=count)
        return {**opened, **answer}
