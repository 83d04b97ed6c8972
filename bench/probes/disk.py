"""Room on disk: where outputs go (the working directory) and where matrices are expanded (the temporary directory)."""

import shutil
import tempfile
from pathlib import Path
from typing import Final

from tailcut.bench.probes import HIDDEN, Finding, Group, System

TITLE: Final = "disk"
GROUP: Final[Group] = "memory"
MEASURES: Final = False
_PLACES: Final = {"here": "here", "temporary": "in the temporary directory"}
_LITTLE: Final = 5e9  # bytes: a 1B-parameter model in float32 and its package


def probe(system: System) -> Finding:
    rooms = {"here": _free(Path.cwd()), "temporary": _free(Path(tempfile.gettempdir()))}
    facts = {f"{name}_bytes": free for name, free in rooms.items()}
    known = {name: free for name, free in rooms.items() if free is not None}
    if not known:
        return Finding("unknown", HIDDEN, "", facts)
    sentence = ", ".join(f"{free / 1e9:.0f} GB free {_PLACES[name]}" for name, free in known.items())
    tight = [_PLACES[name] for name, free in known.items() if free < _LITTLE]
    if tight:
        advice = (
            f"Free some space {' and '.join(tight)}, or point TMPDIR elsewhere: models and packages take gigabytes."
        )
        return Finding("hint", sentence, advice, facts)
    return Finding("good", sentence, "", facts)


def _free(path: Path) -> int | None:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None
