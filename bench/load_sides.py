"""The open pair of workers that load points are measured with, one after the other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import psutil

from tailcut.bench.engines import Engine
from tailcut.bench.load import Lately, OthersLoad
from tailcut.bench.load_values import EngineLoad, LoadPlan
from tailcut.bench.pair import Raw
from tailcut.bench.roofline import position_bytes, weight_bytes
from tailcut.bench.run import Session
from tailcut.bench.sentinel import SEEN_SECONDS, Watch, disturbed, limits
from tailcut.bench.turns import ROLES, Role, order
from tailcut.bench.worker import Worker
from tailcut.progress import Reporter


@dataclass(frozen=True, slots=True)
class Block:
    """The CPU share of others during each side's visits of a block, and why it was disturbed ("" if it was not)."""

    others: dict[Role, tuple[float, ...]]
    reason: str


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

    def blocks(self, what: str, visit: Callable[[Role], str]) -> list[Block]:
        """Call `visit` four times a block, ABBA and BAAB in turn, until enough blocks are undisturbed."""
        load = OthersLoad([worker.pid for worker in self.workers.values()])
        blocks, lately = list[Block](), Lately(SEEN_SECONDS)
        with Watch(self.plan.threads) as watch:
            allowed, reading = limits(watch.calibrate()), watch.read()
            while len(blocks) < 2 * self.plan.blocks and _kept(blocks) < self.plan.blocks:
                readings, shares, seconds = [reading], list[float](), list[float]()
                notes: dict[Role, str] = {}
                others: dict[Role, tuple[float, ...]] = dict.fromkeys(ROLES, ())
                for role in order(len(blocks)):
                    load.start()
                    notes[role] = visit(role)
                    shares.append(load.share())
                    seconds.append(load.seconds())
                    others[role] += (shares[-1],)
                    readings.append(watch.read())
                reading = readings[-1]
                blocks.append(Block(others, disturbed(readings, *lately.add(shares, seconds), allowed)))
                said = ", ".join(f"{role} {notes[role]}" for role in ROLES)
                self.report(f"{self.name} {what}", _kept(blocks), self.plan.blocks, said)
        return blocks

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
        return position_bytes(self.session.sizes_of[role], self.cache(role)) * positions

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


def disturbance(what: str, blocks: int, disturbed_blocks: int, *, loud: bool) -> str:
    """The caution that belongs beside a point whose blocks were not all quiet."""
    if loud:
        return (
            f"{what}: the machine was disturbed in nearly all of {blocks} blocks: none was left out, and no claim can rest "
            "on the times; measure again on a quieter machine"
        )
    return f"{what}: {disturbed_blocks} of {blocks} blocks were left out because the machine was disturbed"


def _kept(blocks: Sequence[Block]) -> int:
    return sum(not block.reason for block in blocks)


def buffer(positions: int) -> int:
    """Positions that a cache in place makes room for (`kernels.in_place` doubles)."""
    return max(128, 1 << positions.bit_length())
