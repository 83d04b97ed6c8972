"""optimum-onnx's ORTModelForCausalLM on a package, with use_cache. Commands: open, greedy, close.

transformers' own `generate` runs. End tokens would end it before the count is reached, so they are taken from the
generation config; nothing else is changed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Dict, List

if TYPE_CHECKING:
    from tailcut.bench.workers import wire
else:
    import wire

_state: Dict[str, Any] = {}


class Watch:
    """What `generate` calls a streamer: it is handed the prompt, then every token."""

    def __init__(self) -> None:
        self.marks: List[float] = []

    def put(self, value: Any) -> None:  # noqa: ANN401 a tensor
        self.marks.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is kept back."""


def open_package(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    import onnxruntime
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM

    torch.set_num_threads(int(body["threads"]))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(body["threads"])
    began = time.perf_counter()
    model = ORTModelForCausalLM.from_pretrained(
        body["directory"],
        use_cache=True,
        provider="CPUExecutionProvider",
        session_options=options,
        local_files_only=True,
        trust_remote_code=False,
    )
    _state.update(model=model, directory=body["directory"])
    return {"load_seconds": time.perf_counter() - began}, {}


def greedy(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """`prompt` [ids] and `count` -> the likeliest token after each, `count` of them, end tokens included."""
    import torch

    model, watch = _state["model"], Watch()
    prompt = torch.tensor([body["prompt"]])
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0  # nothing is padded; without one it would be taken from the end token
    found = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=int(body["count"]),
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        use_cache=True,
        streamer=watch,
    )
    tokens = [int(token) for token in found[0][prompt.shape[1] :]]
    marks = watch.marks
    reply = {"tokens": tokens, "prefill_s": marks[1] - marks[0], "decode_s": marks[-1] - marks[1]}
    return {**reply, "proof": _proof(), "versions": _versions()}, {}


def _proof() -> Dict[str, Any]:
    model = _state["model"]
    return {
        "class": type(model).__name__,
        "file": model.path.name,
        "can_use_cache": bool(model.can_use_cache),
        "cache_inputs": len(model.key_value_input_names),
        "io_binding": bool(model.use_io_binding),
        "providers": ", ".join(model.session.get_providers()),
        "tokenizer": _tokenizer(),
        "sparse_kernel": False,
        "kernels": "ONNX Runtime's dense products; function bodies were folded at load",
    }


def _tokenizer() -> str:
    """Whether the transformers that optimum needs reads the package's tokenizer, or what it says."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(_state["directory"], local_files_only=True, trust_remote_code=False)
        return f"reads and writes: {tokenizer.decode(tokenizer.encode('one two', add_special_tokens=False))!r}"
    except Exception as error:  # noqa: BLE001 whatever it raises is the answer
        return f"{type(error).__name__}: {error}"[:300]


def _versions() -> Dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("optimum-onnx", "optimum", "onnxruntime", "transformers", "torch")}


if __name__ == "__main__":
    raise SystemExit(wire.serve({"open": open_package, "greedy": greedy}))
