"""Allocation + calibration text -> a pruned and quantised model directory, block by block, durable and resumable.

Block i is pruned with statistics of its dense self on inputs that the already pruned blocks 0..i-1 produced;
then it runs again, pruned and in its stored precision, for block i+1. Every finished block is a shard on disk, with the
integers of its quantised matrices beside it (tailcut.sidecar), written first: a shard that is there has its integers.
A run that was killed replays finished blocks from their shards, forward only, so that the result is byte for
byte that of an undisturbed run.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import transformers

from tailcut import __version__
from tailcut.allocation import Allocation
from tailcut.checkpoint import float32, read_shard, write_index
from tailcut.compress.blocks import Stream, open_stream
from tailcut.compress.calibration import Calibration
from tailcut.compress.companions import copy_companions
from tailcut.compress.cutting import cut_block
from tailcut.compress.job import Job, choose, prepare
from tailcut.compress.journal import Found, Journal, open_journal
from tailcut.compress.packing import pack_into
from tailcut.compress.resident import Forward
from tailcut.errors import MissingEnvironmentError
from tailcut.files import require_absent
from tailcut.manifest import Manifest, RealisedLayer, file_entries, read_manifest, try_manifest, write_manifest
from tailcut.progress import Reporter, silent
from tailcut.sidecar import Errors, errors_of


def compress(
    model_dir: Path,
    allocation: Allocation,
    out: Path,
    *,
    pruner: str = "wanda",
    quantiser: str = "gptq",
    clip: bool = True,
    calibration: Calibration,
    device: str = "auto",
    forward: Forward = "float32",
    pack: bool = False,
    report: Reporter = silent,
) -> Manifest:
    """Cut the model as the allocation says and write a Hugging Face directory with a manifest to `out`.

    `quantiser` rounds the matrices whose plans have bits; `clip` searches their scales below 8 bits by squared error.
    `forward` is the arithmetic of the passes over calibration text (bfloat16: faster on a GPU); statistics and pruning stay
    in float32. `pack` stores the cut matrices bitmask-packed: smaller, but only tailcut reads it back (`tailcut unpack`).
    """
    require_absent(out)
    method = choose(allocation.plans.values(), pruner, quantiser, clip)
    names = pruner, quantiser if method.quantiser else None
    job = prepare(model_dir, allocation, names, method, calibration, device, report, forward)
    _require_disk(job, out, pack)
    journal, found = open_journal(out, job.fingerprint())
    _tell(job, journal, found, report)
    _write_blocks(job, journal, report)
    _write_rest(job, journal)
    _write_companions(job, journal)
    finished = journal.model
    if pack:
        finished = journal.fresh("packed")
        pack_into(journal.model, finished, report=report)
    manifest = read_manifest(finished)
    journal.publish(finished)
    return manifest


def _tell(job: Job, journal: Journal, found: Found, report: Reporter) -> None:
    done = sum(journal.has(job.shard(index)) for index in range(job.blocks))
    if found is Found.SAME:
        report("compress", done, job.blocks, f"going on after {done} finished blocks")
    elif found is Found.OTHER:
        report("compress", 0, job.blocks, found.value)


def _require_disk(job: Job, out: Path, pack: bool) -> None:
    """Room for the whole output (and the packed copy) beside what an earlier run left."""
    checkpoint = job.checkpoint
    size = sum(
        checkpoint.dtype(n).itemsize * int(np.prod(checkpoint.shape(n), dtype=np.int64)) for n in checkpoint.names
    )
    integers = sum(linear.parameters for linear in job.linears if job.allocation.plans[linear.name].bits is not None)
    size += integers  # a byte a weight at most, beside them
    parent = next(path for path in out.absolute().parents if path.exists())
    earlier = sum(path.stat().st_size for path in out.with_name(f"{out.name}.work").glob("model/*"))
    needed, free = size * (2 if pack else 1) - earlier, shutil.disk_usage(parent).free
    if needed > free:
        raise MissingEnvironmentError(
            f"{out}: needs {needed / 1e6:.0f} MB, the disk has {free / 1e6:.0f} MB free; "
            "free some space or write elsewhere"
        )


def _write_blocks(job: Job, journal: Journal, report: Reporter) -> None:
    """Every block's shard, in order; finished ones are only replayed, and only as far as a later one needs it."""
    missing = [index for index in range(job.blocks) if not journal.has(job.shard(index))]
    if not missing:
        return
    stream = _stream(job)
    for index in range(missing[-1] + 1):
        report("compress", index, job.blocks, f"block {index}")
        if index in missing:
            cut = cut_block(job.weights, index, job.of(index), job.allocation, job.method, stream)
            if cut.sidecar:
                journal.store(job.sidecar(index), cut.sidecar)
            journal.store(job.shard(index), cut.tensors)
        if stream is not None and index < missing[-1]:
            with job.weights.block(index, read_shard(journal.model / job.shard(index))) as block:
                stream.advance(index, block)
    report("compress", job.blocks, job.blocks)


