"""Writing so that a crash, a kill or a full disk leaves either the old output or the new one.

A file or directory is made as a temporary sibling, flushed to disk and renamed. Leftovers of a killed run
carry `.tmp-` in their name and are swept by the next run that wants the same output.
"""

import errno
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tailcut.errors import InputError, MissingEnvironmentError

_TMP = ".tmp-"
_LEFTOVER = re.compile(r".+\.tmp-(old-)?\d+")
_CHUNK = 1 << 22
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_file(path: Path, data: bytes) -> None:
    """Replace `path` by `data` atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}{_TMP}{os.getpid()}")
    try:
        with full_disk_is_clear(path), temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        _fsync_dir(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_directory(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a fresh temporary sibling directory that becomes `path` only if the block succeeds.

    Raises InputError when `path` exists with content and `overwrite` is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)  # first: it may put back an output that a killed run had moved aside
    if not overwrite:
        require_absent(path)
    temporary = path.with_name(f"{path.name}{_TMP}{os.getpid()}")
    temporary.mkdir()
    try:
        with full_disk_is_clear(path):
            yield temporary
            publish(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(temporary: Path, path: Path) -> None:
    """Flush every file under `temporary`, then put it in the place of `path`."""
    for item in temporary.rglob("*"):
        if item.is_file():
            _fsync(item)
    _fsync_dir(temporary)
    if path.exists():
        old = path.with_name(f"{path.name}{_TMP}old-{os.getpid()}")
        path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    else:
        temporary.rename(path)
    _fsync_dir(path.parent)


def require_absent(path: Path) -> None:
    """InputError if `path` already holds something: outputs are never silently overwritten."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path}: already exists; choose another output, remove it, or pass --overwrite")


def sweep(path: Path) -> None:
    """Remove what killed runs left beside `path`.

    A kill between the two renames of `publish` leaves no `path` and the old output under another name;
    that old output is put back first.
    """
    for old in sorted(path.parent.glob(f"{path.name}{_TMP}old-*")):
        if not path.exists():
            old.rename(path)
    for leftover in path.parent.glob(f"{path.name}{_TMP}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def is_leftover(name: str) -> bool:
    """Whether a file of this name is what a kill left of a file that was being written."""
    return _LEFTOVER.fullmatch(name) is not None


def sweep_inside(directory: Path) -> None:
    """Remove what kills left of files that were being written anywhere below `directory`."""
    for path in directory.rglob(f"*{_TMP}*"):
        if path.is_file() and is_leftover(path.name):
            path.unlink(missing_ok=True)


@contextmanager
def held(path: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file `path`, made where it is missing; where another process holds it, `wait` is called once first."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            wait()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # the kernel drops the lock with the last handle, also when we are killed


def flat_name(name: str) -> str:
    """A file name that cannot leave its directory; InputError otherwise."""
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise InputError(f"file name {name!r} leaves its directory; only plain names are read or written")
    return name


@contextmanager
def full_disk_is_clear(path: Path) -> Iterator[None]:
    """Turn ENOSPC and its kin into one sentence with exit code 4."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise disk_full(path) from error
        raise


def disk_full(path: Path) -> MissingEnvironmentError:
    """The error for a full disk, with the space that is left."""
    parent = next(p for p in (path, *path.parents) if p.exists())
    free = shutil.disk_usage(parent).free
    return MissingEnvironmentError(
        f"{path}: the disk is full ({free / 1e6:.0f} MB free); nothing was replaced, free some space and run again"
    )


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _fsync_dir(path: Path) -> None:
    _fsync(path)
