"""One worker of the big table: tasks as lines of JSON on stdin, one line of JSON back for each on stdout.

Tasks: `dense` (windows, hidden states and losses of the dense model), `spectra` (metrics that look at weights), `text`
(those that look at inputs, one calibration seed), `cell`. The first three write files into the work directory, each
with one rename, which all workers read. A cell's model is cut in memory, block by block as tailcut.compress.run
does, while the windows of the test text follow through the cut blocks; nothing is written.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from alloc_cells import (
    SPECTRA_METRICS,
    TEXT_METRICS,
    VARIANTS,
    Cell,
    cell_of,
    merged,
    search_file,
)  # beside this script

from tailcut import codec, plugins
from tailcut.allocation import Allocation, LayerScore, LayerScores
from tailcut.bitmask import Array
from tailcut.checkpoint import Checkpoint
from tailcut.compress.blocks import Stream, max_positions, open_stream, run_through
from tailcut.compress.calibration import Calibration, draw
from tailcut.compress.cutting import Method, cut_blocks
from tailcut.compress.discovery import linears_of_skeleton
from tailcut.compress.divergence import Finished, window_losses
from tailcut.compress.job import PRUNERS
from tailcut.compress.measure import measure
from tailcut.compress.perplexity import tokenise
from tailcut.compress.pruners import Pruner
from tailcut.compress.resident import Weights, forward_dtype
from tailcut.compress.skeleton import build_skeleton
from tailcut.compress.spectra import resolve_device
from tailcut.compress.statistics import exact_float32, quick_float32
from tailcut.windows import perplexity, read_text

_TOKENS_AT_ONCE: Final = 32768  # of the test and the calibration text, on a GPU


@dataclass(frozen=True)
class Setup:
    """What all tasks of a run share; the parent gives it as JSON."""

    models: dict[str, str]
    text: str
    calibration: str
    work: str
    context: int
    windows: int | None
    samples: int
    seqlen: int
    device: str
    forward: str
    search_minutes: float
    search_evaluations: int | None
    share: float  # of a GPU's memory that a search may take

    def file(self, model: str, name: str) -> Path:
        return Path(self.work) / f"{model}.{name}"

    def drawn_by(self, seed: int) -> Calibration:
        return Calibration(self.calibration, self.samples, self.seqlen, seed)


class Kept(Checkpoint):
    """A checkpoint whose tensors stay in memory: a worker reads each of them three times a cell."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._kept: dict[str, Array] = {}

    def read(self, name: str) -> Array:
        if name not in self._kept:
            self._kept[name] = np.array(super().read(name))
            super().release()
        return self._kept[name]

    def release(self) -> None:
        """Nothing is mapped that was kept."""


