"""DeepSparse 1.8 as a client of the static variant: a prompt, then the likeliest tokens. Python 3.8 to 3.11.

Commands: open, greedy, close. `cache` of the open settings says who keeps the keys and values:

    external   prefill.onnx reads the prompt, decode.onnx the rest; the arrays stay here and rows are written in place
    engine     cached.onnx reads everything token by token; the engine keeps the cache and gives its contents to nobody

Both hold `context` tokens. The engine's own cache does not say when it is full: the next logits are wrong, or the process
dies (measured). So a request that does not fit is refused before its first step, here and in `EngineCache.step`. The same
happens inside a cache whose size is no multiple of 64, so such a graph is refused as well.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Dict, List

import numpy as np

if TYPE_CHECKING:
    from tailcut.bench.workers import wire
    from tailcut.bench.workers.deepsparse_worker import MASKED, Graph
else:
    import wire
    from deepsparse_worker import MASKED, Graph

_STEP = 64  # export.static.CACHE_MULTIPLE, which this interpreter cannot import
_state: Dict[str, Any] = {}


class External:
    """decode.onnx with arrays of our own, filled by prefill.onnx."""

    def __init__(self, body: Dict[str, Any]) -> None:
        self.decode = _compile(body, "decode")
        self.prefill = _compile(body, "prefill")
        self.capacity = self.decode.window

    def start(self, prompt: List[int]) -> Any:  # noqa: ANN401 numpy of another interpreter
        """Logits [vocab] after the prompt, whose rows are now in the first slots."""
        length = len(prompt)
        if length > self.prefill.window:
            raise RuntimeError(f"the prompt has {length} tokens, prefill.onnx was exported for {self.prefill.window}")
        padded = np.zeros((1, self.prefill.window), np.int64)  # causal: what follows cannot reach the first rows
        padded[0, :length] = prompt
        found = self.prefill.whole(padded)
        for name, slots in self.decode.cache.items():
            slots[...] = 0
            slots[:, :, :length] = found[name.replace("past_key_values.", "new.", 1)][:, :, :length]
        return found["logits"][0, length - 1]

    def step(self, token: int, position: int) -> Any:  # noqa: ANN401
        return self.decode.step(token, position)

    def fractions(self) -> List[float]:
        return [float(graph.engine.fraction_of_supported_ops) for graph in (self.decode, self.prefill)]

    def close(self) -> None:
        """Nothing that Python does not free."""


class EngineCache:
    """cached.onnx: the engine joins what is new to what it keeps; the past is fed as arrays of batch 0."""

    def __init__(self, body: Dict[str, Any]) -> None:
        self.graph = _compile(body, "cached")
        self.capacity = self.graph.window
        require_multiple(self.capacity)
        self.empty = {name: np.zeros((0, *shape[1:]), np.float32) for name, shape in self.graph.shapes.items()}
        self.kept: Any = None

    def start(self, prompt: List[int]) -> Any:  # noqa: ANN401
        from deepsparse.engine import LIB

        self.kept = LIB.kv_cache(0, 0)  # no tokens yet, none frozen
        return [self.step(token, position) for position, token in enumerate(prompt)][-1]

    def step(self, token: int, position: int) -> Any:  # noqa: ANN401
        """One token at `position` -> logits [vocab]; the newest token is the last column."""
        require_room(position + 1, self.capacity)
        bias = np.full((1, 1, 1, self.capacity), MASKED, np.float32)
        bias[..., self.capacity - 1 - position :] = 0.0
        feeds = {
            "input_ids": np.array([[token]], np.int64),
            "position_ids": np.array([[position]], np.int64),
            "attention_bias": bias,
        }
        inputs = [feeds.get(name, self.empty[name]) for name in self.graph.shapes]
        # the public `run` checks shapes, which arrays of batch 0 do not have
        return np.asarray(self.graph.engine._eng_net.execute_list_out(inputs, self.kept)[0]).reshape(-1)

    def fractions(self) -> List[float]:
        return [float(self.graph.engine.fraction_of_supported_ops)]

    def close(self) -> None:
        self.kept = None


def require_room(tokens: int, capacity: int) -> None:
    """A full cache is no error to the engine, only wrong."""
    if tokens > capacity:
        raise RuntimeError(
            f"{tokens} tokens do not fit the cache of {capacity}; DeepSparse does not notice and gives other logits or "
            "ends, so nothing was run; export with a larger --context or ask for fewer"
        )


def require_multiple(capacity: int) -> None:
    """Of other sizes the engine's cache writes past its end: other logits, or the process dies (measured)."""
    if capacity % _STEP:
        raise RuntimeError(
            f"cached.onnx was exported for {capacity} tokens; the engine's own cache is right for multiples of {_STEP} only, so "
            "nothing was run; export again with such a --context"
        )


