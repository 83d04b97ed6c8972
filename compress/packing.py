"""Bitmask-packed model directories: smaller on disk, read back exactly.

`pack` stores each cut matrix as its non-zero values and one bit a weight; `unpack` is the exact inverse. Only
tailcut reads a packed directory: its index and its shards have names that transformers does not look for, so
that `from_pretrained` says that there are no weights instead of inventing the matrices it does not find.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Final

from tailcut.bitmask import Array
from tailcut.checkpoint import (
    INDEX_NAME,
    PACKED_INDEX_NAME,
    SINGLE_NAME,
    Checkpoint,
    packed_tensors,
    write_index,
    write_shard,
)
from tailcut.compress.companions import copy_companions
from tailcut.compress.discovery import find_linears
from tailcut.errors import InputError
from tailcut.files import new_directory
from tailcut.manifest import Manifest, file_entries, try_manifest, write_manifest
from tailcut.progress import Reporter, silent
from tailcut.recovering import RESULT_NAME
from tailcut.sidecar import PREFIX as SIDECAR_PREFIX

PREFIX: Final = "packed-"  # of the shards
PACK_BELOW: Final = 0.9  # a matrix is packed if that saves a tenth of its bytes


def pack(model_dir: Path, out: Path, *, report: Reporter = silent) -> None:
    """Plain directory -> packed directory. Every matrix that gets smaller by it is packed, the rest is copied."""
    if is_packed(model_dir):
        raise InputError(f"{model_dir}: already packed")
    with new_directory(out) as directory:
        pack_into(model_dir, directory, report=report)


def unpack(model_dir: Path, out: Path, *, report: Reporter = silent) -> None:
    """Packed directory -> plain directory that any `from_pretrained` loads, bit for bit what was packed."""
    if not is_packed(model_dir):
        raise InputError(f"{model_dir}: not a packed model directory; nothing to unpack")
    with new_directory(out) as directory:
        _rewrite(model_dir, directory, packing=False, report=report)


def pack_into(model_dir: Path, directory: Path, *, report: Reporter = silent) -> None:
    """`pack` into an existing empty directory."""
    _rewrite(model_dir, directory, packing=True, report=report)


def is_packed(model_dir: Path) -> bool:
    """Whether a directory holds bitmask-packed weights."""
    return (model_dir / PACKED_INDEX_NAME).is_file()


def packed_form(name: str, array: Array) -> dict[str, Array]:
    """The tensors that store a matrix: packed if that is worth it, else itself under its own name."""
    if array.ndim != 2:
        return {name: array}
    parts = packed_tensors(name, array)
    small = sum(part.nbytes for part in parts.values()) < PACK_BELOW * array.nbytes
    return parts if small else {name: array}


def _rewrite(source: Path, directory: Path, *, packing: bool, report: Reporter) -> None:
    checkpoint = Checkpoint(source)
    cut = frozenset(linear.tensor for linear in find_linears(checkpoint))
    files = checkpoint.files
    written: list[Path] = []
    for number, shard in enumerate(files):
        report("pack" if packing else "unpack", number, len(files), shard.name)
        tensors: dict[str, Array] = {}
        for name in checkpoint.names_in(shard):
            array = checkpoint.read(name)
            tensors |= packed_form(name, array) if packing and name in cut else {name: array}
        written.append(directory / (PREFIX + shard.name if packing else shard.name.removeprefix(PREFIX)))
        write_shard(written[-1], tensors)
        checkpoint.release()
    report("pack" if packing else "unpack", len(files), len(files))
    copy_companions(source, directory)
    for sidecar in sorted((*source.glob(f"{SIDECAR_PREFIX}*"), *source.glob(RESULT_NAME))):
        shutil.copyfile(sidecar, directory / sidecar.name)
    if packing:
        write_index(directory, written, PACKED_INDEX_NAME)
    elif [path.name for path in written] != [SINGLE_NAME]:
        write_index(directory, written, INDEX_NAME)
    _rewrite_manifest(source, directory, packed=packing)


def _rewrite_manifest(source: Path, directory: Path, *, packed: bool) -> None:
    manifest: Manifest | None = try_manifest(source)
    if manifest is not None:
        details = {key: value for key, value in manifest.details.items() if key != "packed"}
        details |= {"packed": True} if packed else {}
        write_manifest(replace(manifest, files=file_entries(directory), details=details), directory)