def _stream(job: Job) -> Stream | None:
    if job.tokens is None:
        return None
    job.weights.load_rest()
    return open_stream(job.weights, job.tokens.tokens)


def _write_rest(job: Job, journal: Journal) -> None:
    """Embeddings, norms, head and whatever else the checkpoint holds, unchanged, in the last shard."""
    shard = job.shard(job.blocks)
    if journal.has(shard):
        return
    in_blocks = {tensor for index in range(job.blocks) for tensor in job.weights.block_tensors(index).values()}
    journal.store(shard, {name: job.checkpoint.read(name) for name in job.checkpoint.names if name not in in_blocks})


def _write_companions(job: Job, journal: Journal) -> None:
    """Index, config, tokenizer, licence and manifest. Written anew each time: they are cheap."""
    directory = journal.model
    copy_companions(job.checkpoint.directory, directory)
    write_index(directory, [directory / job.shard(number) for number in range(job.blocks + 1)])
    write_manifest(_manifest(job, directory), directory)


def _manifest(job: Job, directory: Path) -> Manifest:
    earlier = try_manifest(job.checkpoint.directory)
    return Manifest(
        kind="model",
        made_by=f"tailcut {__version__} compress",
        source={"model": job.source, "name": job.checkpoint.directory.resolve().name},
        layers=_realised(job, directory),
        total_parameters=job.checkpoint.total_parameters(),
        files=file_entries(directory),
        provenance=dict(job.allocation.provenance),
        details=_details(job),
        notes=earlier.notes if earlier else (),
    )


def _realised(job: Job, directory: Path) -> dict[str, RealisedLayer]:
    """Zeros as counted in the written files, errors as noted beside the integers."""
    realised: dict[str, RealisedLayer] = {}
    for index in range(job.blocks):
        arrays = read_shard(directory / job.shard(index))
        sidecar = directory / job.sidecar(index)
        integers = read_shard(sidecar) if sidecar.is_file() else {}
        for linear in job.of(index):
            plan = job.allocation.plans[linear.name]
            zeros = int(np.count_nonzero(float32(arrays[linear.tensor]) == 0.0))
            errors = Errors(0.0, None) if plan.bits is None else errors_of(linear.name, integers)
            realised[linear.name] = RealisedLayer(plan, linear.shape, zeros, errors.error, errors.output_error)
    return realised


def _details(job: Job) -> Mapping[str, str | int | float | bool | None]:
    details: dict[str, str | int | float | bool | None] = {
        "pruner": job.pruner_name,
        "device": job.weights.device.type,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if job.quantiser_name is not None:
        details |= {"quantiser": job.quantiser_name, "clip": job.method.clip, "mean_bits": _mean_bits(job)}
    if job.tokens is None:
        return details
    return details | {
        "forward": str(job.weights.dtype).removeprefix("torch."),
        "calibration": job.tokens.name,
        "calibration_text_sha256": job.tokens.text_sha256,
        "calibration_tokens_sha256": job.tokens.sha256,
        "calibration_samples": int(job.tokens.tokens.shape[0]),
        "calibration_seqlen": int(job.tokens.tokens.shape[1]),
        "seed": job.calibration.seed,
    }


def _mean_bits(job: Job) -> float:
    """Bits of a quantised weight, zeros and scales not counted."""
    bits = {linear: job.allocation.plans[linear.name].bits for linear in job.linears}
    counted = {linear: count for linear, count in bits.items() if count is not None}
    weights = sum(linear.parameters for linear in counted)
    return sum(count * linear.parameters for linear, count in counted.items()) / weights
