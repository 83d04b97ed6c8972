"""Text of a SparseML or llm-compressor recipe -> its modifiers, as plain data.

Read: stages of `*_modifiers` groups, `stages:`, groups without a stage, lists of modifiers, the front matter of a
Markdown recipe, and the tags of old recipes (`- !EpochRangeModifier`), which are taken as names and never construct
anything. Every other tag, anchors, aliases, depth and size are refused by `tailcut.untrusted`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tailcut.errors import InputError
from tailcut.recipe_import._arithmetic import resolve
from tailcut.untrusted import MAX_SETTINGS_BYTES, parse_yaml, read_limited, require_visible

MAX_MODIFIERS: Final = 200
_OLD: Final = "tailcut_old_tag"
_TAG: Final = re.compile(r"^([ \t]*-[ \t]+)!([A-Za-z]\w{0,60}Modifier)[ \t]*$", re.MULTILINE | re.ASCII)
_CLASS: Final = re.compile(r"[A-Za-z]\w{0,80}", re.ASCII)
_FRONT: Final = re.compile(r"\A\s*---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Read:
    """One modifier of a recipe: where it stands, its class, its settings (numbers computed)."""

    stage: str
    name: str
    settings: dict[str, Any]

    @property
    def where(self) -> str:
        return f"{self.stage}, {self.name}" if self.stage else self.name


def read_modifiers(path: Path) -> tuple[Read, ...]:
    """A recipe file's modifiers in order; InputError in one sentence for a file that is none or that plays tricks."""
    try:
        data = read_limited(path, MAX_SETTINGS_BYTES)
    except OSError as error:
        raise InputError(f"{path}: cannot read the recipe ({error.strerror})") from error
    return modifiers_in(data, str(path), markdown=path.suffix.lower() == ".md")


def modifiers_in(data: bytes, source: str, *, markdown: bool = False) -> tuple[Read, ...]:
    """The same from the bytes of a file."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not text (UTF-8)") from error
    if markdown:
        front = _FRONT.match(text)
        if front is None:
            raise InputError(f"{source}: this Markdown file does not begin with a recipe between two lines of ---")
        text = front[1]
    plain = parse_yaml(_TAG.sub(rf"\1{_OLD}: \2", text), source)
    if not isinstance(plain, dict):
        raise InputError(f"{source}: a recipe is a mapping of stages or modifiers, got {type(plain).__name__}")
    require_visible(plain, source)
    found = _in_mapping(plain, "", _variables(plain), source)
    if not found:
        raise InputError(f"{source}: no modifiers are in it; is it a recipe of SparseML or llm-compressor?")
    if len(found) > MAX_MODIFIERS:
        raise InputError(f"{source}: {len(found)} modifiers, at most {MAX_MODIFIERS} are read")
    return tuple(found)


def _variables(plain: dict[str, Any]) -> dict[str, Any]:
    """What `eval(...)` may name: settings beside stages and modifiers, also those below `args`."""
    named = {key: value for key, value in plain.items() if not isinstance(value, dict | list)}
    args = plain.get("args")
    return named | (args if isinstance(args, dict) else {})


def _in_mapping(plain: dict[str, Any], stage: str, variables: dict[str, Any], source: str) -> list[Read]:
    found: list[Read] = []
    for key, value in plain.items():
        if key == "modifiers" or key.endswith("_modifiers"):
            found += _in_group(value, stage, variables, f"{source}: {key}")
        elif not stage and key == "stages" and isinstance(value, dict):
            for name, inner in value.items():
                found += _in_stage(inner, name, variables, source)
        elif not stage and key.endswith("_stage"):
            found += _in_stage(value, key.removesuffix("_stage"), variables, source)
    return found


def _in_stage(value: object, name: str, variables: dict[str, Any], source: str) -> list[Read]:
    if not isinstance(value, dict):
        raise InputError(
            f"{source}: the stage {name[:60]} is a mapping of groups of modifiers, got {type(value).__name__}"
        )
    if value.get("enabled") is False:
        return []
    return _in_mapping(value, f"stage {name[:60]}", variables | _variables(value), source)


def _in_group(value: object, stage: str, variables: dict[str, Any], source: str) -> list[Read]:
    if isinstance(value, dict):
        return [_modifier(name, settings, stage, variables, source) for name, settings in value.items()]
    if not isinstance(value, list):
        raise InputError(f"{source}: expected modifiers by name, got {type(value).__name__}")
    found = []
    for item in value:
        if isinstance(item, dict) and isinstance(name := item.get(_OLD), str):
            settings = {key: inner for key, inner in item.items() if key != _OLD}
            found.append(_modifier(name, settings, stage, variables, source))
        elif isinstance(item, dict) and len(item) == 1:
            ((name, settings),) = item.items()
            found.append(_modifier(name, settings, stage, variables, source))
        else:
            raise InputError(f"{source}: every item of the list is one modifier with its settings")
    return found


def _modifier(name: str, settings: object, stage: str, variables: dict[str, Any], source: str) -> Read:
    if not _CLASS.fullmatch(name):
        raise InputError(f"{source}: {name[:80]!r} is no name of a modifier")
    if not isinstance(settings, dict | None):
        raise InputError(f"{source}: the settings of {name} are a mapping, got {type(settings).__name__}")
    return Read(stage, name, resolve(settings or {}, variables, f"{source}, {name}"))
