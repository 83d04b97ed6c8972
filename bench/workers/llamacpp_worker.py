"""llama.cpp in its own process, on a GGUF file, through the C interface that llama-cpp-python binds.

Commands: open, describe, prefill, decode, logits, close. Cache in llama.cpp's default type (float16), flash attention
as it decides itself, repacked weights as it decides itself. A timed decode visit starts from a cache that one real
prefill filled; afterwards the cache is cut back to that length.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Dict

import numpy as np

if TYPE_CHECKING:
    from tailcut.bench.workers import wire
else:
    import wire

_UBATCH = 512
_state: Dict[str, Model] = {}


class Model:
    """A loaded model and one context; sequence s of the batch is llama.cpp's sequence s."""

    def __init__(self, body: Dict[str, Any]) -> None:
        import llama_cpp

        self.api: Any = llama_cpp
        self.quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.quiet, None)
        llama_cpp.llama_backend_init()
        began = time.perf_counter()
        self.model = llama_cpp.llama_model_load_from_file(body["file"].encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {body['file']}")
        self.context = llama_cpp.llama_init_from_model(self.model, self._settings(body))
        if not self.context:
            raise RuntimeError("llama.cpp cannot make a context of that size")
        self.load_seconds = time.perf_counter() - began
        self.vocab = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model)))
        self.batch_limit = max(_UBATCH, body["batch"])
        self.batch = llama_cpp.llama_batch_init(self.batch_limit, 0, 1)
        self.filled = -1

    def _settings(self, body: Dict[str, Any]) -> Any:  # noqa: ANN401 a C structure
        settings = self.api.llama_context_default_params()
        settings.n_ctx = -(-body["context"] // 256) * 256 * body["batch"]
        settings.n_batch = settings.n_ubatch = max(_UBATCH, body["batch"])
        settings.n_seq_max = body["batch"]
        settings.n_threads = settings.n_threads_batch = body["threads"]
        settings.no_perf = True
        return settings

    def cut(self, length: int) -> None:
        """Forget everything from position `length` on."""
        memory = self.api.llama_get_memory(self.context)
        if length == 0:
            self.api.llama_memory_clear(memory, True)
        else:
            self.api.llama_memory_seq_rm(memory, -1, length, -1)

    def run(self, tokens: np.ndarray[Any, Any], position: int, every: bool = False) -> np.ndarray[Any, Any]:
        """Append tokens int64 [batch, n] at `position` -> logits [batch, n or 1, vocab]."""
        rows, count = tokens.shape
        found = []
        width = max(1, self.batch_limit // rows)
        for start in range(0, count, width):
            part = tokens[:, start : start + width]
            last = start + part.shape[1] == count
            found.append(self._decode(part, position + start, every, last))
        return np.concatenate([part for part in found if part is not None], axis=1)

    def _decode(self, tokens: np.ndarray[Any, Any], position: int, every: bool, last: bool) -> Any:  # noqa: ANN401
        rows, count = tokens.shape
        batch, wanted = self.batch, []
        batch.n_tokens = rows * count
        for row in range(rows):
            for column in range(count):
                index = row * count + column
                asked = every or (last and column == count - 1)
                batch.token[index], batch.pos[index] = int(tokens[row, column]), position + column
                batch.n_seq_id[index], batch.logits[index] = 1, asked
                batch.seq_id[index][0] = row
                wanted += [index] * asked
        code = self.api.llama_decode(self.context, batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")
        if not wanted:
            return None
        pointers = (self.api.llama_get_logits_ith(self.context, index) for index in wanted)
        picked = [np.ctypeslib.as_array(pointer, (self.vocab,)).copy() for pointer in pointers]
        return np.stack(picked).reshape(rows, -1, self.vocab)


def open_package(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    wire.pin(body["cpus"])
    _state["model"] = Model(body)
    return {"load_seconds": _state["model"].load_seconds}, {}


def describe(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    model = _state["model"]
    return {
        "version": model.api.__version__,
        "isa": model.api.llama_print_system_info().decode().strip(),
        "kernels": "llama.cpp's dense block kernels, compiled for this machine",
        "cache": "float16, in place",
        "sparse_kernel": False,
        "thread_cpus": " ".join(wire.thread_cpus()),
    }, {}


def prefill(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """Time `repeats` prefills of tokens [batch, prompt] from an empty cache, after `warmup` discarded ones."""
    model, times = _state["model"], []
    model.filled = -1
    for _ in range(body["warmup"] + body["repeats"]):
        model.cut(0)
        began = time.perf_counter()
        model.run(arrays["tokens"], 0)
        times.append(1e3 * (time.perf_counter() - began))
    return {}, {"ms": np.asarray(times[body["warmup"] :])}


def decode(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """Time `steps` steps that end at `context` cached positions, after `warmup` discarded ones."""
    model, tokens, times = _state["model"], arrays["tokens"], []
    total = body["warmup"] + body["steps"]
    first = body["context"] - total
    if model.filled != first:
        model.cut(0)
        model.run(tokens[:, :first], 0)
        model.filled = first
    model.cut(first)
    for step in range(total):
        began = time.perf_counter()
        model.run(tokens[:, step : step + 1], first + step)
        times.append(1e3 * (time.perf_counter() - began))
    return {}, {"ms": np.asarray(times[body["warmup"] :])}


def logits(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """Logits float32 [batch, n, vocab] of tokens [batch, n]: half by a prefill, the rest by steps."""
    model, tokens = _state["model"], arrays["tokens"]
    count = tokens.shape[1]
    half = (count + 1) // 2
    model.cut(0)
    model.filled = -1
    rows = [model.run(tokens[:, :half], 0, every=True)]
    rows += [model.run(tokens[:, at : at + 1], at) for at in range(half, count)]
    return {}, {"logits": np.concatenate(rows, axis=1).astype(np.float32)}


if __name__ == "__main__":
    raise SystemExit(
        wire.serve({"open": open_package, "describe": describe, "prefill": prefill, "decode": decode, "logits": logits})
    )
