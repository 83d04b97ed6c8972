"""Run by test_killed: `kill_structured.py SOURCE TEXT BASE UNITS POINTS` cuts once undisturbed, then again and again, killed
with SIGKILL before its n-th file operation, resumed, and compared byte for byte. Prints JSON.

Each attempt is a fork of this process, which has imported torch but computed nothing with it.
"""

import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

from kill_at import contents, count_operations, in_fork  # beside this script

from tailcut.compress.calibration import Calibration
from tailcut.compress.structured_run import Structuring, cut_structured


def main() -> None:
    source, text, base = map(Path, sys.argv[1:4])
    units: Any = tuple(sys.argv[4].split(","))
    asked = Structuring(0.4, units=units, multiple=8, calibration=Calibration(str(text), 4, 16, 3), device="cpu")
    reference, tally = base / "reference", base / "tally"

    def counted() -> None:
        count_operations(reference, lambda n: tally.write_text(str(n)))
        cut_structured(source, reference, asked)

    assert in_fork(counted) == 0
    total = int(tally.read_text())
    points = sorted(random.Random(3).sample(range(1, total + 1), min(int(sys.argv[5]), total)))  # noqa: S311  (not for secrets)
    kept = [killed_and_resumed(source, asked, base / f"out-{point}", point, reference) for point in points]
    sys.stdout.write(json.dumps({"operations": total, "kills": kept}))


def killed_and_resumed(source: Path, asked: Structuring, out: Path, point: int, reference: Path) -> dict[str, object]:
    """Kill before operation `point`, note what stands, run the same again (unless the output is there already)."""

    def doomed() -> None:
        count_operations(out, lambda n: os.kill(os.getpid(), signal.SIGKILL) if n == point else None)
        cut_structured(source, out, asked)

    status, whole = in_fork(doomed), out.exists()
    work = out.with_name(f"{out.name}.work")
    shards, scored = len(list(work.glob("model/*.safetensors"))), (work / "scores.safetensors").is_file()
    # what is visible under the output's name is all of it, also right after the kill
    complete = contents(out) == contents(reference) if whole else None
    again = None if whole else in_fork(lambda: cut_structured(source, out, asked))
    left = [path.name for path in out.parent.glob(f"{out.name}?*")] if not whole else []
    return {
        "point": point,
        "status": status,
        "whole": complete,
        "shards": shards,
        "scored": scored,
        "again": again,
        "same": contents(out) == contents(reference),
        "leftovers": left,
    }


if __name__ == "__main__":
    main()
