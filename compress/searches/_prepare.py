"""From a task to its two measures: one pass of the dense model, which is read once and then stays as it is needed."""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import psutil
import torch
import transformers

from tailcut import __version__, codec
from tailcut.checkpoint import Checkpoint
from tailcut.compress.blocks import Stream, max_positions, open_stream
from tailcut.compress.calibration import CalibrationTokens, draw_apart, tokens_sha256
from tailcut.compress.collecting import collect
from tailcut.compress.cutting import Method
from tailcut.compress.discovery import Linear, linears_of_skeleton
from tailcut.compress.heads import head_parameters
from tailcut.compress.job import choose
from tailcut.compress.resident import Weights
from tailcut.compress.searches import Task
from tailcut.compress.searches._bank import Bank, bytes_of, moved
from tailcut.compress.searches._divergence import Reference
from tailcut.compress.searches._finals import Finals
from tailcut.compress.searches._grid import Grid, make_grid
from tailcut.compress.searches._measures import Measures
from tailcut.compress.searches._passes import QuickStream
from tailcut.compress.searches._proxy import Proxy
from tailcut.compress.searches._trace import open_trace
from tailcut.compress.skeleton import build_skeleton
from tailcut.compress.spectra import resolve_device
from tailcut.compress.statistics import Needs, Statistics, exact_float32
from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.progress import Reporter
from tailcut.windows import Tokens

# of the quick measure at its three fidelities, and of the slow one. On a GPU fewer tokens than 8192 take no less time
_TOKENS: Final = {"cuda": (8192, 16384, 65536), "cpu": (512, 1024, 4096)}
_FINAL_TOKENS: Final = {"cuda": 32768, "cpu": 2048}
_FOR_STATISTICS: Final = 0.25  # share of the memory that is free before the model is there
_FOR_BANK: Final = 0.4  # shares of the memory that is free once the model is there
_FOR_PROBABILITIES: Final = 0.25


@dataclass(frozen=True, slots=True)
class Texts:
    """Token windows [windows, length]: statistics are of `calibration`, the quick measure sees `search`, the slow `final`.

    No token is in two of them. `batch` windows go through the model at once; fidelities are whole batches.
    """

    calibration: CalibrationTokens
    search: Tokens
    final: Tokens
    batch: int
    fidelities: tuple[int, int, int]  # in batches


@dataclass(frozen=True, slots=True)
class Subject:
    """A task whose inputs were checked: nothing was computed yet."""

    task: Task
    grid: Grid
    weights: Weights
    linears: tuple[Linear, ...]
    method: Method
    texts: Texts
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Opened:
    """A search that may measure: nothing but the dense model was computed yet."""

    subject: Subject
    measures: Measures


@contextmanager
def opened(task: Task, name: str, report: Reporter) -> Iterator[Opened]:
    """The search `name` of a task, going on from its trace, which is closed with it; its clock starts here."""
    began = time.monotonic()
    subject = examine(task, {"search": name})
    trace = open_trace(task.trace, subject.fingerprint, began)
    if trace.earlier:
        report("search", 0, 1, f"going on after {len(trace.earlier)} measurements")
    try:
        proxy, finals = prepare(subject, report)
        measures = Measures(task.effort, trace, proxy, finals, subject.texts.fidelities, report)
        measures.begin()
        yield Opened(subject, measures)
    finally:
        trace.close()


def examine(task: Task, how: Mapping[str, object]) -> Subject:
    """Every check that needs no arithmetic. `how` goes into the fingerprint: what else decides a measurement."""
    device = resolve_device(task.device)
    grid = make_grid(task.scores, task.budget, task.effort.step, task.settings)
    method = choose(grid.ladder.plans, task.pruner, task.quantiser, clip=True)
    checkpoint = Checkpoint(task.model)
    skeleton = build_skeleton(checkpoint)
    linears = linears_of_skeleton(checkpoint, skeleton)
    wrong = {linear.name for linear in linears} ^ {layer.name for layer in task.scores.layers}
    if wrong:
        raise InputError(f"{min(wrong)}: the scores and the model do not name the same matrices; measure this model")
    texts = _texts(task, max_positions(skeleton.model), device)
    parts = {
        "model": checkpoint.fingerprint(),
        "scores": hashlib.sha256(codec.to_json(task.scores).encode()).hexdigest(),
        "budget": repr(task.budget),
        "ladder": repr(grid.ladder),
        "pruner": task.pruner,
        "quantiser": task.quantiser if method.quantiser else None,
        "tokens": [texts.calibration.sha256, tokens_sha256(texts.search), tokens_sha256(texts.final)],
        "batch": [texts.batch, texts.fidelities],
        "seed": task.calibration.seed,
        "device": device,
        "passes": "quick",  # journals from before hold exact ones
        "versions": [__version__, torch.__version__, transformers.__version__],
        **how,
    }
    fingerprint = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    weights = Weights(checkpoint, skeleton, device, torch.float32)
    return Subject(task, grid, weights, linears, method, texts, fingerprint)


