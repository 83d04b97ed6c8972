"""`tailcut fleet`: the same measurement on every machine of a Ray cluster, the results in one store.

One task a machine, pinned to it (hard node affinity) and asking for all of its CPUs, so that Ray runs nothing else there
while it measures. A task is a name and JSON; what comes back is JSON, checked like any file. Results are handed over as
each machine ends, so a machine that fails, dies or hangs costs its own and nobody else's. Nothing is retried by itself:
the machine is named with the reason, and the same command later asks again (a sweep goes on where that machine was).

Ray is an extra (tailcut[fleet]) and is imported only here, when called. Machines need the same Python and Ray, tailcut
installed, and the models or packages under the same path.
"""

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from tailcut import codec
from tailcut.codec import FORBID_EXTRA
from tailcut.errors import InputError, MissingEnvironmentError, TailcutError
from tailcut.progress import Reporter, silent
from tailcut.results import BenchResult, Workload
from tailcut.sweep_grid import Grid
from tailcut.sweep_points import SweepPoint

KINDS: Final[Mapping[str, type[Any]]] = {"BenchResult": BenchResult, "SweepPoint": SweepPoint}
_LOOK_S: Final = 5.0  # between looks at what has ended


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster, as Ray names it."""

    id: str
    address: str
    cpus: float

    def __str__(self) -> str:
        return f"{self.address} ({self.id[:8]})"


@dataclass(frozen=True, slots=True)
class Heard:
    """What one machine answered; `reason` says why there are no results."""

    node: Node
    results: tuple[BenchResult | SweepPoint, ...] = ()
    model: str = ""  # as the manifest there says
    reason: str = ""


@dataclass(frozen=True, slots=True)
class BenchTask:
    """`tailcut bench` of two packages, under paths that hold on every machine."""

    __pydantic_config__: ClassVar = FORBID_EXTRA
    dense: str
    sparse: str
    engines: tuple[str, ...]
    settings: Mapping[str, int]  # of the workload; without threads, all physical cores of each machine


@dataclass(frozen=True, slots=True)
class SweepTask:
    """`tailcut sweep` of a grid; each machine writes into a directory of its own below `out`."""

    __pydantic_config__: ClassVar = FORBID_EXTRA
    grid: Grid
    out: str


Task = BenchTask | SweepTask
Answer = dict[str, Any]  # {"model", "reason", "results": [[kind, JSON], …]}
Perform = Callable[[str, str], Answer]


def perform(kind: str, task: str) -> Answer:
    """Run one task on this machine; every expected failure is a reason, as plain data for the way back."""
    try:
        if kind == "BenchTask":
            return _bench(codec.from_json(BenchTask, task, "task"))
        return _sweep(codec.from_json(SweepTask, task, "task"))
    except TailcutError as error:
        return {"reason": str(error)}


def _bench(task: BenchTask) -> Answer:
    from tailcut.bench.machine import physical_cpus
    from tailcut.bench.run import bench
    from tailcut.manifest import read_manifest

    settings: dict[str, Any] = {"threads": len(physical_cpus())} | dict(task.settings)
    workload = Workload(**settings)
    result = bench(Path(task.dense), Path(task.sparse), engines=task.engines, workload=workload)
    name = read_manifest(Path(task.dense)).source.get("name", "")
    return {"model": name, "results": [["BenchResult", codec.to_json(result)]]}


def _sweep(task: SweepTask) -> Answer:
    from tailcut.sweep import sweep

    swept = sweep(task.grid, Path(task.out) / socket.gethostname())
    return {"results": [["SweepPoint", codec.to_json(point)] for point in swept.points]}


@contextmanager
def cluster(address: str | None) -> Iterator[Any]:
    """A connection to a running cluster: ray, or MissingEnvironmentError with what to do."""
    try:
        import ray
    except ImportError as error:
        raise MissingEnvironmentError("tailcut fleet needs Ray; install tailcut[fleet]") from error
    joined = ray.is_initialized()  # a caller's own connection stays the caller's
    try:
        if not joined:
            ray.init(address=address or "auto", log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise MissingEnvironmentError(
            f"no Ray cluster at {address or 'this machine'} ({str(error).splitlines()[0]}); start one with "
            "`ray start --head` and `ray start --address HOST:6379` on the others, or name one with --address"
        ) from error
    try:
        yield ray
    finally:
        if not joined:
            ray.shutdown()


def nodes(ray: Any) -> tuple[Node, ...]:  # noqa: ANN401  (an optional package)
    """The machines that are alive and offer CPUs."""
    alive = (node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU"))
    found = (Node(node["NodeID"], node["NodeManagerAddress"], float(node["Resources"]["CPU"])) for node in alive)
    return tuple(sorted(found, key=lambda node: (node.address, node.id)))


def everywhere(
    ray: Any,  # noqa: ANN401
    task: Task,
    *,
    heard: Callable[[Heard], object],
    timeout_s: float | None = None,
    work: Perform = perform,
    report: Reporter = silent,
) -> tuple[Heard, ...]:
    """Run the task on every machine at once; `heard` is called as each ends. timeout_s: give up on the others then."""
    machines = nodes(ray)
    if not machines:
        raise MissingEnvironmentError("the cluster has no machine that offers CPUs; see `ray status`")
    began = time.monotonic()
    waiting = {_start(ray, work, node, task): node for node in machines}
    answers: list[Heard] = []
    while waiting:
        report("fleet", len(answers), len(machines), f"waiting for {', '.join(map(str, waiting.values()))}")
        ended, _ = ray.wait(list(waiting), num_returns=1, timeout=_LOOK_S)
        late = timeout_s is not None and time.monotonic() - began > timeout_s
        for reference in ended or (list(waiting) if late else []):
            node = waiting.pop(reference)
            answer = _given_up(ray, reference, node, timeout_s) if not ended else _answer(ray, reference, node)
            heard(answer)
            answers.append(answer)
    report("fleet", len(answers), len(machines))
    return tuple(answers)


def _start(ray: Any, work: Perform, node: Node, task: Task) -> Any:  # noqa: ANN401
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # no retries: a benchmark that killed its machine once is not to kill another
    remote = ray.remote(work).options(
        num_cpus=node.cpus, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
    )
    return remote.remote(type(task).__name__, codec.to_json(task))


def _answer(ray: Any, reference: Any, node: Node) -> Heard:  # noqa: ANN401
    try:
        return _checked(ray.get(reference), node)
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return Heard(node, reason=f"{type(error).__name__}: {lines[-1] if lines else 'no more is known'}")


def _checked(answer: object, node: Node) -> Heard:
    """An answer is data from elsewhere: of the right form, or a reason."""
    if not isinstance(answer, dict):
        return Heard(node, reason="the answer is not of tailcut's form; install the same version everywhere")
    if answer.get("reason"):
        return Heard(node, reason=str(answer["reason"]))
    try:
        results = tuple(codec.from_json(KINDS[kind], text, str(node)) for kind, text in answer.get("results", ()))
    except (InputError, KeyError, TypeError, ValueError) as error:
        return Heard(node, reason=f"the answer cannot be read ({error}); install the same version everywhere")
    return Heard(node, results, str(answer.get("model", "")))


def _given_up(ray: Any, reference: Any, node: Node, timeout_s: float | None) -> Heard:  # noqa: ANN401
    with suppress(ray.exceptions.RayError, ValueError):
        ray.cancel(reference, force=True)
    return Heard(node, reason=f"gave no answer in {timeout_s:.0f} s; the task was cancelled")
