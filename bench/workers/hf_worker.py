"""transformers in its own process, on a Hugging Face directory. Runs in the interpreter of a client, or in tailcut's own.

Commands: open, greedy, logits, close. Activations are float32 whatever the directory's dtype is, so that the tokens are those
of the weights. A directory that leaves a weight of the model out is refused: transformers would invent it.
"""

from __future__ import annotations

import platform
import time
from typing import TYPE_CHECKING, Any, Dict, List

import numpy as np

if TYPE_CHECKING:
    from tailcut.bench.workers import wire
else:
    import wire

_state: Dict[str, Any] = {}


def open_directory(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(int(body["threads"]))
    began = time.perf_counter()
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        body["directory"],
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    model, info = loaded
    model.eval()
    wrong = sorted(info["missing_keys"]) + [str(item) for item in info["mismatched_keys"]]
    if wrong and not body.get("quantised"):  # a quantised module's own parameters have other names
        raise RuntimeError(f"transformers found no weights for {len(wrong)} tensors, the first is {wrong[0]}")
    _state.update(model=model, info=info, load_seconds=time.perf_counter() - began)
    return {"load_seconds": _state["load_seconds"]}, {}


def greedy(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """`prompt` [ids] and `count` -> the likeliest token after each, `count` of them, end tokens included."""
    import torch

    tokens: List[int] = []
    marks = [time.perf_counter()]
    with torch.inference_mode():
        ids, cache = torch.tensor([body["prompt"]]), None
        while len(tokens) < int(body["count"]):
            found = _state["model"](input_ids=ids, past_key_values=cache, use_cache=True)
            cache = found.past_key_values
            tokens.append(int(found.logits[0, -1].argmax()))
            ids = torch.tensor([[tokens[-1]]])
            marks.append(time.perf_counter())
    reply = {"tokens": tokens, "prefill_s": marks[1] - marks[0], "decode_s": marks[-1] - marks[1]}
    return {**reply, "proof": _proof(), "versions": _versions()}, {}


def logits(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """Logits float32 [1, n, vocab] of tokens int64 [1, n]."""
    import torch

    with torch.inference_mode():
        found = _state["model"](input_ids=torch.from_numpy(np.array(arrays["tokens"])), use_cache=False)
    return {}, {"logits": found.logits.float().numpy()}


def _proof() -> Dict[str, Any]:
    """What ran: the class, how many linear modules of which kind, how their weights lie, and the zeros among them."""
    import torch

    kinds: Dict[str, int] = {}
    layouts = set()
    model, zeros, total = _state["model"], 0, 0
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if not isinstance(module, torch.nn.Linear):
            continue
        kinds[type(module).__name__] = kinds.get(type(module).__name__, 0) + 1
        if isinstance(weight, torch.Tensor):
            layouts.add(f"{weight.layout}".replace("torch.", "") + f" {weight.dtype}".replace("torch.", ""))
            zeros, total = zeros + int((weight == 0).sum()), total + weight.numel()
    method = getattr(getattr(model, "hf_quantizer", None), "quantization_config", None)
    return {
        "class": type(model).__name__,
        "linears": ", ".join(f"{count} {name}" for name, count in sorted(kinds.items())),
        "weights": ", ".join(sorted(layouts)),
        "zeros": zeros,
        "of": total,
        "attention": str(getattr(model.config, "_attn_implementation", "")),
        "quantisation": type(method).__name__ if method is not None else "",
        "sparse_kernel": False,
        "kernels": "torch's dense products",
    }


def _versions() -> Dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "compressed-tensors", "safetensors", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    raise SystemExit(wire.serve({"open": open_directory, "greedy": greedy, "logits": logits}))
