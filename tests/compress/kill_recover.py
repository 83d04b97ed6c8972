"""Run by test_resume: `kill_recover.py STUDENT TEACHER TEXT BASE METHODS POINTS` recovers once undisturbed, then again and
again, killed with SIGKILL before its n-th file operation, resumed, and compared byte for byte. Prints JSON.

Each attempt is a fork of this process, which has imported torch but computed nothing with it.
"""

import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

from kill_at import count_operations, in_fork  # beside this script

from tailcut.compress.recover import recover
from tailcut.recovering import Effort, Recovering


def contents(directory: Path) -> dict[str, object]:
    """Every file's bytes; of the recovery's curve everything but the times."""
    found: dict[str, object] = {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
    found["recovery.json"] = timeless(json.loads((directory / "recovery.json").read_bytes()))
    return found


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key != "seconds"}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def main() -> None:
    student, teacher, text, base = map(Path, sys.argv[1:5])
    settings = Recovering(
        (str(text),), Effort(steps=6), tuple(sys.argv[5].split(",")), seqlen=24, batch=4, samples=4, rank=4, rate=3e-3,
        device="cpu",
    )  # fmt: skip
    reference, tally = base / "reference", base / "tally"

    def counted() -> None:
        count_operations(reference, lambda n: tally.write_text(str(n)))
        recover(student, teacher, reference, settings)

    assert in_fork(counted) == 0
    total = int(tally.read_text())
    points = sorted(random.Random(7).sample(range(1, total + 1), int(sys.argv[6])))  # noqa: S311  (not for secrets)
    kept = []
    for point in points:
        out = base / f"out-{point}"

        def doomed(out: Path = out, point: int = point) -> None:
            count_operations(out, lambda n: os.kill(os.getpid(), signal.SIGKILL) if n == point else None)
            recover(student, teacher, out, settings)

        status, whole = in_fork(doomed), out.exists()
        learning = len(list(base.glob(f"out-{point}.work/**/learning.safetensors")))
        again = 0 if whole else in_fork(lambda out=out: recover(student, teacher, out, settings))
        same = contents(out) == contents(reference)
        kept.append(
            {"point": point, "status": status, "whole": whole, "checkpoints": learning, "again": again, "same": same}
        )
    sys.stdout.write(json.dumps({"operations": total, "kills": kept}))


if __name__ == "__main__":
    main()
