"""What a package on disk really holds: zeros and N:M groups of every matrix, counted in its masks and values."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tailcut.allocation import NM
from tailcut.bitmask import Packed, unpack
from tailcut.errors import InputError
from tailcut.kernels.package import Package, open_package
from tailcut.kernels.stored import Stored, module_names, stored_matrices
from tailcut.manifest import MANIFEST_NAME, Manifest, RealisedLayer

Kept = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Counted:
    """One module's matrix as it lies in the package. `kept` bool [out, in]: True where the weight is not zero."""

    name: str
    kept: Kept
    promised: RealisedLayer

    @property
    def zeros(self) -> int:
        return int(self.kept.size - np.count_nonzero(self.kept))

    def fullest(self, pattern: NM) -> int:
        """The most weights kept in any group of `pattern.block` inputs of a row; a shorter last group counts too."""
        spare = -self.kept.shape[1] % pattern.block
        padded = np.pad(self.kept, ((0, 0), (0, spare))) if spare else self.kept
        return int(padded.reshape(len(padded), -1, pattern.block).sum(axis=2).max(initial=0))


def counted(directory: Path) -> Iterator[Counted]:
    """Every matrix that the manifest lists, one at a time; InputError if the package is damaged or one is missing."""
    package = open_package(directory)
    missing = set(package.manifest.layers)
    for name, kept in _matrices(package):
        start = 0
        for module in module_names(name):
            promised = package.manifest.layers.get(module)
            if promised is None:
                break  # the output head, or a matrix the manifest does not count
            rows = kept[start : start + promised.shape[0]]
            if rows.shape != promised.shape:
                raise InputError(
                    f"{directory}: {module} is {list(rows.shape)}, its manifest says {list(promised.shape)}; export again"
                )
            start += promised.shape[0]
            missing.discard(module)
            yield Counted(module, rows, promised)
    if missing:
        raise InputError(
            f"{directory}: the graph holds no matrix {min(missing)}, which the manifest lists; export again"
        )


def manifest_hash(directory: Path) -> str:
    """sha256 of the manifest, which names the package in a result; InputError if there is none."""
    try:
        return hashlib.sha256((directory / MANIFEST_NAME).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{directory}: cannot read {MANIFEST_NAME} ({error.strerror}); name a package") from error


def another(directory: Path, measured: str, role: str) -> str | None:
    """None if this is the package that was measured, else the sentence that says it is not."""
    found = manifest_hash(directory)
    if found == measured:
        return None
    return (
        f"{directory.name} is not the {role} package that was measured: the sha256 of its manifest is {found[:12]}…, "
        f"the result says {measured[:12] or 'none'}…; bench this package"
    )


def made_from(manifest: Manifest) -> str:
    """Fingerprint of the Hugging Face directory that a package was exported from."""
    return manifest.source.get("model", "")


def _matrices(package: Package) -> Iterator[tuple[str, Kept]]:
    for stored in stored_matrices(package):
        yield stored.name, _kept(stored)
    multiplied = {node.input[1] for node in package.model.graph.node if node.op_type == "MatMul" and not node.domain}
    for tensor in package.model.graph.initializer:
        if tensor.name in multiplied and tensor.name.endswith(".weight"):
            yield tensor.name.removesuffix(".weight"), np.asarray(package.array(tensor) != 0).T  # lies turned round


def _kept(stored: Stored) -> Kept:
    if stored.packed is None:
        return np.asarray(stored.q != 0)
    ones = Packed(np.asarray(stored.packed.values != 0), stored.packed.mask, stored.shape)
    return np.asarray(unpack(ones), np.bool_)
