"""What one modifier becomes: settings of a tailcut recipe, a plan for matrices, and sentences for what does not carry over."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from tailcut.allocation import Pattern
from tailcut.errors import InputError
from tailcut.recipe_import._reading import Read


@dataclass(frozen=True, slots=True)
class Matrix:
    """One prunable matrix of the model, in model order."""

    name: str
    block: str  # the module that is its decoder block, "model.layers.3"
    parameters: int


@dataclass(frozen=True, slots=True)
class Part:
    """`settings` of tailcut.recipe.Recipe; `plan`: matrix name -> pattern, of pruning; what was and was not taken over."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Pattern] | None = None
    mapped: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()


def unknown(read: Read, known: Collection[str]) -> tuple[str, ...]:
    """A sentence for every setting that nothing here reads."""
    places = {"group", "index"}  # where the modifier stands, not what it does
    return tuple(
        f"{read.where}, {key[:60]}: not a setting that is known here; look up what it does and choose by hand"
        for key in read.settings
        if key not in known and key not in places
    )


def number(read: Read, key: str, default: float | None = None) -> float | None:
    """A number or the default; InputError for anything else."""
    value = read.settings.get(key, default)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{read.where}, {key}: expected a number, got {str(value)[:60]!r}")
    return float(value)


def words(read: Read, key: str) -> tuple[str, ...]:
    """A string or a list of strings; nothing is an empty tuple."""
    value = read.settings.get(key)
    if value is None:
        return ()
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
        raise InputError(f"{read.where}, {key}: expected names, got {str(value)[:60]!r}")
    return tuple(listed)
