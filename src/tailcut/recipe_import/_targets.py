"""`targets` and `ignore` of a modifier -> matrices of a model, in the order in which a list of sparsities is counted.

A target is a module's name, the name of a class, or `re:` and a pattern that must match from the beginning. Patterns come
from a file that nobody vouches for: they are bounded in length, in the number of repetitions, and may not repeat a
group, so that none takes longer than the names are long to some small power.
"""

import re
from collections.abc import Sequence
from typing import Final

from tailcut.errors import InputError
from tailcut.recipe_import._parts import Matrix, words
from tailcut.recipe_import._reading import Read

MAX_TARGETS: Final = 5000
_MAX_PATTERN, _MAX_REPEATS = 200, 4
_ALL: Final = ("Linear", "__ALL__", "__ALL_PRUNABLE__", "__ALL_QUANTIZABLE__")
_BLOCK_CLASSES: Final = ("DecoderLayer", "Block")  # how classes of decoder blocks end


def units(read: Read, matrices: Sequence[Matrix]) -> list[tuple[str, tuple[str, ...]]]:
    """What is targeted, in model order: a module's name and the names of its matrices. No targets: every block."""
    targets = words(read, "targets")
    blocks: dict[str, list[str]] = {}
    for matrix in matrices:
        blocks.setdefault(matrix.block, []).append(matrix.name)
    found: list[tuple[str, tuple[str, ...]]] = []
    tests = _Tests(targets, read.where)
    for block, names in blocks.items():
        if not targets or tests.hit(block, _BLOCK_CLASSES):
            found.append((block, tuple(names)))
        found += [(name, (name,)) for name in names if targets and tests.hit(name, ("Linear",))]
    return found


def ignored(read: Read, matrices: Sequence[Matrix]) -> frozenset[str]:
    """Matrices that `ignore` names, by themselves or by their block."""
    tests = _Tests(words(read, "ignore"), read.where)
    return frozenset(
        matrix.name
        for matrix in matrices
        if tests.hit(matrix.name, ("Linear",)) or tests.hit(matrix.block, _BLOCK_CLASSES)
    )


class _Tests:
    """Targets, ready to be asked about one module after another."""

    def __init__(self, targets: Sequence[str], where: str) -> None:
        if len(targets) > MAX_TARGETS:
            raise InputError(f"{where}: {len(targets)} targets, at most {MAX_TARGETS} are read")
        self.exact = {target for target in targets if not target.startswith("re:")}
        self.patterns = [_pattern(target[3:], where) for target in targets if target.startswith("re:")]

    def hit(self, name: str, classes: Sequence[str]) -> bool:
        """Whether a module `name` of a class that is, or ends like, one of `classes` is meant."""
        if name in self.exact or f"{name}.weight" in self.exact:
            return True
        if any(pattern.match(name) or pattern.match(f"{name}.weight") for pattern in self.patterns):
            return True
        if "Linear" in classes:
            return not self.exact.isdisjoint(_ALL)
        return any(target.endswith(tuple(classes)) for target in self.exact)


def _pattern(text: str, where: str) -> "re.Pattern[str]":
    plain = re.sub(r"\\.", "", text)
    repeats = len(re.findall(r"[*+{]", plain))
    if len(text) > _MAX_PATTERN or repeats > _MAX_REPEATS or re.search(r"\)[*+{]", plain):
        raise InputError(
            f"{where}: the pattern {text[:60]!r} is longer or repeats more than is matched here "
            f"({_MAX_PATTERN} characters, {_MAX_REPEATS} repetitions, none of a group); write the modules' names"
        )
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(f"{where}: the pattern {text[:60]!r} cannot be read ({error})") from error
