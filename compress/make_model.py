"""Make one of the models of `compress.models` as a directory: all of it, or nothing."""

from pathlib import Path
from typing import get_args

from tailcut import plugins
from tailcut.compress.models import DType, ModelSettings
from tailcut.errors import InputError
from tailcut.files import new_directory
from tailcut.manifest import Manifest, write_manifest
from tailcut.progress import Reporter, silent

FOLDER = "tailcut.compress.models"


def make_model(
    name: str, out: Path, settings: ModelSettings, *, overwrite: bool = False, report: Reporter = silent
) -> Manifest:
    """Write model `name` to the directory `out` atomically; returns its manifest."""
    maker = plugins.load(FOLDER, name)
    with new_directory(out, overwrite=overwrite) as directory:
        manifest: Manifest = maker.make(directory, settings, report)
        write_manifest(manifest, directory)
    return manifest


def settings_of(*, like: str = "", dtype: str | None = None, seed: int = 0) -> ModelSettings:
    """Command-line words -> ModelSettings; InputError names the dtypes there are."""
    known: dict[str, DType] = {name: name for name in get_args(DType)}
    if dtype is not None and dtype not in known:
        raise InputError(f"dtype {dtype!r} is not known; choose one of {', '.join(known)}")
    return ModelSettings(like, known[dtype] if dtype is not None else None, seed)


def summaries() -> dict[str, str]:
    """Every model's name and its one-line description."""
    return {name: str(plugins.load(FOLDER, name).SUMMARY) for name in plugins.names(FOLDER)}
