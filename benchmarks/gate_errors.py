"""How often the bench's verdicts are wrong: in simulation, and on real runs whose true speedup is known.

    python benchmarks/gate_errors.py simulate -o benchmarks/results/gate_errors.json
    python benchmarks/gate_errors.py run PACKAGE --work DIR --label quiet --trials 216 -o …   # timed; run again to resume
    python benchmarks/gate_errors.py table benchmarks/results/gate_errors.json

`simulate` (not timed): coverage of four intervals under noise like the machine's, and rates of wrong verdicts of the
fixed and the adaptive protocol at true speedups around a limit, with and without disturbances (gate_errors_simulate.py).

`run` opens PACKAGE twice, in fresh processes for every trial, and has one of them take a known share longer in every
step (slowed_worker.py): 0 % (A/A), 3 % or 6 %, in a seeded order. Each trial takes the same number of blocks; the
rule that ends an adaptive session only looks back, so what it would have said is read off the blocks afterwards,
exactly, for any limit. The result file is rewritten after each trial and holds every block median; whole samples of the
first trials of a label.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import gate_errors_simulate as simulation  # beside this script
import gate_errors_table
import numpy as np
from bench_common import add_table  # beside this script

from tailcut.bench import pair as pairing
from tailcut.bench.engines import Phase, onnxruntime
from tailcut.bench.lock import machine_lock
from tailcut.bench.machine import describe_machine, pinned_cpus
from tailcut.bench.pair import Pair, References
from tailcut.bench.roofline import read_dimensions
from tailcut.bench.run import package_facts
from tailcut.bench.turns import ROLES, Timed
from tailcut.bench.worker import Launch
from tailcut.errors import InputError
from tailcut.files import write_file
from tailcut.progress import console
from tailcut.results import Blocks, Discarded, Workload

SLOWED: Final = (0.0, 0.03, 0.06)  # of the dense side: true speedups 1, 1.03, 1.06
WHOLE: Final = 6  # trials of a label whose samples are kept
_WORKER: Final = Path(__file__).with_name("slowed_worker.py")


@dataclass(frozen=True, slots=True)
class Slowed:
    """An engine for two names of one package: steps of the one called "dense" take `share` longer."""

    share: float
    SEPARATE_PHASES: bool = False
    COMPRESSES: bool = False
    LICENCE: str = ""
    TOLERANCE: float = 0.0

    available = staticmethod(onnxruntime.available)
    where = staticmethod(onnxruntime.where)
    directory = staticmethod(onnxruntime.directory)
    unfit = staticmethod(onnxruntime.unfit)
    refuse = staticmethod(onnxruntime.refuse)
    engagement = staticmethod(onnxruntime.engagement)

    def launch(self, package: Path, phase: Phase, workload: Workload) -> Launch:
        settings = {"package": str(package), "threads": workload.threads, "cpus": pinned_cpus(workload.threads)}
        slowed = self.share if package.name == "dense" else 0.0
        return Launch(self.where(), _WORKER, settings | {"slowed": slowed})


def measure(options: argparse.Namespace) -> None:
    """Trials until there are as many of this label as asked for."""
    found = read(options.output)
    session = found["sessions"].setdefault(options.label, _session(options))
    asked = _session(options)
    if any(session[key] != asked[key] for key in ("package", "workload")):
        raise InputError(f"{options.output} holds other trials called {options.label}; choose another --label")
    with console() as report, machine_lock(report):
        while len(session["trials"]) < options.trials:
            number = len(session["trials"])
            session["trials"].append(trial(options, number))
            write(options.output, found)
            report(f"trials {options.label}", number + 1, options.trials, _said(session["trials"][-1]))


def _session(options: argparse.Namespace) -> dict[str, Any]:
    facts = package_facts(options.package)
    return {
        "package": {"name": options.package.name, "sha256": facts.sha256, "bytes": facts.bytes_on_disk},
        "workload": asdict(_workload(options)),
        "machine": json.loads(json.dumps(asdict(describe_machine()))),
        "trials": [],
    }


def _workload(options: argparse.Namespace) -> Workload:
    return Workload(
        prompt_tokens=8,
        new_tokens=options.new_tokens,
        context=options.context,
        threads=options.threads,
        blocks=options.blocks,
        prefill_blocks=0,
    )


def trial(options: argparse.Namespace, number: int) -> dict[str, Any]:
    """One trial in fresh processes: its true speedup, all blocks in order, and the verdicts read off them."""
    # whole rounds of the three, each in an order of its own: neighbours in time are compared
    turn, place = divmod(number, len(SLOWED))
    share = float(np.random.default_rng([options.seed, turn]).permutation(SLOWED)[place])
    timed = _timed(options, share, replace(_workload(options), seed=number))
    blocks = in_order(timed)
    kept = [not any(item.block == place for item in timed.procedure.discarded) for place in range(len(blocks[0]))]
    procedure = timed.procedure
    found = {
        "speedup": 1.0 + share,
        "dense_ms": [round(float(np.median(block)), 4) for block in blocks[0]],
        "sparse_ms": [round(float(np.median(block)), 4) for block in blocks[1]],
        "kept": kept,
        "reasons": [item.reason for item in procedure.discarded],
        "loud": procedure.loud,
        "seconds": round(procedure.seconds, 2),
        "warmup": [procedure.settling_visits, procedure.warmup_steps],
        "verdicts": simulation.verdicts(*blocks, kept, procedure.loud, seed=number),
    }
    if number < WHOLE:
        found |= {"samples_dense_ms": _rounded(blocks[0]), "samples_sparse_ms": _rounded(blocks[1])}
        found |= {"sentinel": asdict(procedure.sentinel)}
    return found


def _timed(options: argparse.Namespace, share: float, workload: Workload) -> Timed:
    packages: dict[pairing.Role, Path] = {role: _named(options, role) for role in ROLES}
    sizes = read_dimensions(options.package)
    shape = workload.batch, workload.context
    tokens = np.random.default_rng(workload.seed).integers(0, sizes.vocab, shape, np.int64)
    pair = Pair(packages, workload, tokens, footprint_bytes=0)
    engine: Any = Slowed(share)  # its functions are another engine's
    return pairing.measure("slowed", engine, pair, References(_no_reference), _quietly).timed["decode"]


def _named(options: argparse.Namespace, role: str) -> Path:
    link: Path = options.work / role
    options.work.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(options.package.resolve())
    return link


def _no_reference(role: pairing.Role) -> pairing.Logits:
    raise InputError("a slowed worker is its own reference")


def _quietly(stage: str, done: int, total: int, note: str = "") -> None:
    """The blocks of one trial are not worth a line."""


def in_order(timed: Timed) -> tuple[Blocks, Blocks]:
    """All blocks as they were measured, the discarded ones in their places: dense, sparse."""
    dense, sparse = list(timed.ms("dense")), list(timed.ms("sparse"))
    lost: tuple[Discarded, ...] = timed.procedure.discarded
    for item in lost:  # in order, so each place is final
        dense.insert(item.block, item.dense_ms)
        sparse.insert(item.block, item.sparse_ms)
    return tuple(dense), tuple(sparse)


def _rounded(blocks: Blocks) -> list[list[float]]:
    return [[round(value, 4) for value in block] for block in blocks]


def _said(found: dict[str, Any]) -> str:
    shown = np.exp(np.mean(np.log(found["dense_ms"]) - np.log(found["sparse_ms"])))
    return f"true {found['speedup']:.2f}x, blocks say {shown:.3f}x, {found['seconds']:.0f} s"


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
    return {"simulation": found.get("simulation", {}), "sessions": found.get("sessions", {})}


def write(path: Path, found: dict[str, Any]) -> None:
    write_file(path, (json.dumps(found, separators=(",", ":")) + "\n").encode())


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    actions = parser.add_subparsers(dest="action", required=True)
    output = Path("benchmarks/results/gate_errors.json")
    sim = actions.add_parser("simulate", help="coverage and error rates of made-up sessions")
    sim.add_argument("--trials", type=int, default=1000, help="of each cell")
    sim.add_argument("-o", "--output", type=Path, default=output)
    run = actions.add_parser("run", help="real trials")
    run.add_argument("package", type=Path)
    run.add_argument("--work", type=Path, required=True, help="a scratch directory")
    run.add_argument("--label", required=True, help="the state of the machine, such as quiet")
    run.add_argument("--trials", type=int, default=216)
    run.add_argument("--blocks", type=int, default=16)
    run.add_argument("--new-tokens", type=int, default=16)
    run.add_argument("--context", type=int, default=64)
    run.add_argument("--threads", type=int, default=1)
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("-o", "--output", type=Path, default=output)
    add_table(actions)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.action == "run":
        measure(options)
    if options.action == "simulate":
        found = read(options.output)
        with console() as report:
            simulation.simulate(options.trials, found["simulation"], lambda _: write(options.output, found), report)
    print(gate_errors_table.render(read(options.output)))


if __name__ == "__main__":
    sys.exit(main())
