"""The loop of a server under load, for workers whose decoder is tailcut's: `serve` runs it for so many requests.

A turn admits at most one waiting request (its whole prompt runs, the others wait) and then takes one step for everybody who
runs. A request is a prompt and a fixed number of new tokens, chosen greedily; end tokens do not end it.
Closed: each of `streams` users sends the next request the moment the last one ended. Open (`rate`): requests arrive at
random moments, `rate` a second (exponential gaps, the same on both sides of a pair), and wait for one of `streams` slots.

The loop stands still between two `serve` commands, and its clock with it; what it did so far goes on with the next. So the
sides of a pair take turns in the middle of their work. Users of a closed loop begin one after the other, spread over a
request, as they would be after a while.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable, Deque, Dict, List

import numpy as np

if TYPE_CHECKING:
    from tailcut.bench.workers import wire
    from tailcut.kernels.decoder import Decoder
    from tailcut.kernels.serving import Sequences

Tokens = Any  # int64 [n]
_PROMPTS = 64  # different ones; which it is makes no difference to the time


@dataclass
class Request:
    """One request on its way. `left`: tokens still to come; `last`: when the newest came."""

    arrived: float
    left: int
    last: float = 0.0
    token: int = 0


@dataclass
class Seen:
    """What happened since the last `serve`, in seconds."""

    ttft: List[float] = field(default_factory=list)
    gaps: List[float] = field(default_factory=list)
    tokens: int = 0
    ended: int = 0
    steps: int = 0
    seconds: float = 0.0


class Clock:
    """Seconds of work: stands still while the worker waits for its turn."""

    def __init__(self) -> None:
        self._away, self._left = 0.0, time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._away

    def leave(self) -> None:
        self._left = time.perf_counter()

    def come_back(self) -> None:
        self._away += time.perf_counter() - self._left


class Loop:
    """Requests over `sequences`; `clock` and `sleep` are a test's where it wants its own."""

    def __init__(
        self,
        sequences: Sequences,
        *,
        streams: int,
        prompt_tokens: int,
        new_tokens: int,
        vocabulary: int,
        rate: float | None = None,
        seed: int = 0,
        clock: Clock | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.sharing = sequences.sharing
        self._sequences, self._streams, self._new, self._rate = sequences, streams, new_tokens, rate
        self._rng = np.random.default_rng(seed)
        self._prompts = self._rng.integers(0, vocabulary, (_PROMPTS, prompt_tokens), np.int64)
        self._clock, self._sleep = clock or Clock(), sleep
        self._waiting: Deque[Request] = deque()
        self._running: List[Request] = []
        self._taken = 0
        start = self._clock.now()
        self._next = start  # open: when the next request arrives
        for user in range(streams if rate is None else 0):
            self._waiting.append(Request(start, -(-new_tokens * (user + 1) // streams)))

    def run(self, requests: int) -> Seen:
        """Go on until `requests` more have ended."""
        self._sequences.warm(self._prompts[0])  # the other side has just emptied the processor's caches
        self._clock.come_back()
        seen, began = Seen(), self._clock.now()
        while seen.ended < requests:
            self._turn(seen)
        seen.seconds = self._clock.now() - began
        self._clock.leave()
        return seen

    @property
    def waiting(self) -> int:
        """Requests that nobody works on yet."""
        return len(self._waiting)

    def _turn(self, seen: Seen) -> None:
        self._arrivals()
        if self._waiting and len(self._running) < self._streams:
            self._admit(self._waiting.popleft(), seen)
        if self._running:
            self._step(seen)
        elif not self._waiting:
            self._sleep(max(0.0, self._next - self._clock.now()))

    def _arrivals(self) -> None:
        if self._rate is None:
            return
        now = self._clock.now()
        while self._next <= now:
            self._waiting.append(Request(self._next, self._new))
            self._next += float(self._rng.exponential(1.0 / self._rate))

    def _admit(self, request: Request, seen: Seen) -> None:
        logits = self._sequences.join(self._prompts[self._taken % _PROMPTS])
        self._taken += 1
        self._running.append(request)
        request.token = int(logits.argmax())
        request.last = self._clock.now()
        request.left -= 1
        seen.ttft.append(request.last - request.arrived)
        seen.tokens += 1
        self._let_go(seen)

    def _step(self, seen: Seen) -> None:
        logits = self._sequences.step(np.asarray([request.token for request in self._running], np.int64))
        chosen = logits.argmax(axis=1)
        now = self._clock.now()
        for request, token in zip(self._running, chosen):
            seen.gaps.append(now - request.last)
            request.token, request.last = int(token), now
            request.left -= 1
        seen.tokens += len(self._running)
        seen.steps += 1
        self._let_go(seen)

    def _let_go(self, seen: Seen) -> None:
        """Whoever has all its tokens leaves; in a closed loop its user asks again at once."""
        for number in reversed(range(len(self._running))):
            if self._running[number].left:
                continue
            ended = self._running[number]
            self._sequences.leave(number)
            self._running[number] = self._running[-1]
            self._running.pop()
            seen.ended += 1
            if self._rate is None:
                self._waiting.append(Request(ended.last, self._new))


_state: Dict[str, Loop] = {}


def serve(decoder: Decoder, body: Dict[str, Any]) -> wire.Frame:
    """One visit of the loop: `requests` more requests; `fresh` begins a new one, as the other settings say."""
    if body["fresh"]:
        _state.clear()  # the old loop's cache goes before the new one's comes
        _state["loop"] = _loop(decoder, body)
    loop = _state["loop"]
    seen = loop.run(body["requests"])
    facts = {
        "sharing": loop.sharing,
        "seconds": seen.seconds,
        "tokens": seen.tokens,
        "requests": seen.ended,
        "running": len(seen.gaps) / seen.steps if seen.steps else 0.0,  # a step moves each on: one gap each
        "waiting": loop.waiting,
    }
    return facts, {"ttft_ms": 1e3 * np.asarray(seen.ttft), "itl_ms": 1e3 * np.asarray(seen.gaps)}


def _loop(decoder: Decoder, body: Dict[str, Any]) -> Loop:
    from tailcut.kernels.serving import sequences

    made = sequences(decoder, body["streams"], body["prompt_tokens"] + body["new_tokens"])
    names = ("streams", "prompt_tokens", "new_tokens", "vocabulary", "rate", "seed")
    return Loop(made, **{name: body[name] for name in names})
