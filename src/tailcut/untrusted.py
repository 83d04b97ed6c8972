"""JSON and YAML that nobody vouches for: limits on size and depth before parsing, and nothing that reads in two ways.

Refused with one sentence: more bytes or levels than any honest file has, a name that appears twice in one object, NaN and
numbers beyond float64 or 64 bits, text that is not UTF-8; in YAML also tags, anchors and aliases (a few of which
expand to gigabytes). YAML's plain scalars are read as YAML 1.2 does: `2:4` and `on` are text, `1e-3` is a number.
"""

import json
import math
import re
from pathlib import Path
from typing import Any, Final, NoReturn

import yaml

from tailcut.errors import InputError

MAX_BYTES: Final = 256 << 20  # scores and curves of a model with thousands of matrices take some tens of MB
MAX_SETTINGS_BYTES: Final = 1 << 18  # of a YAML file: recipes and policies take some kB
MAX_DEPTH: Final = 64
# a string, which may hold brackets, or a bracket; possessive, and a string may lack its end: never a second look
_TOKENS: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)
_DIGITS: Final = 19  # of the largest 64-bit integer
# what a terminal or a browser does not show, or shows elsewhere than it stands: controls other than tab and line
# ends, zero-width and direction marks, halves of a pair
_HIDDEN: Final = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164"
    "\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def read_limited(path: Path, limit: int = MAX_BYTES) -> bytes:
    """A file's bytes; OSError as `open` raises it, InputError if there are more than `limit`."""
    with path.open("rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise InputError(f"{path}: larger than {limit / 1e6:.3g} MB, which no file of this kind is")
    return data


def parse_json(text: str | bytes, source: str) -> Any:  # noqa: ANN401  (plain data of any shape)
    """JSON text (UTF-8) -> dicts, lists, strings, finite numbers, bools and None."""
    try:
        plain = text if isinstance(text, str) else text.decode()
        _require_shallow(plain)
        return json.loads(
            plain, object_pairs_hook=_unique, parse_float=_number, parse_int=_integer, parse_constant=_no_such_number
        )
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source}: not valid JSON ({error})") from error


def parse_yaml(text: str | bytes, source: str, limit: int = MAX_SETTINGS_BYTES) -> Any:  # noqa: ANN401  (plain data of any shape)
    """YAML text (UTF-8) of at most `limit` bytes -> dicts with string keys, lists, strings, finite numbers, bools, None."""
    if len(text) > limit:
        raise InputError(f"{source}: larger than {limit / 1e3:.0f} kB, which no settings file is")
    try:
        plain = text if isinstance(text, str) else text.decode()
        _require_plain_events(plain)
        return _Loader(plain).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{source}: not valid YAML ({' '.join(str(error).split())})") from error


def require_visible(value: object, source: str, where: str = "") -> None:
    """InputError if a string or key of plain data has characters that are not shown as they stand."""
    if isinstance(value, str):
        found = _HIDDEN.search(value)
        if found:
            place = where or "top level"
            raise InputError(f"{source}: {place} holds the invisible character U+{ord(found[0]):04X}; write it without")
    elif isinstance(value, dict):
        for key, item in value.items():
            require_visible(key, source, f"a name in {where}" if where else "a name")
            require_visible(item, source, f"{where}.{key}" if where else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, str | dict | list):  # not the samples
                require_visible(item, source, f"{where}.{index}")


def _require_shallow(text: str) -> None:
    depth = 0
    for token in _TOKENS.finditer(text):
        mark = token[0]
        if mark in ("[", "{"):
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        elif mark in ("]", "}"):
            depth -= 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice[:80]!r} appears twice in one place")
    return made


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is beyond float64")
    return value


def _integer(text: str) -> int:
    if len(text.lstrip("-")) > _DIGITS:
        raise ValueError(f"an integer of {len(text)} digits; 64 bits hold {_DIGITS}")
    return int(text)


def _no_such_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")  # Python's reader would take NaN and Infinity


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """Plain data with unique string keys."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (filled below; YAML 1.1's are not wanted)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[str, Any]:  # noqa: ANN401
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        odd = next((key for key in keys if not isinstance(key, str)), None)
        if odd is not None or None in keys:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: the name {odd!r} is not text")
        values = [self.construct_object(value, deep=deep) for _, value in node.value]
        return _unique(list(zip(keys, values, strict=True)))


def _yaml_number(loader: _Loader, node: Any) -> int | float:  # noqa: ANN401
    text = str(loader.construct_scalar(node))
    return _integer(text.lstrip("+")) if re.fullmatch(r"[-+]?[0-9]+", text) else _number(text)


for _tag, _pattern, _first in (
    ("null", r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^{_pattern}$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:float", _yaml_number)


def _require_plain_events(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise ValueError(f"line {line}: anchors and aliases are not read here; write the value out")
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"line {line}: the tag {event.tag!r} is not read here; write plain values")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"line {line}: nested deeper than {MAX_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
