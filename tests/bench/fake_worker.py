# ruff: noqa: ANN001, ANN201, ANN202, T201 - a script for a process of its own
"""A worker that speaks the real protocol and misbehaves on request. Its `open` settings say how."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench" / "workers"))
import wire

state = {}


def open_package(body, arrays):
    state.update(body, rng=np.random.default_rng(body.get("seed", 0)))
    print("a banner on standard output that must not reach a frame", flush=True)
    os.write(1, b"and one from a C library\n")
    if body.get("die") == "open":
        print("Assertion at src/lib/graph.cpp:925", file=sys.stderr, flush=True)
        print(" 0# 0x00007f8ffee34ea7", file=sys.stderr, flush=True)
        os._exit(1)
    return {"load_seconds": 0.25}, {}


def describe(body, arrays):
    return {
        "version": "9.9",
        "supported_fraction": state.get("fraction", 1.0),
        "zeros_seen": state.get("zeros", 0),
        "pid": os.getpid(),
    }, {}


def _times(body):
    noise = state["rng"].normal(0, 0.02, body.get("steps", body.get("repeats", 1)))
    return state["ms"] * np.exp(noise)


def decode(body, arrays):
    if state.get("die") == "decode":
        os.kill(os.getpid(), signal.SIGSEGV)
    if state.get("nan"):
        return {}, {"ms": np.full(body["steps"], np.nan)}
    if state.get("warming"):  # its first steps after a switch are this much slower
        total = body["warmup"] + body["steps"]
        times = _times({"steps": total}) * (state["warming"] + [1.0] * total)[:total]
        return {}, {"ms": times[body["warmup"] :]}
    return {}, {"ms": _times(body)}


def prefill(body, arrays):
    if state.get("die") == "prefill":
        raise RuntimeError("prefill graph does not compile")
    return {}, {"ms": 8 * _times(body)}


def logits(body, arrays):
    shape = (*arrays["tokens"].shape, 4)
    return {}, {"logits": np.full(shape, 1.0 + state.get("offset", 0.0), np.float32)}


def hang(body, arrays):
    time.sleep(600)
    return {}, {}


def echo(body, arrays):
    return {"body": body}, arrays


def garbage(body, arrays):
    os.write(state["sink"], b"not a frame at all, but long enough to be read")
    os._exit(0)


if __name__ == "__main__":
    state["sink"] = os.dup(1)
    commands = [describe, decode, prefill, logits, hang, echo, garbage]
    raise SystemExit(wire.serve({"open": open_package, **{c.__name__: c for c in commands}}))
