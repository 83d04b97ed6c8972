"""What importers of Hugging Face directories share: a checkpoint whose index and shards agree, a config, shards written."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tailcut.bitmask import Array
from tailcut.checkpoint import INDEX_NAME, Checkpoint, read_config
from tailcut.compress.companions import copy_companions
from tailcut.compress.models._writing import write_json, write_shards
from tailcut.errors import InputError
from tailcut.progress import Reporter

QUANTISED_BY: Final = ("quantization_config", "compression_config")


def try_config(source: Path) -> dict[str, Any] | None:
    """The config of a Hugging Face directory, None where there is none that can be read."""
    if not (source / "config.json").is_file():
        return None
    try:
        return read_config(source)
    except InputError:
        return None


def quantised_by(config: Mapping[str, Any]) -> str | None:
    """The method that a config says its weights are quantised with: "compressed-tensors", "gptq", …; None: not at all."""
    for key in QUANTISED_BY:
        settings = config.get(key)
        if isinstance(settings, Mapping) and settings:
            return str(settings.get("quant_method") or settings.get("quantization_method") or "compressed-tensors")
    sparsity = config.get("sparsity_config")
    return "compressed-tensors" if isinstance(sparsity, Mapping) and sparsity else None


def open_checkpoint(source: Path) -> Checkpoint:
    """A checkpoint each of whose tensors lies where its index says; InputError names the first that does not."""
    checkpoint = Checkpoint(source)
    index = source / INDEX_NAME
    if index.is_file():
        for name, file in json.loads(index.read_bytes())["weight_map"].items():
            info = checkpoint.stored.get(name)
            if info is None or info.file.name != file:
                where = "in no shard" if info is None else f"in {info.file.name}"
                raise InputError(f"{index}: tensor {name} should be in {file} and is {where}; copy the directory again")
    return checkpoint


def rewrite(
    checkpoint: Checkpoint,
    directory: Path,
    names: Mapping[Path, Sequence[str]],
    read: Callable[[str], Array],
    report: Reporter,
) -> None:
    """Write every name's array, file by file of the source, and copy what stands beside the weights."""

    def groups() -> Iterator[dict[str, Array]]:
        for file in checkpoint.files:
            yield {name: read(name) for name in names.get(file, ())}
            checkpoint.release()

    write_shards(directory, groups(), len(checkpoint.files), report)
    copy_companions(checkpoint.directory, directory)


def write_config(directory: Path, config: Mapping[str, Any], without: Sequence[str]) -> None:
    """`config.json` without what no longer holds."""
    write_json(directory / "config.json", {key: value for key, value in config.items() if key not in without})
