"""What every maker shares: sharded weights written one group at a time, and the JSON files beside them."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from tailcut.bitmask import Array
from tailcut.checkpoint import write_index, write_shard
from tailcut.progress import Reporter


def write_shards(directory: Path, groups: Iterator[Mapping[str, Array]], count: int, report: Reporter) -> int:
    """Write `count` groups of tensors as shards plus the index; returns the number of parameters.

    One group is in memory at a time.
    """
    shards: list[Path] = []
    parameters = 0
    for number, group in enumerate(groups, 1):
        shards.append(directory / f"model-{number:05d}-of-{count:05d}.safetensors")
        write_shard(shards[-1], group)
        parameters += sum(int(np.prod(array.shape, dtype=np.int64)) for array in group.values())
        report("weights", number, count, shards[-1].name)
    write_index(directory, shards)
    return parameters


def write_json(path: Path, value: object, indent: int | None = 1) -> None:
    """`indent` None: on one line, for long lists."""
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
