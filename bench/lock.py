"""One benchmark at a time on a machine: two that overlap measure each other."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("bench", 0, 1, "waiting for another tailcut bench on this machine to end")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # the kernel drops the lock with the last handle, also when we are killed
