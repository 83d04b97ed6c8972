"""Model directory -> a smaller dense one: whole key/value heads, MLP channels or blocks are gone, nothing is zero.

Scores of all units are taken from the dense model first and kept in `<out>.work/`. Then block by block: units are cut, the
matrices that read them are refitted to what the block computed with all of them, on inputs that the cut blocks before it
made, and the block's shard is written. A run that was killed goes on from its scores and finished shards.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import torch
import transformers

from tailcut import __version__
from tailcut.allocation import Allocation, Dense, LayerPlan
from tailcut.bitmask import Array
from tailcut.checkpoint import Checkpoint, float32, read_shard, write_index, write_shard
from tailcut.compress.blocks import Stream, max_positions, open_stream
from tailcut.compress.calibration import Calibration, CalibrationTokens, draw
from tailcut.compress.companions import copy_companions
from tailcut.compress.discovery import Linear, find_linears, linears_of_skeleton, read_weight
from tailcut.compress.journal import Found, Journal, open_journal
from tailcut.compress.resident import Forward, Weights, forward_dtype
from tailcut.compress.skeleton import build_skeleton
from tailcut.compress.spectra import resolve_device
from tailcut.compress.structured import Importance, load
from tailcut.compress.structured import Settings as Scoring
from tailcut.compress.structured._config import config_without, cut_config, renamed
from tailcut.compress.structured._cutting import BlockCutter, resident
from tailcut.compress.structured._groups import Kind, width_key
from tailcut.compress.structured._plan import (
    Ask,
    Kept,
    blocks_to_go,
    choose_blocks,
    choose_units,
    groups_of,
    kept_counts,
)
from tailcut.compress.structured._scores import Groups, Scores, score_units
from tailcut.errors import InputError
from tailcut.files import require_absent, write_file
from tailcut.manifest import Manifest, RealisedLayer, file_entries, try_manifest, write_manifest
from tailcut.progress import Reporter, silent
from tailcut.shapes import differs

Units = Literal["heads", "mlp", "blocks"]
RIDGE: Final = 0.01  # of the refitting, beside the mean diagonal of the Gram
_SCORES: Final = "scores.safetensors"
UNEVEN: Final = (
    "the blocks of this model have different shapes (per_layer_config in config.json): tailcut loads and exports it, and "
    "packages run anywhere; transformers (up to 5.23), vLLM and llama.cpp cannot load the directory itself"
)


@dataclass(frozen=True, slots=True)
class Structuring:
    """Everything that is asked for, but for the model. See `tailcut structured --help`."""

    ratio: float | None = None
    allocation: Allocation | None = None
    importance: str = "taylor"
    scoring: Scoring = field(default_factory=Scoring)
    units: tuple[Units, ...] = ("heads", "mlp")
    multiple: int = 64
    protect_first: int = 0
    protect_last: int = 0
    refit: bool = True
    calibration: Calibration = field(default_factory=Calibration)
    device: str = "auto"
    forward: Forward = "float32"

    def __post_init__(self) -> None:
        if (self.ratio is None) == (self.allocation is None):
            raise InputError(
                "say how much is to go: a ratio such as 0.2, or an allocation (which has its own), not both"
            )
        if self.ratio is not None and not 0.0 < self.ratio < 1.0:
            raise InputError(f"ratio must be between 0 and 1, got {self.ratio}; it is a fraction, not percent")
        wrong = next((unit for unit in self.units if unit not in get_args(Units)), None)
        if wrong is not None or not self.units or len(set(self.units)) != len(self.units):
            raise InputError(f"units are heads, mlp, both, or blocks; got {wrong or ','.join(self.units) or 'none'}")
        if "blocks" in self.units and (len(self.units) > 1 or self.allocation is not None):
            raise InputError(
                "whole blocks are cut by themselves and by a ratio; run the command again for heads and mlp"
            )
        if self.multiple < 1 or min(self.protect_first, self.protect_last) < 0:
            raise InputError("multiple must be at least 1, and protected blocks at least 0")

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What scores are taken of."""
        kinds: tuple[Kind, ...] = ("heads", "mlp")
        return kinds if "blocks" in self.units else tuple(kind for kind in kinds if kind in self.units)

    @property
    def ask(self) -> Ask:
        return Ask(self.ratio, self.allocation, self.kinds, self.multiple, self.protect_first, self.protect_last)


