"""Block by block by gradient: each sparse block learns its dense block's output on what the sparse blocks before it give.

All weights of the block learn, norms and biases too. A block is kept as it was where the held-out windows got no better.
Finished blocks are shards; a block that a kill interrupted begins again.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from tailcut.compress.blocks import Stream, open_stream
from tailcut.compress.journal import Journal
from tailcut.compress.recording import Call
from tailcut.compress.recovery import Task
from tailcut.compress.recovery._divergence import precision, relative_error
from tailcut.compress.recovery._learning import Pace, Place, learn
from tailcut.compress.recovery._points import block_point
from tailcut.compress.recovery._store import Recovered, float32_of, store_block
from tailcut.compress.recovery._support import Support, attach, detach, recovered, remask, require_mask
from tailcut.compress.recovery._walk import ENDED, walk
from tailcut.progress import Reporter, silent
from tailcut.results import RecoveryStage

TRAINS: Final = True
PAIRS_BLOCKS: Final = True
RATE: Final = 3e-4


@dataclass(slots=True)
class _Block:
    """A `Learner`: one block with its supports, its dense self, and the streams in front of both."""

    task: Task
    index: int
    block: nn.Module
    dense: nn.Module
    supports: Mapping[str, Support]
    training: Stream
    judging: Stream
    modules: dict[str, nn.Module] = field(init=False)
    parameters: Mapping[str, nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        prefix = self.task.student.weights.skeleton.block_prefix(self.index)
        self.modules = {name: self.block.get_submodule(name.removeprefix(prefix)) for name in self.supports}
        self.parameters = dict(self.block.named_parameters())
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)

    @property
    def tokens(self) -> int:
        return self.training.batches[0][..., 0].numel()

    def backward(self, step: int) -> Tensor:
        order = np.random.default_rng([self.task.settings.seed, self.index, step // len(self.training.batches)])
        place = int(order.permutation(len(self.training.batches))[step % len(self.training.batches)])
        hidden = self.training.batches[place].to(self.training.device).clone()
        call = _plain(self.training.tape.calls[len(hidden)][self.index])
        with torch.no_grad():
            wanted = _first(call(self.dense, hidden))
        with precision(self.training.device):
            found = _first(call(self.block, hidden))
        loss = relative_error(found, wanted)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def remask(self) -> None:
        for name, support in self.supports.items():
            remask(self.modules[name], support)

    def require_masks(self) -> None:
        for name, support in self.supports.items():
            require_mask(name, self.modules[name], support)

    def heldout(self) -> float:
        errors = []
        for batch in self.judging.batches:
            hidden = batch.to(self.judging.device).clone()
            call = _plain(self.judging.tape.calls[len(hidden)][self.index])
            with torch.no_grad():
                errors.append(float(relative_error(_first(call(self.block, hidden)), _first(call(self.dense, hidden)))))
        return sum(errors) / len(errors)


def recover(task: Task, journal: Journal, report: Reporter) -> RecoveryStage:
    """Every block in order."""

    def work(index: int, streams: Sequence[Stream]) -> None:
        _block(task, journal, index, streams)

    points = walk("blockwise", task, journal, lambda: _streams(task), work, report)
    tokens, seconds = sum(point.tokens for point in points), sum(point.seconds for point in points)
    return RecoveryStage("blockwise", "relative output error", ENDED, 0, tokens, seconds, None, points)


def _streams(task: Task) -> tuple[Stream, Stream]:
    """Training and held-out windows in front of block 0; every batch of the first has as many windows as a step."""
    weights, size = task.student.weights, task.settings.batch
    windows = max(size, task.settings.samples // size * size)
    return open_stream(weights, task.texts.rows(range(windows)), size), open_stream(weights, task.texts.heldout, size)


def _block(task: Task, journal: Journal, index: int, streams: Sequence[Stream]) -> None:
    began, student = time.monotonic(), task.student
    with task.teacher.block(index) as dense, student.weights.block(index, student.exact(index)) as block:
        learner = _Block(task, index, block, dense, attach(student, block, index), *streams)
        pace = Pace(task.effort.part(student.blocks), task.settings.rate or RATE, task.settings.patience)
        state = learn(learner, pace, Place(None, "", f"block {index}"), silent)
        matrices, others = _values(learner)
        detach(student, block, index)
    block_point(journal, index, began, state.step * learner.tokens, state.curve[0].heldout, state.best_value or 0.0)
    store_block(journal, student, index, matrices, others)


def _values(learner: _Block) -> tuple[dict[str, Recovered], dict[str, Tensor]]:
    """Matrices by module name, and everything else of the block by checkpoint tensor."""
    matrices = {
        linear.name: recovered(learner.modules[linear.name], learner.supports[linear.name], linear.transposed)
        for linear in learner.task.student.of(learner.index)
    }
    tensors = learner.task.student.tensors[learner.index]
    others = {tensors[name]: float32_of(parameter) for name, parameter in learner.parameters.items() if name in tensors}
    return matrices, others


def _first(out: Any) -> Tensor:  # noqa: ANN401  (a tensor or a tuple)
    found: Tensor = out[0] if isinstance(out, tuple) else out
    return found


def _plain(call: Call) -> Call:
    """A noted call whose tensors may be part of a graph: those noted in inference mode may not."""
    return Call(_copied(call.args), _copied(dict(call.kwargs)), call.by_keyword)


def _copied(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value
