"""Distillation of the whole model: what `distill` and `lora` share. Student and teacher are resident at once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tailcut.compress.journal import Journal
from tailcut.compress.recovery import Task
from tailcut.compress.recovery._divergence import Pair, Ways
from tailcut.compress.recovery._learning import Pace, Place, learn
from tailcut.compress.recovery._store import Recovered, float32_of, store_block, store_rest
from tailcut.compress.recovery._student import Student, open_weights
from tailcut.compress.recovery._support import Make, Support, attach, original, recovered, remask, require_mask
from tailcut.compress.resident import Weights
from tailcut.progress import Reporter
from tailcut.results import RecoveryStage

HELDOUT_BATCH = 8  # windows


@dataclass(frozen=True, slots=True)
class How:
    """What tells the two methods apart."""

    name: str
    rate: float
    make: Make
    all_weights: bool  # also embeddings, norms, biases and head; False: what the supports hold


@dataclass(slots=True)
class Whole:
    """A `Learner`: the student with its supports beside its teacher."""

    task: Task
    pair: Pair
    modules: Mapping[str, tuple[nn.Module, Support]]  # by module name
    plain: Mapping[str, nn.Parameter]  # learnt as they are, by checkpoint tensor
    parameters: Mapping[str, nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        found = dict(self.plain)
        for name, (module, support) in self.modules.items():
            own = {f"{name}.{part}": item for part, item in support.named_parameters()}
            found |= own or {f"{name}.weight": original(module)}
        unique = {id(item): (name, item) for name, item in reversed(found.items())}
        self.parameters = dict(sorted(unique.values()))
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)

    @property
    def tokens(self) -> int:
        return self.task.settings.batch * self.task.texts.seqlen

    def backward(self, step: int) -> Tensor:
        settings = self.task.settings
        windows, size = self.task.texts.batch(step, settings.batch), settings.at_once or settings.batch
        parts = [windows[start : start + size] for start in range(0, len(windows), size)]
        return torch.stack([self.pair.backward(part, len(part) / len(windows)) for part in parts]).sum()

    def remask(self) -> None:
        for module, support in self.modules.values():
            remask(module, support)

    def require_masks(self) -> None:
        for name, (module, support) in self.modules.items():
            require_mask(name, module, support)

    def heldout(self) -> float:
        windows = self.task.texts.heldout
        parts = [windows[start : start + HELDOUT_BATCH] for start in range(0, len(windows), HELDOUT_BATCH)]
        return sum(self.pair.kl(part) * len(part) for part in parts) / len(windows)

    def block(self, index: int) -> dict[str, Recovered]:
        """The matrices of a block as they are now."""
        of = self.task.student.of(index)
        return {linear.name: recovered(*self.modules[linear.name], linear.transposed) for linear in of}


def recover_whole(task: Task, journal: Journal, report: Reporter, how: How) -> RecoveryStage:
    """Learn, then store; a state that has ended is only stored."""
    whole = _open(task, how)
    pace = Pace(task.effort, task.settings.rate or how.rate, task.settings.patience)
    place = Place(journal.work / "learning.safetensors", task.student.mask_sha256(), how.name)
    state = learn(whole, pace, place, report)
    student = task.student
    for index in range(student.blocks):
        if not journal.has(student.shard(index)):
            names = set(student.tensors[index].values()) if how.all_weights else set()
            store_block(journal, student, index, whole.block(index), _plain(whole, names))
    if not journal.has(student.shard(student.blocks)):
        store_rest(journal, student, _plain(whole, set(student.weights.rest.values()) if how.all_weights else set()))
    tokens = state.step * whole.tokens
    unit, curve = "KL, nats a token", tuple(state.curve)
    return RecoveryStage(how.name, unit, state.ended, state.step, tokens, state.seconds, state.best_step, curve)


def _plain(whole: Whole, names: set[str]) -> dict[str, Tensor]:
    return {name: float32_of(item) for name, item in whole.plain.items() if name in names}


def _open(task: Task, how: How) -> Whole:
    student, on_gpu = task.student, task.student.weights.device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    teacher = open_weights(task.teacher.checkpoint.directory, task.student.weights.device.type, dtype)
    _load(student.weights, student)
    _load(teacher, None)
    matrices = {linear.tensor for linear in student.linears}
    plain = dict(_plain_parameters(student, matrices)) if how.all_weights else {}
    modules: dict[str, tuple[nn.Module, Support]] = {}
    skeleton = student.weights.skeleton
    for index, block in enumerate(skeleton.blocks):
        supports = attach(student, block, index, how.make)
        modules |= {name: (skeleton.model.get_submodule(name), support) for name, support in supports.items()}
    features = task.settings.features
    blocks = list(zip(skeleton.blocks, teacher.skeleton.blocks, strict=True)) if features else []
    ways = Ways.of(skeleton.model, teacher.skeleton.model, compiled=task.settings.compiled)
    pair = Pair(skeleton.model, teacher.skeleton.model, blocks, student.weights.device, features, ways)
    return Whole(task, pair, modules, plain)


def _load(weights: Weights, student: Student | None) -> None:
    weights.load_rest()
    for index in range(len(weights.skeleton.blocks)):
        weights.load_block(index, student.exact(index) if student else None)
    weights.checkpoint.release()


def _plain_parameters(student: Student, matrices: set[str]) -> Iterator[tuple[str, nn.Parameter]]:
    """Checkpoint tensor and parameter of everything that is learnt without a mask."""
    model: Any = student.weights.skeleton.model
    for index, block in enumerate(student.weights.skeleton.blocks):
        for name, tensor in student.tensors[index].items():
            if tensor not in matrices:
                yield tensor, block.get_parameter(name)
    for name, tensor in student.weights.rest.items():
        yield tensor, model.get_parameter(name)