def _compile(body: Dict[str, Any], name: str) -> Graph:
    from deepsparse import Engine

    path = os.path.join(body["directory"], name + ".onnx")
    if not os.path.isfile(path):
        raise RuntimeError(f"{name}.onnx is not there; cached.onnx needs `tailcut export --engine-cache`")
    settings: Dict[str, Any] = {"model": path, "batch_size": 1, "num_cores": int(body["threads"])}
    if name == "cached":
        # which outputs are caches has to be said before the engine can be asked for its outputs
        settings["cached_outputs"] = [output.startswith("present.") for output in _outputs(path)]
    began = time.perf_counter()
    engine = Engine(**settings)
    return Graph(engine, time.perf_counter() - began, {"package": body["directory"]})


def _outputs(path: str) -> List[str]:
    import onnx

    return [value.name for value in onnx.load(path, load_external_data=False).graph.output]


def open_package(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    if int(np.__version__.split(".")[0]) >= 2:
        raise RuntimeError(f"numpy {np.__version__} gives silently wrong results with DeepSparse; it needs numpy < 2")
    began = time.perf_counter()
    _state["side"] = EngineCache(body) if body["cache"] == "engine" else External(body)
    _state["data"] = os.path.join(body["directory"], "model.onnx.data")
    return {"load_seconds": time.perf_counter() - began}, {}


def greedy(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """`prompt` [ids] and `count` -> the likeliest token after each, `count` of them, end tokens included."""
    side, prompt, count = _state["side"], list(body["prompt"]), int(body["count"])
    require_room(len(prompt) + count - 1, side.capacity)  # the last token is not fed back
    marks = [time.perf_counter()]
    tokens = [int(np.argmax(side.start(prompt)))]
    marks.append(time.perf_counter())
    while len(tokens) < count:
        tokens.append(int(np.argmax(side.step(tokens[-1], len(prompt) + len(tokens) - 1))))
    marks.append(time.perf_counter())
    side.close()
    reply = {"tokens": tokens, "prefill_s": marks[1] - marks[0], "decode_s": marks[2] - marks[1]}
    return {**reply, "proof": _proof(side), "versions": _versions()}, {}


def _proof(side: Any) -> Dict[str, Any]:  # noqa: ANN401 either of the two
    """DeepSparse compiles weights with zeros to sparse kernels in the part of the graph that it supports."""
    fractions, zeros = side.fractions(), _zeros(_state["data"])
    return {
        "supported_fraction": min(fractions),
        "zeros": zeros,
        "capacity": side.capacity,
        "sparse_kernel": min(fractions) == 1.0,
        "kernels": "its own engine, which compiles zeros away",
    }


def _zeros(path: str) -> int:
    words = np.memmap(path, np.float32, "r", shape=(os.path.getsize(path) // 4,))
    chunk = 1 << 24
    return sum(int(np.count_nonzero(words[at : at + chunk] == 0)) for at in range(0, len(words), chunk))


def _versions() -> Dict[str, str]:
    import deepsparse

    return {"deepsparse": deepsparse.__version__, "numpy": np.__version__}


if __name__ == "__main__":
    raise SystemExit(wire.serve({"open": open_package, "greedy": greedy}))
