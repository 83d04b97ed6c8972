"""JSON in and out for the frozen values, with a schema name and version on every file.

The values are plain frozen dataclasses; pydantic only checks types on the way in, so that a hand-edited
or truncated file gives one clear sentence naming the field, and an unknown field is refused. What a file may hold at
all (size, depth, unique names, finite numbers) `tailcut.untrusted` says; kinds that are shown to people as they are set
VISIBLE_TEXT and also refuse characters that are not shown.
"""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from tailcut.errors import InputError
from tailcut.files import write_file
from tailcut.untrusted import parse_json, read_limited, require_visible

T = TypeVar("T")
FORBID_EXTRA: Any = {"extra": "forbid"}  # set as __pydantic_config__ on each value

_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {}  # building one costs milliseconds


def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def to_json(value: object) -> str:
    """One value -> indented JSON text whose first key says which schema it follows."""
    kind = type(value)
    body = _adapter(kind).dump_python(value, mode="json")
    head = {"schema": f"tailcut/{kind.__name__}", "schema_version": _version(kind)}
    return json.dumps(head | body, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(kind: type[T], text: str | bytes, source: str = "input") -> T:
    """JSON text -> a value of `kind`; InputError names the source and the field that is wrong."""
    data = parse_json(text, source)
    _check_head(kind, data, source)
    if getattr(kind, "VISIBLE_TEXT", False):
        require_visible(data, source)
    return parse(kind, {key: item for key, item in data.items() if key not in ("schema", "schema_version")}, source)


def parse(kind: type[T], body: dict[str, Any], source: str) -> T:
    """Plain settings (no schema line) -> a value; InputError names the source and the field that is wrong."""
    try:
        # JSON (not python) mode, so that arrays may become tuples while everything else stays strict.
        value: T = _adapter(kind).validate_json(json.dumps(body), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "top level"
        raise InputError(f"{source}: field {where}: {first['msg']}") from error
    return value


def save(value: object, path: Path) -> None:
    """Write one value atomically (temporary sibling, fsync, rename)."""
    write_file(path, to_json(value).encode())


def load(kind: type[T], path: Path) -> T:
    """Read one value; a missing or malformed file is an InputError."""
    try:
        text = read_limited(path)
    except OSError as error:
        raise InputError(f"{path}: cannot read a {kind.__name__} ({error.strerror})") from error
    return from_json(kind, text, str(path))


def json_schema(kind: type[Any]) -> dict[str, Any]:
    """The published JSON schema of a value."""
    return _adapter(kind).json_schema()


def _version(kind: type[Any]) -> int:
    return int(getattr(kind, "SCHEMA_VERSION", 1))


def _check_head(kind: type[Any], data: object, source: str) -> None:
    if not isinstance(data, dict):
        raise InputError(f"{source}: expected a JSON object, got {type(data).__name__}")
    want, got = f"tailcut/{kind.__name__}", data.get("schema")
    if got != want:
        raise InputError(f"{source}: expected schema {want!r}, got {got!r}")
    if data.get("schema_version") != _version(kind):
        raise InputError(
            f"{source}: schema version {data.get('schema_version')!r}, this tailcut reads version "
            f"{_version(kind)}; make the file again with this version"
        )
