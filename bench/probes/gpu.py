"""A GPU, asked of the driver; torch is not loaded."""

from typing import Final

from tailcut.bench.gpu_device import describe_gpu, gpu_problem
from tailcut.bench.probes import Facts, Finding, Group, System

TITLE: Final = "GPU"
GROUP: Final[Group] = "running"
MEASURES: Final = False


def probe(system: System) -> Finding:
    reason = gpu_problem(triton=True)
    if reason is not None:
        return Finding("unknown", f"not used: {reason}", "", {"usable": False})
    gpu = describe_gpu()
    memory = int(gpu["memory_bytes"]) / 1e9
    facts: Facts = {name: value for name, value in gpu.items() if isinstance(value, str | int)}
    return Finding("good", f"{gpu['name']}, {memory:.0f} GB, usable by torch and Triton", "", {"usable": True, **facts})