class Model:
    """A dense model in this worker: its embeddings and head, the streams in front of block 0, its dense end."""

    def __init__(self, setup: Setup, name: str) -> None:
        self.setup, self.name = setup, name
        checkpoint = Kept(Path(setup.models[name]))
        self.fingerprint = checkpoint.fingerprint()
        self.skeleton = build_skeleton(checkpoint)
        device = resolve_device(setup.device)
        self.weights = Weights(checkpoint, self.skeleton, device, torch.float32)
        self.weights.load_rest()
        self.passes = self.weights  # what calibration text runs through
        if setup.forward != "float32":
            self.passes = Weights(checkpoint, build_skeleton(checkpoint), device, forward_dtype(setup.forward))
            self.passes.load_rest()
        self.linears = linears_of_skeleton(checkpoint, self.skeleton)
        self.windows = self._windows()
        self._test = open_stream(self.weights, self.windows, self._batch(setup.context))
        self._calibrated: tuple[int, Stream] | None = None
        self._end: Finished | None = None

    def _windows(self) -> Any:  # noqa: ANN401  (an integer array)
        path = self.setup.file(self.name, "windows.npy")
        if path.is_file():
            return np.load(path)
        found, _ = tokenise(self.weights.checkpoint.directory, read_text(Path(self.setup.text)), self.setup.context)
        kept = found[: self.setup.windows]
        _save(path, kept)
        return kept

    def _batch(self, length: int) -> int:
        """Windows at a time."""
        return max(1, _TOKENS_AT_ONCE // length) if self.weights.device.type == "cuda" else 1

    def test(self) -> Stream:
        """The test text in front of block 0, to be advanced."""
        return self._test.again()

    def calibration(self, seed: int) -> Stream:
        """The calibration text in front of block 0, to be advanced."""
        if self._calibrated is None or self._calibrated[0] != seed:
            self._calibrated = None  # so that two are never in memory
            limit = max_positions(self.skeleton.model)
            tokens = draw(self.setup.drawn_by(seed), self.weights.checkpoint.directory, limit)
            self._calibrated = seed, open_stream(self.passes, tokens.tokens, self._batch(self.setup.seqlen))
        return self._calibrated[1].again()

    def products(self) -> AbstractContextManager[None]:
        """Of the passes over the test text, the dense model's and the cut ones' alike."""
        return exact_float32() if self.setup.forward == "float32" else quick_float32()

    def end(self) -> Finished:
        """The test text behind the dense model's last block, as the task `dense` wrote it."""
        if self._end is None:
            hidden, batches = torch.from_numpy(np.load(self.setup.file(self.name, "dense.npy"))), list[torch.Tensor]()
            for batch in self._test.batches:
                batches.append(hidden[: len(batch)].to(batch.device))
                hidden = hidden[len(batch) :]
            self._end = Finished(self.weights, Stream(batches, self._test.tape, self._test.device))
        return self._end

    def scores(self, cell: Cell) -> LayerScores:
        """What the cell's plan reads; at least the shapes."""
        layers = tuple(LayerScore(linear.name, linear.block, linear.shape, {}) for linear in self.linears)
        found = LayerScores(self.fingerprint, layers, self.weights.checkpoint.total_parameters())
        files = {"spectra": "spectra.json", "text": f"text{cell.seed}.json"}
        for need in cell.needs:
            found = merged(found, codec.load(LayerScores, self.setup.file(self.name, files[need])))
        return found


class Worker:
    """Carries tasks out; keeps one model."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._model: Model | None = None

    def model(self, name: str) -> Model:
        if self._model is None or self._model.name != name:
            self._model = None
            self._model = Model(self.setup, name)
        return self._model

    def carry_out(self, task: dict[str, Any]) -> dict[str, Any]:
        match task["kind"]:
            case "dense":
                return self.dense(task["model"])
            case "spectra":
                return self.scores(task["model"], "spectra.json", SPECTRA_METRICS, None)
            case "text":
                seed = int(task["seed"])
                return self.scores(task["model"], f"text{seed}.json", TEXT_METRICS, self.setup.drawn_by(seed))
            case _:
                return self.cell(cell_of(task["key"]))

    def scores(self, name: str, file: str, metrics: tuple[str, ...], calibration: Calibration | None) -> dict[str, Any]:
        found = measure(
            Path(self.setup.models[name]), metrics=metrics, device=self.setup.device, calibration=calibration
        )
        codec.save(found.scores, self.setup.file(name, file))
        return {}

    def dense(self, name: str) -> dict[str, Any]:
        model = self.model(name)
        stream = model.test()
        end = Finished(model.weights, stream)
        with model.products():
            run_through(model.weights, stream)
            nats, _ = window_losses(end, end, model.windows)
        _save(self.setup.file(name, "dense.npy"), torch.cat([batch.cpu() for batch in stream.batches]).numpy())
        facts = {
            "fingerprint": model.fingerprint,
            "parameters": model.weights.checkpoint.total_parameters(),
            "windows": len(model.windows),
        }
        return facts | _losses(nats, self.setup.context)

    def cell(self, cell: Cell) -> dict[str, Any]:
        model = self.model(cell.model)
        began = time.perf_counter()
        allocation = self.plan(cell, model)
        planned = time.perf_counter()
        row, end = cut(model, allocation, cell)
        finished = time.perf_counter()
        with model.products():
            nats, kl = window_losses(end, model.end(), model.windows)
        row |= {"plan_s": planned - began, "cut_s": finished - planned, "score_s": time.perf_counter() - finished}
        row = {name: round(value, 6) if isinstance(value, float) else value for name, value in row.items()}
        if cell.searches:
            row["provenance"] = dict(allocation.provenance)
            row["plan"] = {name: str(plan.pattern) for name, plan in allocation.plans.items()}
        scored = self.setup.context - 1
        kl_rounded = [float(f"{value / scored:.3g}") for value in kl]
        return row | _losses(nats, self.setup.context) | {"kl": float(np.mean(kl) / scored), "kls": kl_rounded}

    def plan(self, cell: Cell, model: Model) -> Allocation:
        """Arithmetic, a search whose plan is kept, or the plan that such a search left."""
        if cell.source is None:
            return cell.plan(model.scores(cell))
        file = search_file(Path(self.setup.work), cell.source.key, "plan.json")
        if cell.searches:
            codec.save(self.search(cell, model), file)
        return codec.load(Allocation, file)

    def search(self, cell: Cell, model: Model) -> Allocation:
        """The plan of an allocator that tries plans on the calibration text. Its journal stays in the work directory."""
        from tailcut.compress import searches

        effort = searches.Effort(minutes=self.setup.search_minutes)
        if self.setup.search_evaluations is not None:
            effort = searches.Effort(evaluations=self.setup.search_evaluations)
        task = searches.Task(
            model=Path(self.setup.models[cell.model]),
            scores=model.scores(cell),
            budget=cell.budget,
            pruner=cell.pruner,
            calibration=self.setup.drawn_by(cell.seed),
            effort=effort,
            device=self.setup.device,
            trace=search_file(Path(self.setup.work), cell.key, "search.jsonl"),
        )
        with self.share_of_gpu():
            found: Allocation = searches.search(VARIANTS[cell.variant].allocator, task)
        return found

    @contextmanager
    def share_of_gpu(self) -> Iterator[None]:
        """Searches beside each other must not count on the same memory; other cells take what they need."""
        shared = self.setup.device == "cuda" and self.setup.share < 1.0
        if shared:
            torch.cuda.set_per_process_memory_fraction(self.setup.share)
        try:
            yield
        finally:  # a search that failed leaves the worker to other cells
            if shared:
                torch.cuda.set_per_process_memory_fraction(1.0)


def cut(model: Model, allocation: Allocation, cell: Cell) -> tuple[dict[str, Any], Finished]:
    """The model cut block by block, the test text following; what was realised, and the cut model's end."""
    method = Method(cast(Pruner, plugins.load(PRUNERS, cell.pruner)))
    calibration, test = model.calibration(cell.seed), model.test()
    blocks = len(model.skeleton.blocks)
    zeros, sizes = np.zeros(blocks), np.zeros(blocks)
    for linear in model.linears:
        sizes[linear.block] += linear.parameters
    for index, done in enumerate(cut_blocks(model.passes, model.linears, allocation, method, calibration)):
        with model.weights.block(index, done.tensors) as block, model.products():
            test.advance(index, block)
        kept = (np.count_nonzero(done.tensors[one.tensor]) for one in model.linears if one.block == index)
        zeros[index] = sizes[index] - sum(map(int, kept))
    planned = allocation.sparsity({linear.name: linear.parameters for linear in model.linears})
    facts = {"sparsity": float(zeros.sum() / sizes.sum()), "planned": planned}
    return facts | {"blocks": [round(float(share), 4) for share in zeros / sizes]}, Finished(model.weights, test)


def _losses(nats: Any, context: int) -> dict[str, Any]:  # noqa: ANN401  (a float array)
    return {"ppl": perplexity(nats, context - 1), "nll": [float(f"{value:.5g}") for value in nats]}


def _save(path: Path, array: Any) -> None:  # noqa: ANN401  (any array)
    """Written beside and renamed: another worker reads all of it or nothing."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    with beside.open("wb") as file:
        np.save(file, array)
    beside.replace(path)


def main() -> None:
    """Answers go to the stdout that the parent gave; anything printed meanwhile goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    setup = Setup(**json.loads(sys.stdin.readline()))
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    worker = Worker(setup)
    print(
        json.dumps({"ready": torch.cuda.get_device_name() if torch.cuda.is_available() else None}),
        file=answers,
        flush=True,
    )
    for line in sys.stdin:
        try:
            with exact_float32():
                answer = worker.carry_out(json.loads(line))
        except Exception as error:  # noqa: BLE001  (whatever it is, the parent is told and other cells go on)
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
        if "CUDA" in str(answer.get("error")):
            sys.exit(1)  # its context may be spoilt; the parent starts another worker


if __name__ == "__main__":
    main()
