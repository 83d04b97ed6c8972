"""`make demo` as a newcomer has it: a fresh clone, a fresh environment, fresh caches; how long, how much memory.

    python benchmarks/demo.py DIR --out benchmarks/results/cpu_demo.json

Clones this checkout's HEAD into DIR (which must not exist) and runs `make demo` there. pip may use its own download cache.
Peak memory is that of the largest single process.
"""

import argparse
import json
import os
import resource
import subprocess
import time
from pathlib import Path

from tailcut.files import write_file

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "cpu_demo.json")
    args = parser.parse_args()
    clone = args.directory.resolve()
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    homes = {"XDG_DATA_HOME": str(clone / ".home" / "data"), "XDG_CACHE_HOME": str(clone / ".home" / "cache")}
    environment = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "VENV", "PYTHONPATH")}
    began = time.time()
    subprocess.run(["make", "demo"], cwd=clone, env=environment | homes, check=True)
    wall = time.time() - began
    run = clone / "demo-out"
    facts = {
        "command": "make demo",
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),  # None: all cores
        "wall_s": wall,
        "run_s": (run / "report.html").stat().st_mtime - (run / "recipe.json").stat().st_mtime,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3,
        "stages_done_s": {mark.name: mark.stat().st_mtime - began for mark in sorted((run / ".stages").iterdir())},
        "result": json.loads((run / "result.json").read_bytes()),
        "verdict": json.loads((run / "verdict.json").read_bytes()),
    }
    write_file(args.out, (json.dumps(facts, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
