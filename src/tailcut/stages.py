"""Stages that are done once: the journal of a run directory.

A stage has a key: the hash of its name, its settings, the keys of the stages it builds on, and tailcut's
version. It counts as done when its mark in `.stages/` carries that key and its outputs exist. Everything is
written through temporary siblings, so a kill at any moment leaves a stage either done or not begun, and the
same command goes on from there. A changed setting changes the keys downstream of it, and only those run again.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tailcut import __version__
from tailcut.errors import InputError
from tailcut.files import sweep, write_file

MARKS = ".stages"


@dataclass(frozen=True, slots=True)
class Stage:
    """One step: what it depends on (stage names), which files or directories it leaves, and the work itself."""

    name: str
    after: tuple[str, ...]
    settings: Mapping[str, object]
    outputs: tuple[str, ...]
    work: Callable[[], None]
    resumes: bool = False  # the work keeps its own journal beside its output: do not clear that


def run_stages(directory: Path, stages: Sequence[Stage], tell: Callable[[str, bool], None]) -> None:
    """Run what is not done yet, in order. `tell(name, skipped)` is called as each stage begins."""
    keys: dict[str, str] = {}
    for stage in stages:
        keys[stage.name] = _key(stage, [keys[name] for name in stage.after])
        done = is_done(directory, stage, keys[stage.name])
        tell(stage.name, done)
        if done:
            continue
        _clear(directory, stage)
        stage.work()
        _require_outputs(directory, stage)
        write_file(_mark(directory, stage), keys[stage.name].encode())


def is_done(directory: Path, stage: Stage, key: str) -> bool:
    """Whether the mark carries this key and every output exists."""
    mark = _mark(directory, stage)
    marked = mark.is_file() and mark.read_bytes() == key.encode()
    return marked and all((directory / output).exists() for output in stage.outputs)


def _key(stage: Stage, upstream: Sequence[str]) -> str:
    parts = [__version__, stage.name, dict(stage.settings), list(upstream)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _mark(directory: Path, stage: Stage) -> Path:
    return directory / MARKS / stage.name


def _clear(directory: Path, stage: Stage) -> None:
    """The mark goes first, so that a kill while clearing cannot leave a mark on half an output."""
    _mark(directory, stage).unlink(missing_ok=True)
    for output in stage.outputs:
        path = directory / output
        if not stage.resumes:
            sweep(path)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _require_outputs(directory: Path, stage: Stage) -> None:
    missing = [output for output in stage.outputs if not (directory / output).exists()]
    if missing:
        raise InputError(f"stage {stage.name} ended without its output {missing[0]}; please report this")
