"""The manifest that every stage writes beside its files: what it is, from what, and what was realised.

It holds no time stamps, so the same inputs give the same bytes, and no absolute paths, so a directory can
be moved. Hashes make a package checkable where it is deployed (`verify`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from tailcut import codec
from tailcut.allocation import LayerPlan
from tailcut.codec import FORBID_EXTRA
from tailcut.errors import InputError
from tailcut.files import flat_name, sha256_file

MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of the directory: its size in bytes and its sha256."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class RealisedLayer:
    """What one matrix became: the plan, and the zeros that were counted in the written file."""

    plan: LayerPlan
    shape: tuple[int, int]  # [out features, in features]
    zeros: int
    error: float = 0.0  # ||stored - W|| / ||W||: what rounding the kept weights W to fewer bits changed
    output_error: float | None = (
        None  # ||(stored - W) X||^2 / ||W X||^2, W dense, X the calibration inputs; quantised only
    )

    @property
    def sparsity(self) -> float:
        return self.zeros / max(1, self.shape[0] * self.shape[1])


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a directory is. `details` holds stage-specific facts (parity numbers, pruner, calibration hash)."""

    __pydantic_config__: ClassVar = FORBID_EXTRA
    kind: Literal["model", "package"]
    made_by: str  # "tailcut 0.1.0 compress"
    source: Mapping[str, str]  # e.g. {"model": sha256 of the source weights, "name": "smollm2-135m"}
    layers: Mapping[str, RealisedLayer]
    total_parameters: int
    files: Mapping[str, FileEntry]
    provenance: Mapping[str, str] = field(default_factory=dict)  # allocation's provenance
    details: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # sentences to show wherever quality is shown

    @property
    def prunable_parameters(self) -> int:
        return sum(layer.shape[0] * layer.shape[1] for layer in self.layers.values())

    @property
    def sparsity(self) -> float:
        """Zeros over the prunable linears."""
        return sum(layer.zeros for layer in self.layers.values()) / max(1, self.prunable_parameters)

    @property
    def whole_model_sparsity(self) -> float:
        """The same zeros over every parameter of the model."""
        return sum(layer.zeros for layer in self.layers.values()) / max(1, self.total_parameters)


def file_entries(directory: Path, skip: tuple[str, ...] = (MANIFEST_NAME,)) -> dict[str, FileEntry]:
    """Hash every file of a (flat) directory, sorted by name."""
    paths = sorted(path for path in directory.iterdir() if path.is_file() and path.name not in skip)
    return {path.name: FileEntry(path.stat().st_size, sha256_file(path)) for path in paths}


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a directory; InputError if there is none or it is malformed."""
    if not (directory / MANIFEST_NAME).is_file():
        raise InputError(f"{directory}: no {MANIFEST_NAME}; this directory was not made by tailcut")
    return codec.load(Manifest, directory / MANIFEST_NAME)


def try_manifest(directory: Path) -> Manifest | None:
    """The manifest if the directory has one (a plain HF directory has none)."""
    return read_manifest(directory) if (directory / MANIFEST_NAME).is_file() else None


def write_manifest(manifest: Manifest, directory: Path) -> None:
    codec.save(manifest, directory / MANIFEST_NAME)


def verify(directory: Path, *, hashes: bool = True) -> Manifest:
    """Check that every listed file is there, has its size and (unless `hashes` is false) its sha256."""
    manifest = read_manifest(directory)
    for name, entry in manifest.files.items():
        path = directory / flat_name(name)
        if not path.is_file():
            raise InputError(f"{path}: listed in the manifest but missing; export or copy the directory again")
        size = path.stat().st_size
        if size != entry.size_bytes:
            raise InputError(f"{path}: {size} bytes, the manifest says {entry.size_bytes}; the file is damaged")
        if hashes and sha256_file(path) != entry.sha256:
            raise InputError(f"{path}: sha256 differs from the manifest; the file was changed after it was made")
    return manifest
