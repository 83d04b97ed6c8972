"""onnxruntime-genai on a package with genai_config.json. Commands: open, greedy, close.

Its own search loop generates. An end token would end it before the count is reached, and genai wants one that the vocabulary
holds: for the run another id is laid over the config's, and where the loop stops at that one too, the next.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any, Dict, List, Tuple

if TYPE_CHECKING:
    from tailcut.bench.workers import wire
else:
    import wire

_TRIES = 8
_state: Dict[str, Any] = {}


def open_package(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    with open(os.path.join(body["directory"], "genai_config.json")) as stream:
        stated = json.load(stream)["model"]
    _state.update(body=body, stated=stated)
    return {"load_seconds": _load(int(stated["vocab_size"]) - 1)}, {}


def _load(end: int) -> float:
    """Open the package with `end` as the token that ends a text; seconds."""
    import onnxruntime_genai as genai

    began = time.perf_counter()
    config = genai.Config(_state["body"]["directory"])
    threads = {"session_options": {"intra_op_num_threads": int(_state["body"]["threads"])}}
    config.overlay(json.dumps({"model": {"eos_token_id": end, "decoder": threads}}))
    _state.update(api=genai, model=genai.Model(config), end=end)
    return time.perf_counter() - began


def greedy(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """`prompt` [ids] and `count` -> the likeliest token after each, `count` of them, end tokens included."""
    prompt, count = list(body["prompt"]), int(body["count"])
    tokens, marks = _generate(prompt, count)
    for _ in range(_TRIES):
        if len(tokens) == count:
            break
        _load(_state["end"] - 1)  # it stopped at the id that ended it
        tokens, marks = _generate(prompt, count)
    if len(tokens) != count:
        raise RuntimeError(f"the search loop stopped after {len(tokens)} tokens of {count}")
    reply = {"tokens": tokens, "prefill_s": marks[1] - marks[0], "decode_s": marks[-1] - marks[1]}
    return {**reply, "proof": _proof(), "versions": _versions()}, {}


def _generate(prompt: List[int], count: int) -> Tuple[List[int], List[float]]:
    """Tokens after the prompt, and when each was there (the first mark is the start)."""
    parameters = _state["api"].GeneratorParams(_state["model"])
    parameters.set_search_options(do_sample=False, max_length=len(prompt) + count)
    generator = _state["api"].Generator(_state["model"], parameters)
    marks = [time.perf_counter()]
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
        marks.append(time.perf_counter())
    return [int(token) for token in generator.get_sequence(0)][len(prompt) :], marks


def _proof() -> Dict[str, Any]:
    return {
        "type": _state["stated"]["type"],
        "device": str(_state["model"].device_type),
        "tokenizer": _tokenizer(),
        "sparse_kernel": False,
        "kernels": "ONNX Runtime's dense products; function bodies were folded at load",
    }


def _tokenizer() -> str:
    """Whether genai's own tokenizer reads the package's files, or what it says."""
    try:
        tokenizer = _state["api"].Tokenizer(_state["model"])
        return f"reads and writes: {tokenizer.decode(tokenizer.encode('one two'))!r}"
    except Exception as error:  # noqa: BLE001 whatever it raises is the answer
        return f"{type(error).__name__}: {error}"[:300]


def _versions() -> Dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("onnxruntime-genai", "onnxruntime", "numpy")}


if __name__ == "__main__":
    raise SystemExit(wire.serve({"open": open_package, "greedy": greedy}))
