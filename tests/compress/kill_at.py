"""Run by test_resume: `kill_at.py SOURCE TEXT BASE PRUNER PACK BITS` compresses once undisturbed, then again and again,
killed with SIGKILL before its n-th file operation, resumed, and compared byte for byte. Prints JSON.

Each attempt is a fork of this process, which has imported torch but computed nothing with it.
"""

import json
import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from tailcut.allocation import Allocation, Bits, LayerPlan, Unstructured
from tailcut.checkpoint import Checkpoint
from tailcut.compress.calibration import Calibration
from tailcut.compress.discovery import find_linears
from tailcut.compress.run import compress

WATCHED = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.copyfile", "shutil.rmtree")


def count_operations(directory: Path, at: Callable[[int], None]) -> None:
    """Call `at(n)` before the n-th operation on a path below `directory` (files opened for reading too)."""
    done = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal done
        if event in WATCHED and isinstance(arguments[0], str | os.PathLike):
            path = os.fspath(arguments[0])
            if isinstance(path, str) and path.startswith(str(directory)):
                done += 1
                at(done)

    sys.addaudithook(hook)


def in_fork(work: Callable[[], object]) -> int:
    """Run `work` in a forked child; its exit status as `os.waitstatus_to_exitcode` gives it."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:  # a fork must never return into this script
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    source, text, base, pruner, pack = (*map(Path, sys.argv[1:4]), sys.argv[4], sys.argv[5] == "pack")
    bits: Bits | None = 4 if sys.argv[6] == "4" else None
    plans = {linear.name: LayerPlan(Unstructured(0.6), bits) for linear in find_linears(Checkpoint(source))}
    calibration = Calibration(str(text), samples=4, seqlen=16, seed=3)

    def run(out: Path) -> None:
        compress(source, Allocation(plans, {}), out, pruner=pruner, calibration=calibration, pack=pack, device="cpu")

    reference, tally = base / "reference", base / "tally"

    def counted() -> None:
        count_operations(base / "reference", lambda n: tally.write_text(str(n)))
        run(reference)

    assert in_fork(counted) == 0
    total = int(tally.read_text())
    points = sorted(random.Random(5).sample(range(1, total + 1), min(10, total)))  # noqa: S311  (not for secrets)
    kept = []
    for point in points:
        kept.append(killed_and_resumed(base / f"out-{point}", point, run))
        same = contents(base / f"out-{point}") == contents(reference)
        leftovers = [path.name for path in base.glob(f"out-{point}?*")]
        kept[-1] |= {"same": same, "leftovers": leftovers}
        shutil.rmtree(base / f"out-{point}")
    sys.stdout.write(json.dumps({"operations": total, "kills": kept}))


def killed_and_resumed(out: Path, point: int, run: Callable[[Path], None]) -> dict[str, object]:
    """Kill before operation `point`, note what stands, run again (unless the output is already whole)."""

    def doomed() -> None:
        count_operations(out, lambda n: os.kill(os.getpid(), signal.SIGKILL) if n == point else None)
        run(out)

    status = in_fork(doomed)
    shards = len(list(out.with_name(f"{out.name}.work").glob("model/*.safetensors")))
    whole = (out / "manifest.json").is_file()
    if whole:  # killed while tidying up after the output was published
        shutil.rmtree(out.with_name(f"{out.name}.work"), ignore_errors=True)
        return {"point": point, "status": status, "finished_shards": shards, "resumed": None}
    assert not out.exists(), "half an output is visible"
    return {"point": point, "status": status, "finished_shards": shards, "resumed": in_fork(lambda: run(out))}


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


if __name__ == "__main__":
    main()
