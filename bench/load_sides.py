"""The open pair of workers that load points are measured with, one after the other."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import psutil

from tailcut.bench.engines import Engine
from tailcut.bench.load import OthersLoad
from tailcut.bench.load_values import EngineLoad, LoadPlan
from tailcut.bench.pair import ROLES, Raw, Role
from tailcut.bench.roofline import weight_bytes
from tailcut.bench.run import Session
from tailcut.bench.worker import Worker
from tailcut.progress import Reporter

ABBA: tuple[Role, ...] = ("dense", "sparse", "sparse", "dense")


@dataclass(frozen=True, slots=True)
class Sides:
    """Dense and sparse, open and shown to compute their packages."""

    name: str
    engine: Engine
    session: Session
    workers: dict[Role, Worker]
    raw: dict[Role, Raw]
    plan: LoadPlan
    report: Reporter

    def blocks(self, what: str, visit: Callable[[Role], str]) -> list[dict[Role, list[float]]]:
        """Call `visit` four times a block, in ABBA order -> for each block the CPU share of others in each visit."""
        load = OthersLoad([worker.pid for worker in self.workers.values()])
        shares: list[dict[Role, list[float]]] = []
        for block in range(self.plan.blocks):
            shares.append({role: [] for role in ROLES})
            notes: dict[Role, str] = {}
            for role in ABBA:
                load.start()
                notes[role] = visit(role)
                shares[-1][role].append(load.share())
            said = ", ".join(f"{role} {notes[role]}" for role in ROLES)
            self.report(f"{self.name} {what}", block + 1, self.plan.blocks, said)
        return shares

    def described(self, engine: EngineLoad) -> EngineLoad:
        """The engine with what its workers said of themselves."""
        evidence = {role: self.raw[role].evidence for role in ROLES}
        zeros = sum(layer.zeros for layer in self.session.manifests["sparse"].layers.values())
        return replace(
            engine,
            status="measured",
            version=str(evidence["sparse"].get("version", "")),
            engagement=self.engine.engagement(evidence["sparse"], zeros),
            dense_evidence=evidence["dense"],
            sparse_evidence=evidence["sparse"],
        )

    def cache(self, role: Role) -> str:
        """What the worker says of its cache, such as "float16, in place"."""
        return str(self.raw[role].evidence.get("cache", ""))

    def in_place(self, role: Role) -> bool:
        """Whether the cache is one buffer; an engine that does not say is taken to have one."""
        return "concatenated" not in self.cache(role)

    def cache_bytes(self, role: Role, positions: int) -> int:
        """Keys and values of one sequence."""
        sizes = self.session.sizes
        word = 2 if self.cache(role).startswith(("float16", "bfloat16")) else 4
        return 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * positions * word

    def weight_bytes(self, role: Role) -> int:
        """Weights that one step reads, as the engine counts them or from the manifest."""
        counted = int(self.raw[role].evidence.get("weight_bytes") or 0)
        compressed = self.engine.COMPRESSES and role == "sparse"
        return counted or weight_bytes(self.session.manifests[role], self.session.sizes, compressed=compressed)

    def lacking(self, needed: int, what: str) -> str:
        """Why `needed` more bytes, of both sides together, cannot be had, or ""."""
        free = int(psutil.virtual_memory().available)
        if needed <= free:
            return ""
        return f"{what} need about {needed / 1e9:.1f} GB of memory on both sides, {free / 1e9:.1f} GB are free"


def buffer(positions: int) -> int:
    """Positions that a cache in place makes room for (`kernels.in_place` doubles)."""
    return max(128, 1 << positions.bit_length())
