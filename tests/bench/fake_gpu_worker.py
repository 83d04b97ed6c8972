# ruff: noqa: ANN001, ANN201 - a script for a process of its own
"""Answers for `tailcut bench-gpu` on the real protocol, made up: no GPU, no torch."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench" / "workers"))
import wire

US = {"dense": 20.0, "2:4 bf16": 10.0, "2:4 int4": 8.0}
MS = {"dense": 7.0, "dense compiled": 6.0, "2:4 bf16": 4.0}
BYTES = {"dense": 32_000_000, "2:4 bf16": 18_000_000, "2:4 int4": 6_000_000}


def open_device(body, arrays):
    return {"gpu": {"name": "Fake GPU", "versions": {"torch": "9"}}, "copy_gb_per_s": [2900.0, 3000.0, 3100.0]}, {}


def product(body, arrays):
    found = []
    for rows in body["rows"]:
        for name in body["contenders"]:
            entry = {"contender": name, "rows": rows}
            if name in US:
                size = BYTES[name]
                entry |= {"us": [US[name] * factor for factor in (0.9, 1.0, 1.1)], "weight_bytes": size}
                entry |= {"moved_bytes": size + 1000 * rows, "path": "cuBLAS" if name == "dense" else "gemv"}
                entry |= {"sqnr_db": 50.0}
            else:
                entry["reason"] = "ValueError: not here"
            found.append(entry)
    return {"products": found}, {}


def decode(body, arrays):
    found = []
    for name in body["contenders"]:
        if name not in MS:
            found.append({"contender": name, "reason": "out of memory"})
            continue
        sizes = {"weight_bytes": 9_000_000_000 if name == "2:4 bf16" else 16_000_000_000, "cache_bytes": 1_000_000_000}
        found.append({"contender": name, "ms": [MS[name]] * 5, **sizes, "memory_bytes": 20_000_000})
    return {"decodes": found}, {}


if __name__ == "__main__":
    raise SystemExit(wire.serve({"open": open_device, "product": product, "decode": decode}))
