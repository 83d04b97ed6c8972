"""What an engine opens instead of the package: made once from it, kept beside it as `NAME-ENGINE`, moved in whole.

`variant.json` in it names the package it was made from by the hash of its manifest, so that a package exported again
does not meet an old variant. `python -m tailcut.bench.variants ENGINE PACKAGE` makes one by hand.
"""

import argparse
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from tailcut import __version__
from tailcut.bench import engines
from tailcut.errors import InputError
from tailcut.files import new_directory, write_file
from tailcut.manifest import MANIFEST_NAME
from tailcut.progress import Reporter, console, silent

VARIANT_NAME: Final = "variant.json"
# Part of every variant's identity: raise it when a maker writes something else than before.
_VERSION: Final = 1
Make = Callable[[Path], dict[str, Any]]


def directory(package: Path, engine: str) -> Path:
    """Where the variant of a package for an engine lies."""
    return package.with_name(f"{package.name}-{engine}")


def missing(package: Path, engine: str, source: Path | None = None) -> str | None:
    """None if the variant is there and belongs to this package, else what is wrong and what to do.

    source: the directory it is made from, when that is not the package itself.
    """
    made = directory(package, engine)
    command = f"make it with `python -m tailcut.bench.variants {engine} {package.name}`"
    if not (made / VARIANT_NAME).is_file():
        return f"{made.name} is not there; {command}"
    if facts(made).get("identity") != _identity(source or package):
        return f"{made.name} was made from another package of that name; {command}"
    return None


def facts(made: Path) -> dict[str, Any]:
    """What the maker noted about a variant; empty when unreadable."""
    try:
        found = json.loads((made / VARIANT_NAME).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def make(package: Path, engine: str, write: Make, source: Path | None = None) -> Path:
    """The variant's directory; `write` fills it and returns facts for `variant.json`. Kept when it is current."""
    target, origin = directory(package, engine), source or package
    if missing(package, engine, source) is None:
        return target
    if not (origin / MANIFEST_NAME).is_file():
        raise InputError(f"{origin}: no {MANIFEST_NAME}; export the package with tailcut first")
    with new_directory(target, overwrite=True) as temporary:
        noted = write(temporary)
        if (origin / "config.json").is_file():
            shutil.copyfile(origin / "config.json", temporary / "config.json")
        body = {"engine": engine, "identity": _identity(origin), "made_by": f"tailcut {__version__}"} | noted
        write_file(temporary / VARIANT_NAME, (json.dumps(body, indent=1) + "\n").encode())
    return target


def prepare(name: str, package: Path, report: Reporter = silent) -> None:
    """Make what the engine `name` opens for a package, if that engine has a variant of its own and lacks it."""
    maker = getattr(engines.load(name), "prepare", None)
    if maker is not None:
        report("variant", 0, 1, f"{package.name} for {name}")
        maker(package)


def _identity(origin: Path) -> str:
    path = origin / MANIFEST_NAME
    content = path.read_bytes() if path.is_file() else b""
    return f"{_VERSION}:{hashlib.sha256(content).hexdigest()}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="make an engine's variant of a package beside it")
    parser.add_argument("engine", choices=engines.names())
    parser.add_argument("package", type=Path)
    options = parser.parse_args(arguments)
    with console() as report:
        prepare(options.engine, options.package, report)


if __name__ == "__main__":
    main()
