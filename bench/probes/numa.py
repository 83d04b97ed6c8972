"""Memory nodes: whether a CPU may have to fetch weights from the memory of another."""

from typing import Final

from tailcut.bench.probes import HIDDEN, Finding, Group, System

TITLE: Final = "memory nodes"
GROUP: Final[Group] = "memory"
MEASURES: Final = False


def probe(system: System) -> Finding:
    base = system.root / "sys/devices/system/node"
    try:
        nodes = sorted(path.name for path in base.iterdir() if path.name[:4] == "node" and path.name[4:].isdecimal())
    except OSError:
        return Finding("unknown", HIDDEN, "", {"nodes": None})
    used = [node for node in nodes if (base / node).is_dir() and _holds(system, node)]
    facts = {"nodes": len(nodes), "used_nodes": len(used)}
    if len(used) > 1:
        advice = "Keep a run on one node: `numactl --cpunodebind=0 --membind=0 tailcut …`."
        return Finding("hint", f"the usable CPUs belong to {len(used)} of {len(nodes)} nodes", advice, facts)
    return Finding("good", f"the usable CPUs belong to one node of {max(1, len(nodes))}", "", facts)


def _holds(system: System, node: str) -> bool:
    """Whether one of the usable CPUs belongs to the node."""
    base = system.root / "sys/devices/system/node" / node
    return any((base / f"cpu{cpu}").exists() for cpu in system.cpus)