def _texts(task: Task, positions: int, device: str) -> Texts:
    kind = "cuda" if device.startswith("cuda") else "cpu"
    low, middle, high = task.effort.tokens or _TOKENS[kind]
    final = task.effort.final_tokens or _FINAL_TOKENS[kind]
    length = min(task.calibration.seqlen, positions)
    wanted = _windows(high, length), _windows(final, length)
    drawn, apart = draw_apart(task.calibration, task.model, positions, sum(wanted))
    # where the text is short both get their share of it, and at least one window
    ours = min(wanted[0], max(1, len(apart.tokens) * wanted[0] // sum(wanted)), len(apart.tokens) - 1)
    batch = min(ours, _windows(low, length))
    ours -= ours % batch
    most = ours // batch
    ladder = (1, min(most, max(1, _windows(middle, length) // batch)), most)
    return Texts(drawn, apart.tokens[:ours], apart.tokens[ours : ours + wanted[1]], batch, ladder)


def _windows(tokens: int, length: int) -> int:
    return max(1, tokens // length)


def prepare(subject: Subject, report: Reporter) -> tuple[Proxy, Finals]:
    """The two measures, after one pass of the dense model over all of the text."""
    weights, texts = subject.weights, subject.texts
    _require_memory(subject)
    with exact_float32():
        weights.load_rest()
        streams = [
            open_stream(weights, texts.calibration.tokens),
            open_stream(weights, texts.search, texts.batch),
            open_stream(weights, texts.final, texts.batch),
        ]
        streams = [QuickStream.of(stream) for stream in streams]
        starts = [stream.again() for stream in streams]
        statistics = _through(subject, streams, report)
    resident = Weights(weights.checkpoint, build_skeleton(weights.checkpoint), str(weights.device), weights.dtype)
    linears = {linear.name: linear for linear in subject.linears}
    free = max(0, _free(weights.device) - 4 * weights.checkpoint.total_parameters())
    bank = Bank(
        weights.checkpoint,
        linears,
        subject.method,
        statistics,
        subject.grid.ladder,
        weights.device,
        int(free * _FOR_BANK),
    )
    kept = int(free * _FOR_PROBABILITIES)
    quick = Reference(weights, starts[1], texts.search, streams[1].batches, kept, _every(subject))
    slow = Reference(weights, starts[2], texts.final, streams[2].batches)
    proxy = Proxy(subject.grid, bank, resident, starts[1].batches, quick)
    return proxy, Finals(weights, subject.linears, subject.method, starts[0], starts[2], slow)


def _every(subject: Subject) -> int:
    """Of how many positions the quick measure scores one, so that two heads take no longer than the blocks."""
    heads, blocks = 2 * head_parameters(subject.weights), sum(linear.parameters for linear in subject.linears)
    return max(1, round(heads / blocks))


def _through(subject: Subject, streams: list[Stream], report: Reporter) -> dict[str, Statistics]:
    """All streams through the dense model; statistics of the first, in RAM from where they take too much of the device.

    The streams end behind the last block.
    """
    weights = subject.weights
    needs = frozenset[Needs]().union(*map(subject.method.needs, subject.grid.ladder.plans))
    found: dict[str, Statistics] = {}
    limit = _free(weights.device) * _FOR_STATISTICS
    blocks = len(weights.skeleton.blocks)
    for index in range(blocks):
        report("prepare", index, blocks, f"block {index}")
        linears = [linear for linear in subject.linears if linear.block == index]
        if needs:
            fresh = collect(weights, index, dict.fromkeys(linears, needs), streams[0])
            limit -= bytes_of(fresh)
            found |= fresh if limit > 0 else moved(fresh, torch.device("cpu"))
        with weights.block(index) as block:
            for stream in streams:
                stream.advance(index, block)
    report("prepare", blocks, blocks)
    return found


def _require_memory(subject: Subject) -> None:
    """The model in float32 must fit, with as much again of one matrix's work beside it."""
    weights = subject.weights
    needed = 4 * weights.checkpoint.total_parameters() * 5 // 4
    free = _free(weights.device)
    if needed > free:
        raise MissingEnvironmentError(
            f"{subject.task.model}: a search holds the whole model in float32 and needs {needed / 1e9:.1f} GB on "
            f"{weights.device}, of which {free / 1e9:.1f} GB are free; use a larger device, or an allocator"
        )


def _free(device: torch.device) -> int:
    """Bytes that are free on the device, within the share of it that this process may take.

    The share is torch's own setting (torch.cuda.set_per_process_memory_fraction): searches beside each other would all
    count on the same free memory otherwise.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
        unused = reserved - torch.cuda.memory_allocated(device)  # torch's own to give out
        allowed = int(torch.cuda.get_per_process_memory_fraction(device.index) * total) - reserved
        return max(0, min(free, allowed)) + unused
    return int(psutil.virtual_memory().available)
