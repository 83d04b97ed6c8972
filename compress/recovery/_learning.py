"""The optimiser's loop: AdamW in float32, warm-up and cosine, clipped gradients, looks at held-out text, exact resume.

State that decides the next step (weights, moments, step, curve, best weights so far) is in one file, written atomically;
data is a function of the step. With a budget in steps a run that was killed ends in the bytes of one that was not (on a
CPU, with as many threads); with a budget in minutes it goes on with the minutes that are left.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import torch
from torch import Tensor, nn

from tailcut.compress.recovery._state import State, read_state, write_state
from tailcut.errors import InputError
from tailcut.progress import Reporter
from tailcut.recovering import Effort
from tailcut.results import RecoveryPoint

LOOKS: Final = 24  # at the held-out text
WARM: Final = 0.03  # share of the effort in which the rate rises
LEAST: Final = 0.02  # of the highest rate: where it begins and ends
BETAS: Final = (0.9, 0.95)
CLIP: Final = 1.0  # norm of all gradients together
SAVE_SECONDS: Final = 120.0  # a state is written after so many at the latest,
SPARE_SECONDS: Final = 30.0  # and at a look unless the last one is younger: 2 GB for 135 M parameters take seconds


class Learner(Protocol):
    """What is learnt."""

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Float32 leaves that the optimiser moves."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        ...

    def backward(self, step: int) -> Tensor:
        """Loss of the step's batch; its gradients are left in the parameters."""
        ...

    def remask(self) -> None:
        """Zero what must be zero."""
        ...

    def require_masks(self) -> None:
        """InputError if a pruned weight is not zero."""
        ...

    def heldout(self) -> float:
        """Loss on held-out text."""
        ...


@dataclass(frozen=True, slots=True)
class Pace:
    """How long and how fast."""

    effort: Effort
    rate: float
    patience: int

    def factor(self, step: int, seconds: float) -> float:
        """What the highest rate is multiplied with at a step."""
        spent = self.effort.progress(step, seconds)
        if spent < WARM:
            return max(LEAST, spent / WARM)
        return LEAST + (1 - LEAST) * 0.5 * (1 + math.cos(math.pi * (spent - WARM) / (1 - WARM)))


@dataclass(frozen=True, slots=True)
class Place:
    """Where the state lies, and the hash of the mask it is for; `name` is the stage that is told."""

    path: Path | None  # None: too short to be worth keeping
    mask: str
    name: str


@dataclass(slots=True)
class _Run:
    learner: Learner
    pace: Pace
    place: Place
    report: Reporter
    optimiser: torch.optim.AdamW
    state: State
    began: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)
    before: float = 0.0  # seconds of earlier processes
    losses: list[Tensor] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.began

    def step(self) -> None:
        """One step of the optimiser, and whatever is due after it."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.pace.rate * self.pace.factor(self.state.step, self.seconds)
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.learner.backward(self.state.step)
        torch.nn.utils.clip_grad_norm_(list(self.learner.parameters.values()), CLIP)
        self.optimiser.step()
        self.learner.remask()
        self.state.step += 1
        self._require_finite(float(loss))
        self.state.losses.append(float(loss))
        spent = self.pace.effort.progress(self.state.step, self.seconds)
        if int(spent * LOOKS) > self.state.looks or spent >= 1.0:
            self.state.looks = int(spent * LOOKS)
            self.look(spent)
            if self.state.ended or time.monotonic() - self.saved > SPARE_SECONDS:
                self.save()
        elif time.monotonic() - self.saved > SAVE_SECONDS:
            self.save()
        self.tell()

    def look(self, spent: float) -> None:
        """Held-out loss: a point of the curve, perhaps the best one, perhaps the last."""
        state, losses = self.state, self.state.losses
        value, mean = self.learner.heldout(), sum(losses) / len(losses) if losses else None
        self._require_finite(value)
        state.losses = []
        point = RecoveryPoint(state.step, state.step * self.learner.tokens, self.seconds, value, mean)
        best = state.best_value
        state.curve.append(point)
        if best is None or value < best:
            state.best_step = state.step
            state.best = {name: item.detach().to("cpu", copy=True) for name, item in self.learner.parameters.items()}
        if spent >= 1.0:
            state.ended = "the budget is spent"
        elif sum(item.step > state.best_step for item in state.curve) >= self.pace.patience:
            state.ended = f"held-out text got no better in {self.pace.patience} looks"

    def save(self) -> None:
        """Write the state, once its zeros are found to be in place."""
        self.learner.require_masks()
        self.state.seconds, self.saved = self.seconds, time.monotonic()
        if self.place.path is not None:
            write_state(self.place.path, self.state, self.learner.parameters, self.optimiser, self.place.mask)

    def tell(self) -> None:
        """Progress in one line."""
        state, effort = self.state, self.pace.effort
        done, total = (
            (state.step, effort.steps)
            if effort.steps is not None
            else (min(self.seconds, 60 * (effort.minutes or 0.0)), 60 * (effort.minutes or 0.0))
        )
        here = state.step - state.resumed
        speed = here * self.learner.tokens / max(1e-9, time.monotonic() - self.began)
        spent = max(1e-9, effort.progress(state.step, self.seconds))
        left = self.seconds * (1 / spent - 1)
        loss = f"loss {state.losses[-1]:.4f}, " if state.losses else ""
        note = f"{loss}held out {state.curve[-1].heldout:.4f}, {speed:,.0f} tokens/s, {left / 60:.1f} min left"
        self.report(self.place.name, math.ceil(done), math.ceil(total), note)

    def _require_finite(self, value: float) -> None:
        if not math.isfinite(value):
            raise InputError(
                f"{self.place.name}: the loss is not a number at step {self.state.step}; "
                f"lower the learning rate of {self.pace.rate:g} (--rate)"
            )


def learn(learner: Learner, pace: Pace, place: Place, report: Reporter) -> State:
    """Learn until the effort is spent; the best weights on held-out text are left in the parameters."""
    parameters = list(learner.parameters.values())
    fused = bool(parameters) and parameters[0].device.type == "cuda"  # one pass over weights and moments, not ten
    optimiser = torch.optim.AdamW(parameters, lr=pace.rate, betas=BETAS, weight_decay=0.0, fused=fused)
    state = read_state(place.path, learner.parameters, optimiser, place.mask)
    run = _Run(learner, pace, place, report, optimiser, state, before=state.seconds)
    if not state.curve:
        run.look(0.0)
        run.save()
    while not state.ended:
        run.step()
    with torch.no_grad():
        for name, parameter in learner.parameters.items():
            parameter.copy_(state.best[name])
    learner.require_masks()
    return state
