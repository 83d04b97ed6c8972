"""One benchmark at a time on a machine: two that overlap measure each other."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tailcut.files import held
from tailcut.progress import Reporter, silent


def lock_path() -> Path:
    """The lock file of this user: TAILCUT_BENCH_LOCK, or one in the user's cache directory."""
    if named := os.environ.get("TAILCUT_BENCH_LOCK"):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "tailcut" / "bench.lock"


@contextmanager
def machine_lock(report: Reporter = silent) -> Iterator[None]:
    """Hold the machine for timing; waits for another bench to end and says so."""
    path = lock_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with held(path, lambda: report("bench", 0, 1, "waiting for another tailcut bench on this machine to end")):
        yield
