"""The big table: every allocator at every sparsity, with Wanda and SparseGPT, on several models and calibration seeds.

    python benchmarks/alloc_table.py run smollm2-135m=DIR gemma3-270m=DIR --text wiki.test.raw --calibration c4.jsonl \
        --work /tmp/alloc --gpus 4 --workers-a-gpu 6 --minutes 9 -o benchmarks/results/alloc_table.json
    python benchmarks/alloc_table.py list smollm2-135m gemma3-270m          # cells in the order of their importance
    python benchmarks/alloc_table.py table benchmarks/results/alloc_table.json
    python benchmarks/alloc_table.py plot benchmarks/results/alloc_table.json -o docs/images/alloc_table.svg

`run` hands cells to worker processes, most important first, and stops handing out when the minutes are over. A finished
cell is a line in OUTPUT.jsonl at once, and in OUTPUT at the end; a later call, also on another machine with these files
(or with --earlier FILE), goes on with what is missing. What a model needs once (dense losses and hidden states, scores)
lies in --work and is made again where it is absent. A cell whose worker fails is told and stays open.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import alloc_table_render as shown  # beside this script
from alloc_cells import PATTERNS, PRUNERS, SPARSITIES, VARIANTS, Cell, cell_of, cells, search_file

from tailcut.bench.machine import commit, describe_machine, usable_cpus
from tailcut.errors import InputError
from tailcut.files import sha256_file, write_file

OUTPUT: Final = Path("benchmarks/results/alloc_table.json")
_DEATHS: Final = 3  # of one worker's processes before it is given up
_Task = dict[str, Any]


class Results:
    """OUTPUT.jsonl, a line a finished cell, and OUTPUT, all of them."""

    def __init__(self, path: Path, head: dict[str, Any], effort: float, earlier: Sequence[Path] = ()) -> None:
        self.path, self.head, self.effort = path, head, effort
        self.rows: dict[str, dict[str, Any]] = {}
        self.dense: dict[str, dict[str, Any]] = {}
        for file in (*earlier, path):
            if file.is_file():
                self._take_over(json.loads(file.read_bytes()), file)
        if self.lines.is_file():
            for line in self.lines.read_text().splitlines():
                self._note(json.loads(line))

    @property
    def lines(self) -> Path:
        return self.path.with_suffix(".jsonl")

    def _take_over(self, content: dict[str, Any], file: Path) -> None:
        setup = dict(content["setup"])
        effort = setup.pop("search", None)  # earlier files had one for all their rows
        if setup != self.head["setup"]:
            raise InputError(f"{file}: was measured with another setup ({setup}); choose another output")
        for key, row in content["rows"].items():
            self.rows[key] = row | ({"search": effort} if cell_of(key).searches and "search" not in row else {})
        self.dense |= content["models"]

    def holds(self, cell: Cell) -> bool:
        """Whether it is measured; of `auto` and `evo`, with the time or evaluations of this run."""
        return cell.key in self.rows and self.rows[cell.key].get("search", self.effort) == self.effort

    def _note(self, entry: dict[str, Any]) -> None:
        (self.dense if entry["kind"] == "dense" else self.rows)[entry["key"]] = entry["row"]

    def add(self, kind: str, key: str, row: dict[str, Any]) -> None:
        """Durable when this returns."""
        entry = {"kind": kind, "key": key, "row": row}
        with self.lines.open("a") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._note(entry)

    def save(self) -> None:
        content = self.head | {"models": self.dense, "rows": dict(sorted(self.rows.items()))}
        write_file(self.path, (json.dumps(content, separators=(",", ":")) + "\n").encode())


@dataclass
class Queue:
    """What is left to do. A task is ready when the files of its model that it reads are there."""

    todo: list[_Task]
    ends: float  # time.monotonic() after which nothing is started
    search_s: float  # how long a cell that searches takes at least
    running: int = 0
    made: set[tuple[str, ...]] = field(default_factory=set)
    lock: threading.Condition = field(default_factory=threading.Condition)

    def next(self) -> _Task | None:
        """The first task that is ready, waiting for one where others are at work; None: nothing more."""
        with self.lock:
            while self.todo and time.monotonic() < self.ends:
                task = next((task for task in self.todo if self._ready(task)), None)
                if task is not None:
                    self.todo.remove(task)
                    self.running += 1
                    return task
                if not self.running:
                    return None
                self.lock.wait(timeout=0.5)
            return None

    def _ready(self, task: _Task) -> bool:
        if task["kind"] == "cell" and task["searches"] and time.monotonic() + self.search_s > self.ends:
            return False
        return set(task["needs"]) <= self.made

    def done(self, task: _Task, *, good: bool) -> None:
        with self.lock:
            self.running -= 1
            if good and task.get("makes"):
                self.made.add(tuple(task["makes"]))
            self.lock.notify_all()


class Hand:
    """One worker's process, started again when it dies."""

    def __init__(self, number: int, options: argparse.Namespace, setup: dict[str, Any]) -> None:
        self.number, self.options, self.setup = number, options, setup
        self.deaths = 0
        self.device: str | None = None
        self._process: subprocess.Popen[str] | None = None
        self._log = Path(options.work) / f"worker{number}.log"

    def ask(self, task: _Task) -> dict[str, Any]:
        """The answer to a task; `error` in it if there was none."""
        try:
            process = self._process or self._start()
            assert process.stdin is not None
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.flush()
            return self._read(process)
        except (OSError, EOFError, ValueError) as error:
            self.deaths += 1
            code = self._process.wait() if self._process else None
            self._process = None
            return {"error": f"the worker died (exit code {code}, {type(error).__name__}); see {self._log.name}"}

    def _start(self) -> subprocess.Popen[str]:
        gpus, workers = self.options.gpus, max(1, self.options.gpus) * self.options.workers_a_gpu
        threads = str(max(1, len(usable_cpus()) // workers))
        environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        environment |= {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
        if gpus:
            allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
            devices = allowed.split(",") if allowed else [str(index) for index in range(gpus)]
            environment["CUDA_VISIBLE_DEVICES"] = devices[self.number % gpus]
        words = [sys.executable, str(Path(__file__).with_name("alloc_worker.py"))]
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(self.setup) + "\n")
        self._process.stdin.flush()
        self.device = self._read(self._process)["ready"]
        return self._process

    @staticmethod
    def _read(process: subprocess.Popen[str]) -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise EOFError
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def tasks_of(wanted: Sequence[Cell], results: Results, models: Sequence[str]) -> list[_Task]:
    """What is missing, dense models and scores before the cells that need them, in the order of the cells."""
    listed: list[_Task] = []
    known: set[tuple[str, ...]] = set()
    for cell in wanted:
        if results.holds(cell):
            continue
        makes = {"spectra": ("spectra", cell.model), "text": ("text", cell.model, str(cell.seed))}
        needs = [("dense", cell.model), *(makes[need] for need in cell.needs)]
        for need in needs:
            if need not in known:
                known.add(need)
                seed = {"seed": need[2]} if len(need) > 2 else {}
                listed.append({"kind": need[0], "model": need[1], "makes": need, "needs": []} | seed)
        plan = ("plan", cell.source.key) if cell.source else ()
        reads, makes_plan = (needs, plan) if cell.searches or not plan else ([*needs, plan], ())
        listed.append({"kind": "cell", "key": cell.key, "needs": reads, "searches": cell.searches, "makes": makes_plan})
    # what others wait for goes first, for seed 0 of every model at least
    return sorted(listed, key=lambda task: task["kind"] == "cell" or int(task.get("seed", 0)) > 0)


def prepared(task: _Task, work: Path, results: Results) -> bool:
    """Whether an earlier call left what the task makes."""
    match task["kind"]:
        case "dense":
            files = [f"{task['model']}.dense.npy", f"{task['model']}.windows.npy"]
            return task["model"] in results.dense and all((work / name).is_file() for name in files)
        case "spectra":
            return (work / f"{task['model']}.spectra.json").is_file()
        case "text":
            return (work / f"{task['model']}.text{task['seed']}.json").is_file()
    return False


def _serve(hand: Hand, queue: Queue, results: Results, facts: dict[str, Any]) -> None:
    """One worker's thread: tasks until there are none, or until the worker died too often."""
    while hand.deaths < _DEATHS and (task := queue.next()) is not None:
        began, answer = time.monotonic(), hand.ask(task)
        seconds = time.monotonic() - began
        name = str(task.get("key") or " ".join(task["makes"]))
        if "error" in answer:
            print(f"FAILED {name}: {answer['error']}", flush=True)
        elif task["kind"] in ("cell", "dense"):
            own = facts if task.get("searches") else {"commit": facts["commit"]}
            row = answer | {"seconds": round(seconds, 2), "device": hand.device or "cpu"} | own
            with queue.lock:
                results.add(task["kind"], str(task.get("key") or task["model"]), row)
            told = "".join(f", {key} {answer[key]:.4g}" for key in ("ppl", "kl", "sparsity") if key in answer)
            print(f"{name}: {seconds:.1f} s{told}", flush=True)
        else:
            print(f"{name}: {seconds:.1f} s", flush=True)
        queue.done(task, good="error" not in answer)


def run(options: argparse.Namespace) -> None:
    models = {name: str(Path(path).resolve()) for name, path in (item.split("=", 1) for item in options.models)}
    setup = {name: getattr(options, name) for name in ("context", "windows", "samples", "seqlen", "forward", "device")}
    described = setup | {
        "text": sha256_file(options.text),
        "calibration": sha256_file(options.calibration),
    }
    described.pop("device")
    machine = asdict(describe_machine()) | {"commit": options.commit or commit(Path(__file__).parents[1])}
    names = {"text": options.text.name, "calibration": options.calibration.name}
    head = {"what": "allocators after one-shot pruning, no recovery", "machine": machine, "names": names}
    options.work.mkdir(parents=True, exist_ok=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    effort = options.search_evaluations or options.search_minutes
    results = Results(options.output, head | {"setup": described}, effort, options.earlier)
    wanted = cells(list(models), _narrowed(options))
    listed = tasks_of(wanted, results, list(models))
    made = {tuple(task["makes"]) for task in listed if prepared(task, options.work, results)}
    made |= {("plan", key) for key in results.rows if search_file(options.work, key, "plan.json").is_file()}
    todo = [task for task in listed if task["kind"] == "cell" or tuple(task["makes"]) not in made]
    queue = Queue(todo, time.monotonic() + 60 * options.minutes, 60 * options.search_minutes, made=made)
    shared = setup | {
        "models": models,
        "text": str(options.text.resolve()),
        "calibration": str(options.calibration.resolve()),
        "work": str(options.work.resolve()),
        "search_minutes": options.search_minutes,
        "search_evaluations": options.search_evaluations,
        "share": options.share or 1 / options.workers_a_gpu,
    }
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # `timeout` ends a call as Ctrl-C does, with the file saved
    try:
        _work(queue, results, options, shared, {"commit": machine["commit"], "search": effort})
    finally:
        results.save()
    left = sum(not results.holds(cell) for cell in wanted)
    print(f"{len(wanted) - left} of {len(wanted)} cells measured, {left} open; {options.output}", flush=True)


def _work(
    queue: Queue, results: Results, options: argparse.Namespace, setup: dict[str, Any], facts: dict[str, Any]
) -> None:
    """All workers until the queue is empty or the time is over; what still runs after the grace is ended."""
    hands = [Hand(number, options, setup) for number in range(max(1, options.gpus) * options.workers_a_gpu)]
    threads = [threading.Thread(target=_serve, args=(hand, queue, results, facts), daemon=True) for hand in hands]
    for thread in threads:
        thread.start()
    last = queue.ends + options.grace
    try:
        for thread in threads:
            thread.join(max(0.0, last - time.monotonic()))
    finally:
        for hand in hands:
            hand.deaths = _DEATHS  # it starts no other process
            hand.close()
        for thread in threads:
            thread.join(5)


def _narrowed(options: argparse.Namespace) -> dict[str, list[Any]]:
    return {name: getattr(options, name) or [] for name in ("variants", "pruners", "targets", "seeds")}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    action = actions.add_parser("run", help="measure")
    action.add_argument("models", nargs="+", metavar="NAME=DIRECTORY")
    action.add_argument("--text", type=Path, required=True)
    action.add_argument("--calibration", type=Path, required=True)
    action.add_argument("--work", type=Path, required=True)
    action.add_argument("--gpus", type=int, default=0, help="0: the CPU")
    action.add_argument("--workers-a-gpu", type=int, default=1)
    action.add_argument("--share", type=float, help="of a GPU's memory that a search may take; default: one worker's")
    action.add_argument("--minutes", type=float, default=1e6, help="no cell is started after these")
    action.add_argument("--grace", type=float, default=40.0, help="seconds after which running cells are given up")
    action.add_argument("--context", type=int, default=2048)
    action.add_argument("--windows", type=int)
    action.add_argument("--samples", type=int, default=128)
    action.add_argument("--seqlen", type=int, default=2048)
    action.add_argument(
        "--forward",
        default="float32",
        choices=("float32", "bfloat16"),
        help="passes over calibration text; with bfloat16 those over the test text take TF32 products",
    )
    action.add_argument("--search-minutes", type=float, default=3.0, help="of auto and evo")
    action.add_argument("--search-evaluations", type=int, help="of auto and evo, instead of minutes")
    action.add_argument("--earlier", type=Path, nargs="+", default=[], help="results of earlier calls to go on from")
    action.add_argument("--commit", help="of tailcut, where the checkout holds no git history")
    action.add_argument("-o", "--output", type=Path, default=OUTPUT)
    lister = actions.add_parser("list", help="cells in order")
    lister.add_argument("models", nargs="+", metavar="NAME")
    for one in (action, lister):
        one.add_argument("--variants", nargs="+", choices=VARIANTS)
        one.add_argument("--pruners", nargs="+", choices=PRUNERS)
        one.add_argument("--targets", nargs="+", choices=(*SPARSITIES, *PATTERNS))
        one.add_argument("--seeds", nargs="+", type=int)
    table = actions.add_parser("table", help="print as Markdown")
    table.add_argument("result", type=Path, nargs="?", default=OUTPUT)
    plot = actions.add_parser("plot", help="draw")
    plot.add_argument("result", type=Path, nargs="?", default=OUTPUT)
    plot.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    if options.action == "run":
        options.device = "cuda" if options.gpus else "cpu"
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    match options.action:
        case "run":
            run(options)
        case "list":
            for cell in cells(options.models, _narrowed(options)):
                print(cell.key)
        case "table":
            content = json.loads(options.result.read_bytes())
            print(shown.render(content), shown.render_outliers(content), sep="\n\n")
        case _:
            shown.plot(json.loads(options.result.read_bytes()), options.output)


if __name__ == "__main__":
    main()
