"""tailcut's lean GPU loop on a package: dense, 2:4 through tailcut's kernels, cuSPARSELt, or int4, in its own process.

Commands as in onnxruntime_worker.py. A step is one replay of a CUDA graph and a wait for its end, as a caller who looks at
every token has it. `logits` takes the steps one by one, so that what is checked is what is timed.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict

import numpy as np
import torch

if TYPE_CHECKING:
    from tailcut.bench.workers import gpu_package, wire
    from tailcut.bench.workers import gpu_timing as timing
    from tailcut.kernels.gpu.decode import Decoder
else:
    import gpu_package
    import gpu_timing as timing
    import wire

_state: Dict[str, Session] = {}


class Session:
    """An open package: its model, and decoders for the batches it is asked about."""

    def __init__(
        self, package: Path, engine: str, capacity: int, batch: int, device: str = "cuda", dtype: str = "bfloat16"
    ) -> None:
        began = time.perf_counter()
        self.loaded = gpu_package.load_weights(package, device, getattr(torch, dtype))
        self.model = gpu_package.assemble(self.loaded, engine, batch)
        self.capacity, self.device = capacity, device
        self.decoders: Dict[int, Decoder] = {}
        self.decoder(batch)
        self.wait()
        self.load_seconds = time.perf_counter() - began

    def decoder(self, batch: int) -> Decoder:
        from tailcut.kernels.gpu.decode import Decoder

        if batch not in self.decoders:
            self.decoders[batch] = Decoder(self.model, batch, self.capacity)
        return self.decoders[batch]

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def open_package(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    wire.pin(body["cpus"])
    device = body.get("device", "cuda")  # tests name another one
    dtype = body.get("dtype", "bfloat16" if device == "cuda" else "float32")
    _state["session"] = Session(Path(body["package"]), body["engine"], body["capacity"], body["batch"], device, dtype)
    return {"load_seconds": _state["session"].load_seconds}, {}


def describe(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    session = _state["session"]
    loaded = session.loaded
    kinds = ", ".join(f"{kind}: {count} matrices" for kind, count in sorted(loaded.kinds.items()))
    paths = ", ".join(f"{path} {count}" for path, count in sorted(loaded.paths.items()))
    return {
        "version": torch.__version__,
        "kernels": f"{kinds} ({paths})",
        "sparse_kernel": any(kind.startswith("2:4") for kind in loaded.kinds),
        "zeros_seen": loaded.zeros,
        "weight_bytes": loaded.weight_bytes,
        "cache": f"{str(loaded.weights.dtype).removeprefix('torch.')}, in place",
        **_device(session.device),
    }, {}


def _device(device: str) -> Dict[str, Any]:
    """The GPU's own figures, which the roofline of its engines is drawn with."""
    if device != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(0)
    rates = sorted(timing.copy_gb_per_s())
    return {
        "isa": properties.name,
        "device_gb_per_s": rates[len(rates) // 2],
        "device_l2_bytes": properties.L2_cache_size,
        "device_memory_bytes": torch.cuda.max_memory_allocated(),
    }


def prefill(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """Time `repeats` prompts [batch, prompt] up to the next token, after `warmup` discarded ones."""
    session, tokens = _state["session"], torch.from_numpy(arrays["tokens"].copy())
    decoder, times = session.decoder(len(tokens)), []
    for _ in range(body["warmup"] + body["repeats"]):
        began = time.perf_counter()
        decoder.prefill(tokens)
        session.wait()
        times.append(1e3 * (time.perf_counter() - began))
    return {}, {"ms": np.asarray(times[body["warmup"] :])}


def decode(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """Time `steps` steps that end at `context` cached positions, after `warmup` discarded ones."""
    session = _state["session"]
    decoder, times = session.decoder(len(arrays["tokens"])), []
    total = body["warmup"] + body["steps"]
    decoder.pretend(body["context"] - total)
    for _ in range(total):
        began = time.perf_counter()
        decoder.step()
        session.wait()
        times.append(1e3 * (time.perf_counter() - began))
    return {}, {"ms": np.asarray(times[body["warmup"] :])}


def logits(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """Logits float32 [batch, n, vocab] of tokens [batch, n], by n decode steps."""
    session, tokens = _state["session"], torch.from_numpy(arrays["tokens"].copy())
    decoder, found = session.decoder(len(tokens)), []
    decoder.pretend(0)
    for place in range(tokens.shape[1]):
        decoder.tokens[:, place] = tokens[:, place].to(decoder.tokens)
        decoder.step()
        found.append(decoder.logits.float().cpu())
    return {}, {"logits": torch.stack(found, dim=1).numpy()}


HANDLERS: Dict[str, wire.Handler] = {
    "open": open_package,
    "describe": describe,
    "prefill": prefill,
    "decode": decode,
    "logits": logits,
}

if __name__ == "__main__":
    raise SystemExit(wire.serve(HANDLERS))
