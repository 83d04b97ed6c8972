"""Sequences that join and leave each other's steps get the logits they would get alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailcut.errors import InputError
from tailcut.kernels.decoder import Decoder
from tailcut.kernels.serving import Sequences, sequences

Export = Callable[..., Path]
Ints = np.ndarray[Any, np.dtype[np.int64]]
# float32 products summed in other orders when rows are multiplied together, through three blocks; another row's cache or
# position changes logits of about 10 by their own size
CLOSE: dict[str, Any] = {"atol": 2e-4, "rtol": 2e-4}
SLOTS, POSITIONS = 3, 40


@pytest.fixture(scope="module", params=["llama", "mistral"])
def package(request: pytest.FixtureRequest, fused_package: Export) -> Path:
    """mistral sees a window of 8 positions."""
    return fused_package(request.param)


@pytest.fixture(params=["require", "off"])
def decoder(request: pytest.FixtureRequest, package: Path) -> Decoder:
    return Decoder(package, 1, kernels=request.param)


def text(seed: int, count: int) -> Ints:
    return np.random.default_rng(seed).integers(0, 256, count)


def alone(decoder: Decoder, tokens: Ints, prompt: int) -> list[Any]:
    """Logits after the prompt and after each token that follows it."""
    found = [decoder.prefill(tokens[None, :prompt], last_only=True)[0, 0]]
    return found + [decoder.step(token.reshape(1))[0] for token in tokens[prompt:]]


class Crowd:
    """Sequences with fixed texts, and what each of them saw."""

    def __init__(self, served: Sequences) -> None:
        self.served = served
        self.running: list[int] = []  # texts in the order of the numbers
        self.seen: dict[int, list[Any]] = {}
        self.texts: dict[int, tuple[Ints, int]] = {}

    def join(self, name: int, prompt: int) -> None:
        self.texts[name] = text(name, POSITIONS), prompt
        self.seen[name] = [self.served.join(self.texts[name][0][:prompt])]
        self.running.append(name)

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            next_ = [self.texts[n][0][self.texts[n][1] + len(self.seen[n]) - 1] for n in self.running]
            for name, logits in zip(self.running, self.served.step(np.asarray(next_, np.int64)), strict=True):
                self.seen[name].append(logits)

    def leave(self, name: int) -> None:
        at = self.running.index(name)
        self.served.leave(at)
        self.running[at] = self.running[-1]
        self.running.pop()


def test_everyone_gets_what_it_gets_alone(decoder: Decoder) -> None:
    crowd = Crowd(sequences(decoder, SLOTS, POSITIONS))
    crowd.join(1, 5)
    crowd.step(4)
    crowd.join(2, 17)  # longer than the one that runs
    crowd.join(3, 1)
    crowd.step(3)
    crowd.served.warm(text(9, 30))  # forgotten: nobody's rows change
    crowd.step(2)
    crowd.leave(1)  # the last one takes its number
    crowd.join(4, 8)
    crowd.step(2)
    crowd.leave(4)  # the last number itself
    crowd.step(2)
    for name in (2, 3):
        crowd.leave(name)
    assert len(crowd.served) == 0
    crowd.join(5, 3)  # from nobody again
    crowd.step(2)
    for name, seen in crowd.seen.items():
        tokens, prompt = crowd.texts[name]
        want = alone(decoder, tokens[: prompt + len(seen) - 1], prompt)
        np.testing.assert_allclose(np.stack(seen), np.stack(want), **CLOSE, err_msg=f"text {name}")


def test_a_sequence_may_fill_its_positions_and_no_more(decoder: Decoder) -> None:
    crowd = Crowd(sequences(decoder, 1, POSITIONS))
    crowd.join(1, POSITIONS - 2)
    crowd.step(2)
    with pytest.raises(InputError, match="fills its 40 positions"):
        crowd.served.step(np.zeros(1, np.int64))


def test_what_does_not_fit_is_refused(decoder: Decoder) -> None:
    served = sequences(decoder, 1, POSITIONS)
    for call, sentence in (
        (lambda: served.step(np.zeros(0, np.int64)), "one token for each of 0"),
        (lambda: served.leave(0), "no sequence has the number 0"),
        (lambda: served.join(text(0, 0)), "a prompt is tokens"),
        (lambda: served.join(text(0, POSITIONS + 1)), "1 to 40 positions"),
        (lambda: sequences(decoder, 0, POSITIONS), "at least one slot"),
    ):
        with pytest.raises(InputError, match=sentence):
            call()
    served.join(text(0, 4))
    with pytest.raises(InputError, match="all 1 slots are taken"):
        served.join(text(0, 4))
    with pytest.raises(InputError, match="one token for each of 1"):
        served.step(np.zeros(2, np.int64))
