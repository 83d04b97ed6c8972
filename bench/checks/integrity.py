"""Whether the files to be released are those that were measured: every hash of the manifest, and the manifest's own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Final

from pydantic import Field

from tailcut.bench.checks import Case, Subject
from tailcut.bench.checks._judging import flag, missing
from tailcut.bench.checks._package import another
from tailcut.bench.checks._seeded import seeded_on_disk
from tailcut.codec import FORBID_EXTRA
from tailcut.errors import InputError
from tailcut.manifest import MANIFEST_NAME, verify
from tailcut.results import Check

PER_ENGINE: Final = False


@dataclass(frozen=True, slots=True)
class Limits:
    __pydantic_config__: ClassVar = FORBID_EXTRA
    verify_files: Annotated[
        bool | None,
        Field(
            description="Every file of the package has the sha256 of its manifest, and the manifest is the measured one."
        ),
    ] = None


def check(subject: Subject, limits: Limits) -> tuple[Check, ...]:
    if not limits.verify_files:
        return ()
    if subject.sparse is None:
        return (missing("package files", why="the package is not at hand: give it with --sparse"),)
    result = subject.result
    found = [_verified("package files", subject.sparse, result.sparse.sha256, "sparse")]
    if subject.dense is not None:
        found.append(_verified("files of the dense package", subject.dense, result.dense.sha256, "dense"))
    return tuple(found)


def _verified(name: str, package: Path, measured: str, role: str) -> Check:
    try:
        wrong = another(package, measured, role) or _unlisted(package)
    except InputError as error:
        wrong = str(error)
    return flag(name, wrong is None, wrong or f"{package.name}: every file has the sha256 that its manifest lists")


def _unlisted(package: Path) -> str | None:
    """A file that the manifest says nothing of: a runtime or a tokenizer might read it all the same."""
    listed = {*verify(package).files, MANIFEST_NAME}
    extra = sorted(path.name for path in package.iterdir() if path.name not in listed)
    return f"{package.name} holds {extra[0]!r}, which its manifest does not list; remove it" if extra else None


def cases(folder: Path) -> tuple[Case, ...]:
    whole, changed, added, swapped = (
        seeded_on_disk(folder / name) for name in ("whole", "changed", "added", "swapped")
    )
    _flip_last_byte(_package(changed) / "config.json")
    (_package(added) / "tokenizer.json").write_text("{}")
    other = Subject(swapped.result, sparse=seeded_on_disk(folder / "other", promised=0.25).sparse)
    limits = {"verify_files": True}
    return (
        Case("a file with one changed byte fails", changed, limits, "fail"),
        Case("a file that the manifest does not list fails", added, limits, "fail"),
        Case("a package that is not the measured one fails", other, limits, "fail"),
        Case("the package that was measured passes", whole, limits, "pass"),
    )


def _package(subject: Subject) -> Path:
    if subject.sparse is None:
        raise InputError("the seeded subject has no package")
    return subject.sparse


def _flip_last_byte(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
