"""Environments of engines that cannot live beside tailcut's own packages.

An environment is made under a temporary name and renamed when its probe has run, so that a killed install
leaves nothing that counts as installed. `installed.json` in it carries the hash of the lock it was made from.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tailcut.errors import MissingEnvironmentError
from tailcut.files import new_directory, write_file
from tailcut.progress import Reporter, silent

MARK = "installed.json"
_PROBE_TIMEOUT_S = 120
_PIP_TIMEOUT_S = 1800


@dataclass(frozen=True, slots=True)
class Recipe:
    """What an engine's environment is made of. `probe` is Python code that must run in it and print the version."""

    name: str
    lock: Path
    pythons: tuple[tuple[int, int], ...]  # versions its wheels exist for, best first
    probe: str
    environment: Mapping[str, str] = field(default_factory=dict)
    licence: str = ""
    # True: what the lock's own packages pin beside it comes too. torch's build from a registry pins GPU libraries that its
    # build for CPUs does without, so a list cannot name them for both.
    dependencies: bool = False


def engines_directory() -> Path:
    """TAILCUT_ENGINES, or the user's data directory."""
    if named := os.environ.get("TAILCUT_ENGINES"):
        return Path(named)
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "tailcut" / "engines"


def home(recipe: Recipe, base: Path | None = None) -> Path:
    return (base or engines_directory()) / recipe.name


def python_of(recipe: Recipe, base: Path | None = None) -> Path:
    return home(recipe, base) / "bin" / "python"


def installed_reason(recipe: Recipe, base: Path | None = None) -> str | None:
    """None if the environment is there and made from this lock, else a sentence with the command that makes it."""
    if reason := mark_reason(home(recipe, base), recipe.name, lock_hash(recipe)):
        return reason
    if not os.access(python_of(recipe, base), os.X_OK):
        return f"its Python interpreter is gone; run `tailcut engines install {recipe.name}` --overwrite"
    return None


def mark_reason(directory: Path, name: str, lock_sha256: str) -> str | None:
    """None if `directory` carries the mark of an environment made from this lock, else why not and what to do."""
    command = f"run `tailcut engines install {name}`"
    mark = directory / MARK
    if not mark.is_file():
        return f"its environment is not installed; {command}"
    try:
        made_from = json.loads(mark.read_bytes()).get("lock_sha256")
    except (OSError, ValueError, AttributeError):
        return f"its environment is damaged ({MARK} is unreadable); {command} --overwrite"
    return (
        None if made_from == lock_sha256 else f"its environment was made from another lock list; {command} --overwrite"
    )


def lock_hash(recipe: Recipe) -> str:
    return hashlib.sha256(recipe.lock.read_bytes()).hexdigest()


def install(
    recipe: Recipe,
    *,
    python: str | None = None,
    base: Path | None = None,
    overwrite: bool = False,
    report: Reporter = silent,
) -> Path:
    """Make the environment and return its directory."""
    target = home(recipe, base)
    interpreter = find_python(recipe, python)
    with new_directory(target, overwrite=overwrite) as temporary:
        report("install", 0, 3, f"environment of {interpreter}")
        _run([interpreter, "-m", "venv", "--clear", str(temporary)], "make the virtual environment", _PIP_TIMEOUT_S)
        report("install", 1, 3, "packages of the lock list")
        inside = str(temporary / "bin" / "python")
        pip = [inside, "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--quiet"]
        pip += [] if recipe.dependencies else ["--no-deps"]
        _run([*pip, "-r", str(recipe.lock)], "install the lock list", _PIP_TIMEOUT_S)
        report("install", 2, 3, "probe")
        version = _run([inside, "-c", recipe.probe], "import the engine", _PROBE_TIMEOUT_S, recipe.environment)
        made = {"engine": recipe.name, "version": version.strip(), "lock_sha256": lock_hash(recipe)}
        write_file(temporary / MARK, json.dumps(made, indent=1).encode())
        report("install", 3, 3, f"{recipe.name} {version.strip()}")
    return target


def find_python(recipe: Recipe, named: str | None = None) -> str:
    """An interpreter of a version the engine has wheels for; the one named by the user must be one."""
    versions = ", ".join(f"{major}.{minor}" for major, minor in recipe.pythons)
    if named is not None:
        if _version(named) not in recipe.pythons:
            raise MissingEnvironmentError(f"{named} is not a Python of {versions} with venv; {recipe.name} needs one")
        return named
    for candidate in _candidates(recipe.pythons):
        if _version(candidate) in recipe.pythons:
            return candidate
    raise MissingEnvironmentError(
        f"{recipe.name} needs a Python of {versions} with venv, none was found on this machine; "
        "install one and name it with --python"
    )


def _candidates(pythons: Sequence[tuple[int, int]]) -> list[str]:
    named = [shutil.which(f"python{major}.{minor}") for major, minor in pythons]
    own = os.path.realpath(sys.executable)  # the interpreter behind a virtual environment
    return [own, *(path for path in named if path), *(path for path in [shutil.which("python3")] if path)]


def _version(python: str) -> tuple[int, int] | None:
    """(major, minor) of an interpreter that can make environments; None for one that does not run."""
    code = "import sys, venv, ensurepip; print(*sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=30, check=True)
        major, minor = done.stdout.split()
        return int(major), int(minor)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _run(argv: list[str], what: str, timeout_s: int, environment: Mapping[str, str] | None = None) -> str:
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=timeout_s, check=False, env=clean | dict(environment or {})
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingEnvironmentError(f"could not {what}: {error}") from error
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise MissingEnvironmentError(f"could not {what}: {' | '.join(lines[-3:]) or f'exit {done.returncode}'}")
    return done.stdout
