"""What a recovery is asked to do, readable without torch: which methods, on what text, for how long, how fast it learns."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from tailcut import codec, plugins
from tailcut.codec import FORBID_EXTRA
from tailcut.errors import InputError
from tailcut.results import RecoveryResult

METHODS: Final = "tailcut.compress.recovery"
RESULT_NAME: Final = "recovery.json"  # in the recovered directory; not among the manifest's files, as it holds times
DEFAULT_METHODS: Final = ("least-squares", "distill")
_EFFORT: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|m|h|steps?)\s*")
_MINUTES: Final = {"s": 1 / 60, "m": 1.0, "h": 60.0}


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to learn: minutes, or optimiser steps (then a CPU gives the same bytes each time)."""

    minutes: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise InputError("a budget is minutes or steps, one of them")
        amount = self.minutes if self.steps is None else self.steps
        if amount is None or not 0 < amount < float("inf"):
            raise InputError(f"the budget must be more than 0, got {amount}; say 20m, 1.5h or 500steps")

    def part(self, parts: int) -> "Effort":
        """One of `parts` equal shares, of at least one step."""
        if self.steps is not None:
            return Effort(steps=max(1, self.steps // parts))
        return Effort(minutes=(self.minutes or 0.0) / parts)

    def progress(self, steps: int, seconds: float) -> float:
        """Share of the effort that is spent, in [0, 1]."""
        spent = steps / self.steps if self.steps is not None else seconds / 60 / (self.minutes or 1.0)
        return min(1.0, spent)


def parse_effort(text: str) -> Effort:
    """'20m', '90s', '1.5h' or '500steps' -> Effort."""
    match = _EFFORT.fullmatch(text)
    if match is None:
        raise InputError(f"budget {text!r} is neither a time nor a number of steps; say 20m, 1.5h or 500steps")
    number, unit = match.groups()
    if unit in _MINUTES:
        return Effort(minutes=float(number) * _MINUTES[unit])
    if not number.isdigit():
        raise InputError(f"budget {text!r}: steps are whole; say 20m, 1.5h or 500steps")
    return Effort(steps=int(number))


@dataclass(frozen=True, slots=True)
class Recovering:
    """Every setting of a recovery. `texts` are .txt or .jsonl files; `methods` work one after another."""

    __pydantic_config__: ClassVar = FORBID_EXTRA
    texts: tuple[str, ...]
    budget: Effort
    methods: tuple[str, ...] = DEFAULT_METHODS
    heldout: str | None = None  # None: the end of every text
    seqlen: int = 512
    batch: int = 32  # windows an optimiser step
    at_once: int | None = None  # windows whose activations are in memory together; None: the batch
    rate: float | None = None  # highest learning rate; None: the method's own
    features: float = 0.0  # weight of the per-block loss of distill and lora
    rank: int = 16  # of lora
    samples: int = 128  # windows that least-squares and blockwise see
    patience: int = 8  # of 24 looks at the held-out text: so many without a better one end the learning
    seed: int = 0
    device: str = "auto"
    compiled: bool = False  # distill and lora: kernels fused by torch.compile

    def __post_init__(self) -> None:
        if not self.texts:
            raise InputError(
                "recovery needs text to learn from; give --text FILE, or make some by `tailcut sample-text`"
            )
        if not self.methods:
            raise InputError(f"no recovery method; choose from {', '.join(plugins.names(METHODS))}")
        for name in self.methods:
            plugins.require(METHODS, name)
        for field, least in (("seqlen", 8), ("batch", 1), ("rank", 1), ("samples", 1), ("patience", 1)):
            if getattr(self, field) < least:
                raise InputError(f"{field} must be at least {least}, got {getattr(self, field)}")
        if self.at_once is not None and not 1 <= self.at_once <= self.batch:
            raise InputError(f"at_once must be from 1 to the batch of {self.batch}, got {self.at_once}")
        if self.rate is not None and not 0 < self.rate < 1:
            raise InputError(f"the learning rate must be between 0 and 1, got {self.rate}")
        if not 0 <= self.features < float("inf"):
            raise InputError(f"the weight of the feature loss must be at least 0, got {self.features}")
        if self.compiled and self.features:
            raise InputError("the feature loss looks into the blocks, which --compile fuses; give one of the two")


def try_recovery(directory: Path) -> RecoveryResult | None:
    """What a recovery noted in the directory that it wrote; None where none did."""
    path = directory / RESULT_NAME
    return codec.load(RecoveryResult, path) if path.is_file() else None


def parse_methods(text: str) -> tuple[str, ...]:
    """'least-squares,distill' -> the names, in order."""
    return tuple(word.strip() for word in text.split(",") if word.strip())
