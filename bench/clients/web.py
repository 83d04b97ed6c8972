"""onnxruntime-web under Node: WebAssembly, no kernels of ours, so a sparse package runs by its function bodies.

Its environment is made by npm from a lock with the hash of every package (`web.lock`, npm's package-lock.json); no
package may run a script of its own. It needs Node 18 or newer with npm.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from tailcut.bench.environment import MARK, Recipe, engines_directory, mark_reason
from tailcut.bench.worker import SCRIPTS, Launch
from tailcut.errors import MissingEnvironmentError
from tailcut.files import new_directory, write_file
from tailcut.progress import Reporter, silent

TARGET: Final = "web"
LICENCE: Final = "MIT"
RECIPE: Final[Recipe | None] = None
LOCK: Final = Path(__file__).with_name("web.lock")
OLDEST_NODE: Final = 18
_TIMEOUT_S: Final = 600
_ADVICE: Final = "install Node 18 or newer with npm (Debian: apt-get install nodejs npm)"


def available() -> str | None:
    return _node_reason() or installed_reason(None)


def installed_reason(base: Path | None) -> str | None:
    """None if the environment is there and made from this lock, else a sentence with the command that makes it."""
    return mark_reason(home(base), "web", _lock_hash())


def home(base: Path | None = None) -> Path:
    return (base or engines_directory()) / "web"


def where() -> str:
    return shutil.which("node") or "node"


def launch(directory: Path, threads: int) -> Launch:
    settings = {"directory": str(directory.resolve()), "threads": threads, "node": where(), "environment": str(home())}
    return Launch(sys.executable, SCRIPTS / "web_worker.py", settings)


def install(*, base: Path | None = None, overwrite: bool = False, report: Reporter = silent) -> Path:
    """Have npm fetch what the lock lists; MissingEnvironmentError says what is not there. Nothing is left of a broken-off one."""
    if problem := _node_reason():
        raise MissingEnvironmentError(f"web: {problem}")
    npm = shutil.which("npm")
    if npm is None:
        raise MissingEnvironmentError(f"web: npm is not on the path; {_ADVICE}")
    if not overwrite and installed_reason(base) is None:
        return home(base)
    with new_directory(home(base), overwrite=overwrite) as directory:
        lock = json.loads(LOCK.read_bytes())
        write_file(directory / "package-lock.json", LOCK.read_bytes())
        write_file(directory / "package.json", (json.dumps(_package(lock), indent=1) + "\n").encode())
        report("install", 0, 1, "packages of the lock list")
        _run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], directory)
        made = {"engine": "web", "version": _version(lock), "lock_sha256": _lock_hash()}
        write_file(directory / MARK, json.dumps(made, indent=1).encode())
        report("install", 1, 1, f"onnxruntime-web {_version(lock)}")
    return home(base)


def _package(lock: dict[str, Any]) -> dict[str, Any]:
    """The package.json that the lock belongs to."""
    root = lock["packages"][""]
    return {**{key: root[key] for key in ("name", "version", "dependencies")}, "private": True}


def _version(lock: dict[str, Any]) -> str:
    return str(lock["packages"]["node_modules/onnxruntime-web"]["version"])


def _lock_hash() -> str:
    return hashlib.sha256(LOCK.read_bytes()).hexdigest()


def _node_reason() -> str | None:
    node = shutil.which("node")
    if node is None:
        return f"node is not on the path; {_ADVICE}"
    try:
        done = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=30, check=True)
        major = int(done.stdout.strip().removeprefix("v").split(".")[0])
    except (OSError, subprocess.SubprocessError, ValueError):
        return f"{node} does not run; {_ADVICE}"
    return None if major >= OLDEST_NODE else f"{node} is version {major}; {_ADVICE}"


def _run(argv: list[str], directory: Path) -> None:
    try:
        done = subprocess.run(argv, cwd=directory, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingEnvironmentError(f"web: npm could not install the lock list: {error}") from error
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip() and "warn" not in line]
        raise MissingEnvironmentError(f"web: npm could not install the lock list: {' | '.join(lines[-3:])}")