@dataclass(frozen=True, slots=True)
class _Work:
    """One run: everything that decides its bytes."""

    asked: Structuring
    weights: Weights
    linears: tuple[Linear, ...]
    groups: Groups
    left_alone: Mapping[Kind, str]
    importance: Importance
    tokens: CalibrationTokens | None
    source: str

    @property
    def blocks(self) -> int:
        return len(self.groups)

    @property
    def total(self) -> int:
        """Weights of the blocks' matrices."""
        return sum(linear.parameters for linear in self.linears)

    def shard(self, number: int, blocks: int) -> str:
        """File of block `number` of the output; number == blocks holds the rest."""
        return f"model-{number + 1:05d}-of-{blocks + 1:05d}.safetensors"

    def fingerprint(self) -> str:
        """Equal fingerprints, equal bytes."""
        asked = asdict(self.asked) | {"calibration": self.tokens.sha256 if self.tokens else None, "device": None}
        versions = [__version__, torch.__version__, transformers.__version__]
        parts = [self.source, asked, self.weights.device.type, versions]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def cut_structured(model_dir: Path, out: Path, asked: Structuring, *, report: Reporter = silent) -> Manifest:
    """Write the smaller model to `out`, a directory with a manifest; InputError for what cannot be cut so."""
    require_absent(out)
    work = _prepare(model_dir, asked)
    counts = _counts(work)  # a ratio that cannot be met is refused before anything is scored
    journal, found = open_journal(out, work.fingerprint())
    if found is not Found.NOTHING:
        report("structured", 0, work.blocks, found.value)
    scores = _scores(work, journal, report)
    if "blocks" in asked.units:
        facts = _write_fewer_blocks(work, journal, choose_blocks(work.groups, scores, asked.ask), report)
    else:
        facts = _write_narrower(work, journal, choose_units(work.groups, counts, scores), report)
    return _publish(work, journal, facts)


def _prepare(model_dir: Path, asked: Structuring) -> _Work:
    importance = load(asked.importance, asked.scoring)
    device, dtype = resolve_device(asked.device), forward_dtype(asked.forward)
    checkpoint = Checkpoint(model_dir)
    skeleton = build_skeleton(checkpoint)
    linears = linears_of_skeleton(checkpoint, skeleton)
    groups, reasons = groups_of(skeleton, asked.kinds, str(model_dir))
    reads = importance.NEEDS != "weights" or (asked.refit and "blocks" not in asked.units)
    tokens = draw(asked.calibration, model_dir, max_positions(skeleton.model)) if reads else None
    weights = Weights(checkpoint, skeleton, device, dtype)
    return _Work(asked, weights, linears, groups, reasons, importance, tokens, checkpoint.fingerprint())


def _counts(work: _Work) -> list[dict[Kind, int]]:
    """Units that stay in every block; none are counted where whole blocks go."""
    if "blocks" in work.asked.units:
        blocks_to_go(work.asked.ask, work.blocks)
        return []
    return kept_counts(work.weights.checkpoint, work.weights.skeleton, work.groups, work.linears, work.asked.ask)


def _scores(work: _Work, journal: Journal, report: Reporter) -> Scores:
    """Taken once; a run that goes on reads them back."""
    path = journal.work / _SCORES
    if not path.is_file():
        tokens = work.tokens.tokens if work.tokens else None
        made = score_units(work.weights, work.groups, work.importance, work.asked.scoring, tokens, work.linears, report)
        part = path.with_suffix(".part")
        write_shard(part, {name: values.numpy() for name, values in made.items()})
        part.replace(path)
    return {name: torch.from_numpy(float32(array).copy()) for name, array in read_shard(path).items()}


@dataclass(frozen=True, slots=True)
class _Facts:
    """What came of it: the config, the number of blocks, and words for the manifest."""

    config: Mapping[str, Any]
    blocks: int
    details: Mapping[str, str | int | float | bool | None]


def _write_narrower(work: _Work, journal: Journal, kept: Kept, report: Reporter) -> _Facts:
    """A shard for every block, in order; finished ones are only replayed, as far as a later one needs it."""
    blocks, spelt = work.blocks, width_key(work.weights.skeleton)
    settings = [
        {
            name: value
            for kind, units in chosen.items()
            for name, value in work.groups[i][kind].settings(len(units), spelt).items()
        }
        for i, chosen in enumerate(kept)
    ]
    config = cut_config(work.weights.checkpoint.config, settings)
    missing = [index for index in range(blocks) if not journal.has(work.shard(index, blocks))]
    stream = _stream(work) if missing else None
    for index in range(missing[-1] + 1 if missing else 0):
        report("structured", index, blocks, f"block {index}")
        if index in missing:
            _cut_block(work, journal, index, kept, stream, spelt)
        if stream is not None and work.asked.refit and index < missing[-1]:
            stored = read_shard(journal.model / work.shard(index, blocks))
            arrays = {name: stored[tensor] for name, tensor in work.weights.block_tensors(index).items()}
            with resident(work.weights, index, settings[index], arrays) as block:
                stream.advance(index, block)
    report("structured", blocks, blocks)
    return _Facts(config, blocks, _kept_words(work, kept))


def _cut_block(work: _Work, journal: Journal, index: int, kept: Kept, stream: Stream | None, spelt: str) -> None:
    cutter = BlockCutter(work.weights, index, work.groups[index], spelt)
    first = next((number for number, chosen in enumerate(kept) if chosen), index)
    for kind, units in kept[index].items():
        cutter.cut(kind, units, stream, RIDGE if work.asked.refit else 0.0, probe=index == first)
    journal.store(work.shard(index, work.blocks), cutter.tensors)
    work.weights.checkpoint.release()


