"""A cut model and its dense teacher -> the same cut model with its quality back, durable and resumable.

Methods (compress/recovery/) work one after another: each reads a model directory and leaves one in `<out>.work/`, the last
becomes the output. Finished methods, blocks and checkpoints lie there, so that a killed run goes on; another run with
other settings starts afresh.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final, cast

import numpy as np
import torch
import transformers

from tailcut import __version__, codec, plugins
from tailcut.checkpoint import float32, read_shard, write_index
from tailcut.compress.blocks import max_positions
from tailcut.compress.companions import copy_companions
from tailcut.compress.divergence import directory_kl
from tailcut.compress.journal import Found, Journal, open_journal
from tailcut.compress.recovery import Recovery, Task
from tailcut.compress.recovery._store import count_new_zeros
from tailcut.compress.recovery._student import Student, open_student, open_weights, require_pair
from tailcut.compress.recovery._text import Texts, read_texts
from tailcut.compress.resident import Weights
from tailcut.compress.spectra import resolve_device
from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.files import require_absent, sha256_file
from tailcut.manifest import MANIFEST_NAME, Manifest, RealisedLayer, file_entries, write_manifest
from tailcut.progress import Reporter, silent
from tailcut.recovering import METHODS, RESULT_NAME, Effort, Recovering
from tailcut.results import RecoveryResult, RecoveryStage
from tailcut.sidecar import Errors, errors_of

_BYTES: Final = 20  # a parameter in a checkpoint of distill and in the output: weight, two moments, best weight, result
_TOKENS: Final = 4096  # of held-out windows at a time


def recover(
    model_dir: Path, teacher_dir: Path, out: Path, settings: Recovering, *, report: Reporter = silent
) -> RecoveryResult:
    """Recover the cut model of `model_dir` with the dense model of `teacher_dir`; write a model directory to `out`."""
    require_absent(out)
    device = resolve_device(settings.device)
    student, teacher = open_student(model_dir, device), open_weights(teacher_dir, device, torch.float32)
    methods = [(name, cast(Recovery, plugins.load(METHODS, name))) for name in settings.methods]
    paired = require_pair(student, teacher)
    for name, method in methods:
        if method.PAIRS_BLOCKS and not paired:
            raise InputError(
                f"{name} needs matrices of the teacher's shapes, {model_dir} has others; use --method distill"
            )
    if settings.features and any(not method.PAIRS_BLOCKS for _, method in methods):
        _require_blocks(student, teacher)
    texts = read_texts(model_dir, settings, max_positions(student.weights.skeleton.model))
    _require_disk(student, out)
    prints = student.weights.checkpoint.fingerprint(), teacher.checkpoint.fingerprint()
    unfinished = out.with_name(f"{out.name}.work").exists()
    journal, found = open_journal(out, _fingerprint(student, prints, texts, settings))
    if unfinished:
        report("recover", 0, len(methods), (found if found is Found.SAME else Found.OTHER).value)
    efforts = settings.budget.part(max(1, sum(method.TRAINS for _, method in methods)))
    stages, source = [], model_dir
    for number, (name, method) in enumerate(methods):
        target = journal.work / f"{number + 1}-{name}"
        stages.append(_stage(source, target, (name, method), teacher_dir, texts, settings, efforts, report))
        source = target
    result = _result(model_dir, source, (teacher_dir, prints[1]), texts, stages, settings, report)
    _finish(source, student, prints, result)
    journal.publish(source)
    return result


def _require_blocks(student: Student, teacher: Weights) -> None:
    theirs = len(teacher.skeleton.blocks)
    if theirs != student.blocks:
        raise InputError(
            f"the feature loss pairs blocks, the teacher has {theirs} and the student {student.blocks}; leave --features out"
        )


def _stage(
    source: Path,
    target: Path,
    named: tuple[str, Recovery],
    teacher_dir: Path,
    texts: Texts,
    settings: Recovering,
    effort: Effort,
    report: Reporter,
) -> RecoveryStage:
    """One method from directory to directory, unless it was done before."""
    note = target.with_name(f"{target.name}.json")
    if target.is_dir():
        return codec.load(RecoveryStage, note)
    device = resolve_device(settings.device)
    student, teacher = open_student(source, device), open_weights(teacher_dir, device, torch.float32)
    journal, _ = open_journal(target, "stage")  # what it is, the outer journal says
    task = Task(student, teacher, texts, settings, effort)
    try:
        stage = named[1].recover(task, journal, report)
    except torch.OutOfMemoryError as error:
        raise MissingEnvironmentError(
            f"{named[0]}: the GPU's memory is too small for {settings.at_once or settings.batch} windows of {texts.seqlen} at "
            "once; give --at-once a smaller number (the result is the same but for rounding), or use lora"
        ) from error
    _write_companions(student, journal)
    codec.save(stage, note)
    journal.publish(journal.model)
    return stage


def _write_companions(student: Student, journal: Journal) -> None:
    """Index, config, tokenizer, licence and a manifest with what was realised."""
    directory = journal.model
    copy_companions(student.directory, directory)
    write_index(directory, [directory / student.shard(number) for number in range(student.blocks + 1)])
    earlier = student.manifest
    manifest = Manifest(
        kind="model",
        made_by=f"tailcut {__version__} recover",
        source=dict(earlier.source) if earlier else {"name": student.directory.resolve().name},
        layers=_realised(student, directory),
        total_parameters=student.weights.checkpoint.total_parameters(),
        files=file_entries(directory),
        provenance=dict(earlier.provenance) if earlier else {},
        details={key: value for key, value in earlier.details.items() if key != "packed"} if earlier else {},
        notes=earlier.notes if earlier else (),
    )
    write_manifest(manifest, directory)


def _realised(student: Student, directory: Path) -> dict[str, RealisedLayer]:
    """Zeros as counted in the written files, errors as noted beside the integers."""
    realised: dict[str, RealisedLayer] = {}
    for index in range(student.blocks):
        arrays, sidecar = read_shard(directory / student.shard(index)), directory / student.sidecar(index)
        integers = read_shard(sidecar) if sidecar.is_file() else {}
        for linear in student.of(index):
            plan = student.plans[linear.name]
            zeros = int(np.count_nonzero(float32(arrays[linear.tensor]) == 0.0))
            errors = Errors(0.0, None) if plan.bits is None else errors_of(linear.name, integers)
            realised[linear.name] = RealisedLayer(plan, linear.shape, zeros, errors.error, errors.output_error)
    return realised


def _result(
    before: Path,
    after: Path,
    teacher: tuple[Path, str],
    texts: Texts,
    stages: list[RecoveryStage],
    settings: Recovering,
    report: Reporter,
) -> RecoveryResult:
    """What was reached, by the files that were written."""
    old, new = open_student(before, "cpu"), open_student(after, "cpu")
    first, last = (_heldout_kl(path, teacher[0], texts, settings.device, report) for path in (before, after))
    parameters = sum(linear.parameters for linear in new.linears)
    notes = []
    if old.manifest is not None and old.manifest.source.get("model", teacher[1]) != teacher[1]:
        notes.append("the teacher is not the model that was cut: its fingerprint is another")
    if last >= first:
        notes.append("no better on the held-out text than before; give more text, a longer budget or another --rate")
    return RecoveryResult(
        stages=tuple(stages),
        teacher=teacher[0].resolve().name,
        teacher_sha256=teacher[1],
        texts=dict(texts.files),
        train_tokens=len(texts.ids),
        heldout_tokens=texts.heldout.size,
        heldout_kl_before=first,
        heldout_kl_after=last,
        sparsity=new.zeros() / parameters,
        mask_sha256_before=old.mask_sha256(),
        mask_sha256_after=new.mask_sha256(),
        new_zeros=count_new_zeros(old, new),
        made_by=f"tailcut {__version__} recover",
        notes=tuple(notes),
    )


def _heldout_kl(model_dir: Path, teacher_dir: Path, texts: Texts, device: str, report: Reporter) -> float:
    """Mean KL(teacher || model) of the held-out windows, nats, in float32."""
    batch = max(1, _TOKENS // texts.seqlen)
    return float(directory_kl(model_dir, teacher_dir, texts.heldout, device=device, batch=batch, report=report).mean())


def _finish(directory: Path, student: Student, prints: tuple[str, str], result: RecoveryResult) -> None:
    """The whole recovery's facts into the manifest, and the curve beside it."""
    manifest = codec.load(Manifest, directory / MANIFEST_NAME)
    source = dict(manifest.source) | {"student": prints[0], "teacher": prints[1]}
    if "model" not in source:
        source["model"] = prints[0]
    details = dict(manifest.details) | _details(student, result)
    write_manifest(replace(manifest, source=source, details=details), directory)
    codec.save(result, directory / RESULT_NAME)


