"""The small files that belong to a model beside its weights: config, tokenizer, licence."""

import shutil
from pathlib import Path
from typing import Final

from tailcut.files import is_leftover
from tailcut.manifest import MANIFEST_NAME
from tailcut.recovering import RESULT_NAME

_WEIGHTS: Final = frozenset(
    (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".data", ".ot", ".npz")
)
_LARGEST: Final = 200_000_000  # bytes; a tokenizer of 262k words has 33 MB


def copy_companions(source: Path, out: Path) -> None:
    """Copy config, generation config, tokenizer, chat template and licence files.

    Left behind: weights and their indexes, the manifest (the copy gets its own), the curve of a recovery, model cards
    (they describe the dense model), Python files (never needed, never run) and hidden files.
    """
    for path in sorted(source.iterdir()):
        if path.is_file() and _belongs(path):
            shutil.copyfile(path, out / path.name)


def _belongs(path: Path) -> bool:
    name = path.name.lower()
    left_behind = (
        name in (MANIFEST_NAME, RESULT_NAME) or name.endswith(".index.json") or name.startswith((".", "readme"))
    )
    return (
        not (left_behind or is_leftover(path.name))
        and path.suffix not in (".py", *_WEIGHTS)
        and path.stat().st_size <= _LARGEST
    )