def _stream(work: _Work) -> Stream | None:
    if work.tokens is None:
        return None
    work.weights.load_rest()
    return open_stream(work.weights, work.tokens.tokens)


def _write_fewer_blocks(work: _Work, journal: Journal, kept: Sequence[int], report: Reporter) -> _Facts:
    skeleton, read = work.weights.skeleton, work.weights.checkpoint.read
    for place, index in enumerate(kept):
        report("structured", place, len(kept), f"block {index}")
        shard = work.shard(place, len(kept))
        if not journal.has(shard):
            tensors = work.weights.block_tensors(index).values()
            journal.store(shard, {renamed(name, skeleton.blocks_name, index, place): read(name) for name in tensors})
    report("structured", len(kept), len(kept))
    gone = ",".join(str(index) for index in range(work.blocks) if index not in kept)
    return _Facts(config_without(work.weights.checkpoint.config, skeleton, kept), len(kept), {"removed_blocks": gone})


def _kept_words(work: _Work, kept: Kept) -> dict[str, str | int]:
    """Units that stay: a number where all blocks are alike, else one a block."""
    words: dict[str, str | int] = {}
    names: dict[Kind, str] = {"heads": "kv_heads_kept", "mlp": "mlp_channels_kept"}
    for kind in work.groups[0]:
        units = [groups[kind].units for groups in work.groups]
        counts = [len(one[kind]) if kind in one else most for one, most in zip(kept, units, strict=True)]
        words[names[kind]] = counts[0] if len(set(counts)) == 1 else ",".join(map(str, counts))
    return words


def _publish(work: _Work, journal: Journal, facts: _Facts) -> Manifest:
    """What is left of the checkpoint, index, config, tokenizer, licence and manifest; then the directory in its place."""
    directory, checkpoint = journal.model, work.weights.checkpoint
    shards = [work.shard(number, facts.blocks) for number in range(facts.blocks + 1)]
    if not journal.has(shards[-1]):
        inside = {name for index in range(work.blocks) for name in work.weights.block_tensors(index).values()}
        rest: dict[str, Array] = {name: checkpoint.read(name) for name in checkpoint.names if name not in inside}
        journal.store(shards[-1], rest)
    copy_companions(checkpoint.directory, directory)
    write_file(directory / "config.json", (json.dumps(facts.config, indent=2) + "\n").encode())
    write_index(directory, [directory / shard for shard in shards])
    manifest = _manifest(work, directory, facts)
    write_manifest(manifest, directory)
    journal.publish(directory)
    return manifest


def _manifest(work: _Work, directory: Path, facts: _Facts) -> Manifest:
    """Shapes and zeros as they lie in the written files, which our own loader must be able to build."""
    made = Checkpoint(directory)
    layers = {one.name: _realised(made, one) for one in find_linears(made)}
    earlier, asked = try_manifest(work.weights.checkpoint.directory), work.asked
    before = (*(earlier.notes if earlier else ()),)
    left = sum(layer.shape[0] * layer.shape[1] for layer in layers.values())
    details: dict[str, str | int | float | bool | None] = {
        "importance": asked.importance,
        "units": ",".join(asked.units),
        "ratio_asked": asked.allocation.sparsity(_sizes(work)) if asked.allocation else asked.ratio,
        "ratio_removed": 1 - left / work.total,
        "parameters_before": work.weights.checkpoint.total_parameters(),
        "equal_blocks": not differs(facts.config),
        "refit": asked.refit and "blocks" not in asked.units,
        **{name: value for name, value in asdict(asked.scoring).items() if value is not None},
        **facts.details,
        **{f"{kind}_not_cut": reason for kind, reason in work.left_alone.items()},
        "device": work.weights.device.type,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    notes = (*before, *([UNEVEN] if differs(facts.config) and UNEVEN not in before else []))
    return Manifest(
        kind="model",
        made_by=f"tailcut {__version__} structured",
        source={"model": work.source, "name": work.weights.checkpoint.directory.resolve().name},
        layers=layers,
        total_parameters=made.total_parameters(),
        files=file_entries(directory),
        provenance=dict(asked.allocation.provenance) if asked.allocation else {},
        details=details | _text_details(work),
        notes=notes,
    )


def _realised(made: Checkpoint, linear: Linear) -> RealisedLayer:
    zeros = int(np.count_nonzero(float32(read_weight(made, linear)) == 0.0))
    made.release()
    return RealisedLayer(LayerPlan(Dense()), linear.shape, zeros)


def _sizes(work: _Work) -> dict[str, int]:
    return {linear.name: linear.parameters for linear in work.linears}


def _text_details(work: _Work) -> dict[str, str | int | float | bool | None]:
    tokens = work.tokens
    if tokens is None:
        return {}
    return {
        "forward": work.asked.forward,
        "calibration": tokens.name,
        "calibration_text_sha256": tokens.text_sha256,
        "calibration_tokens_sha256": tokens.sha256,
        "calibration_samples": int(tokens.tokens.shape[0]),
        "calibration_seqlen": int(tokens.tokens.shape[1]),
        "seed": work.asked.calibration.seed,
    }