def _details(student: Student, result: RecoveryResult) -> dict[str, str | int | float | bool | None]:
    return {
        "recovery": ",".join(stage.method for stage in result.stages),
        "recovery_teacher": result.teacher,
        "recovery_texts": ", ".join(f"{name} {sha}" for name, sha in sorted(result.texts.items())),
        "recovery_steps": sum(stage.steps for stage in result.stages),
        "recovery_tokens": sum(stage.tokens for stage in result.stages),
        "recovery_heldout_kl_before": result.heldout_kl_before,
        "recovery_heldout_kl_after": result.heldout_kl_after,
        "mask_sha256_before": result.mask_sha256_before,
        "mask_sha256": result.mask_sha256_after,
        "recovery_new_zeros": result.new_zeros,
        "recovery_device": student.weights.device.type,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _fingerprint(student: Student, prints: tuple[str, str], texts: Texts, settings: Recovering) -> str:
    """Equal fingerprints, equal bytes (with a budget in steps, on a CPU). Files count by what they hold."""
    manifest = student.directory / MANIFEST_NAME
    parts = {
        "models": [*prints, sha256_file(manifest) if manifest.is_file() else None],
        "text": texts.sha256(),
        "settings": asdict(replace(settings, texts=("",), heldout=None)),
        "device": student.weights.device.type,
        "versions": [__version__, torch.__version__, transformers.__version__],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _require_disk(student: Student, out: Path) -> None:
    needed = _BYTES * student.weights.checkpoint.total_parameters()
    parent = next(path for path in out.absolute().parents if path.exists())
    earlier = sum(path.stat().st_size for path in out.with_name(f"{out.name}.work").rglob("*") if path.is_file())
    free = shutil.disk_usage(parent).free
    if needed - earlier > free:
        raise MissingEnvironmentError(
            f"{out}: checkpoints and output need {needed / 1e6:.0f} MB, the disk has {free / 1e6:.0f} MB free; "
            "free some space or write elsewhere"
        )
