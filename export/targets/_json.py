"""Small JSON files of a package that is being finished."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tailcut.files import write_file
from tailcut.untrusted import parse_json, read_limited


def read_json(path: Path) -> dict[str, Any]:
    """The settings of a file, nothing where there is none; those that are null are left out."""
    if not path.is_file():
        return {}
    return {name: value for name, value in parse_json(read_limited(path), str(path)).items() if value is not None}


def write_json(path: Path, settings: Mapping[str, Any]) -> None:
    """Write settings, the same ones as the same bytes."""
    write_file(path, (json.dumps(settings, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())
