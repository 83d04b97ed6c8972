"""Zero-shot accuracy of Hugging Face directories by lm-eval, offline, from local items.

lm-eval does what it does on its command line: its own prompts, choices, tokenisation, log-likelihoods and metrics, read from
the definitions that it installs. Only where items come from is replaced: rows that `zero_shot_tasks` read and checked, in
memory, so that nothing asks the network and no cache is written.

Answers of each model and task are kept beside the output (`<out>.work/`) as they come, so that an interrupted run goes on.
"""

import gc
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal, get_args

from tailcut import __version__
from tailcut.accuracy import ModelAnswers, TaskFile, ZeroShot, rows_of
from tailcut.checkpoint import Checkpoint, read_config
from tailcut.compress.packing import is_packed, unpack
from tailcut.compress.spectra import resolve_device
from tailcut.compress.tokens import load_tokenizer
from tailcut.compress.zero_shot_tasks import TASKS, Items
from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.files import full_disk_is_clear, write_file
from tailcut.manifest import try_manifest
from tailcut.progress import Reporter, silent
from tailcut.shapes import require_equal

Precision = Literal["float32", "bfloat16", "float16"]
Right = dict[str, str]  # metric -> one character an item
_INSTALL: Final = "pip install 'lm-eval>=0.4.13,<0.5' accelerate"
_AT_ONCE: Final = 512  # requests between two reports of progress; lm-eval sorts each such part by length


@dataclass(frozen=True, slots=True)
class Options:
    """How the models are run. `limit`: the first so many items of each task; None: all."""

    device: str = "auto"
    dtype: Precision = "float32"
    batch: int = 8
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in get_args(Precision):
            raise InputError(f"dtype must be {', '.join(get_args(Precision))}, got {self.dtype!r}")
        if self.batch < 1 or (self.limit is not None and self.limit < 1):
            raise InputError(f"batch and limit must be at least 1, got {self.batch} and {self.limit}")


def zero_shot(
    models: Sequence[Path], tasks: Sequence[Items], out: Path, options: Options, report: Reporter = silent
) -> ZeroShot:
    """Dense directory first, then its sparse copies -> their answers to the same items, with paired changes.

    Raises MissingEnvironmentError where lm-eval is not installed, InputError for a directory that cannot be loaded.
    """
    _require_lm_eval()
    names = _names(models)
    checkpoints = [Checkpoint(model) for model in models]  # wrong directories are refused before anything long
    asked = [Items(items.task, items.file, items.sha256, items.rows[: options.limit]) for items in tasks]
    work = Path(f"{out}.work")
    with _quiet(), full_disk_is_clear(out):
        found = tuple(
            _answers(name, checkpoint, asked, work, options, _named(report, name))
            for name, checkpoint in zip(names, checkpoints, strict=True)
        )
        files = {whole.task: _file(whole, part) for whole, part in zip(tasks, asked, strict=True)}
    settings: dict[str, str | int | None] = {"limit": options.limit, "dtype": options.dtype, "batch": options.batch}
    settings["device"] = resolve_device(options.device)
    return ZeroShot(files, found, rows_of(found), settings, _versions())


def forget_work(out: Path) -> None:
    """Remove what an interrupted run of this output would go on from; call it once the output is written."""
    shutil.rmtree(Path(f"{out}.work"), ignore_errors=True)


def _answers(
    name: str, checkpoint: Checkpoint, tasks: Sequence[Items], work: Path, options: Options, report: Reporter
) -> ModelAnswers:
    """One model on every task; the model is loaded only if an answer is missing."""
    fingerprint, manifest = checkpoint.fingerprint(), try_manifest(checkpoint.directory)
    places = {items.task: work / f"{_key(fingerprint, items, options)}.json" for items in tasks}
    right = {task: json.loads(place.read_bytes()) for task, place in places.items() if place.is_file()}
    missing = [items for items in tasks if items.task not in right]
    if missing:
        with _plain(checkpoint.directory, work, report) as directory:
            model = _load(directory, options)
            for items in missing:
                right[items.task] = _ask(model, items, report)
                write_file(places[items.task], json.dumps(right[items.task]).encode())
            del model
            gc.collect()  # it holds itself through `_telling`; the next model needs its memory
    sparsity = None if manifest is None else manifest.sparsity
    return ModelAnswers(name, fingerprint, sparsity, {items.task: right[items.task] for items in tasks})


def _key(fingerprint: str, items: Items, options: Options) -> str:
    """What decides the answers to one task: model, items, arithmetic, versions."""
    facts = [fingerprint, items.task, items.sha256, len(items.rows), options.dtype, options.batch]
    facts += [resolve_device(options.device), _versions()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _ask(model: Any, items: Items, report: Reporter) -> Right:  # noqa: ANN401  (lm-eval's untyped model)
    """One task through lm-eval's own evaluation -> which items were right, by each of the task's metrics."""
    import lm_eval
    from lm_eval.api.task import ConfigurableTask

    task = ConfigurableTask(config=_definition(items))
    task.set_config(key="num_fewshot", value=0)
    model.loglikelihood = _telling(type(model).loglikelihood.__get__(model), items.task, report)
    result = lm_eval.evaluate(model, {"tasks": {items.task: task}, "groups": {}, "group_map": {}}, bootstrap_iters=0)
    samples = sorted(result["samples"][items.task], key=lambda sample: int(sample["doc_id"]))
    if len(samples) != len(items.rows):
        raise InputError(f"lm-eval answered {len(samples)} of {len(items.rows)} items of task {items.task}")
    metrics = [name for name in ("acc", "acc_norm") if name in samples[0]["metrics"]]
    return {name: "".join("1" if sample[name] else "0" for sample in samples) for name in metrics}


def _definition(items: Items) -> dict[str, Any]:
    """lm-eval's own definition of a task with its items in place of the hub's, and no other split."""
    import lm_eval
    from datasets import Dataset
    from lm_eval.tasks._yaml_loader import load_yaml

    path = Path(lm_eval.__file__).parent / "tasks" / TASKS[items.task].definition
    config = load_yaml(path, resolve_func=True)
    replaced = {"training_split": None, "validation_split": None, "test_split": "items", "dataset_kwargs": None}
    rows = [dict(row) for row in items.rows]
    config |= replaced | {"task": items.task, "custom_dataset": lambda **_: {"items": Dataset.from_list(rows)}}
    return {key: value for key, value in config.items() if key != "tag"}


def _telling(ask: Any, task: str, report: Reporter) -> Any:  # noqa: ANN401  (a bound method of lm-eval)
    """The model's own log-likelihoods, a part of the requests at a time."""

    def loglikelihood(requests: list[Any]) -> list[tuple[float, bool]]:
        answers: list[tuple[float, bool]] = []
        for start in range(0, len(requests), _AT_ONCE):
            report("zero-shot", start, len(requests), task)
            answers += ask(requests[start : start + _AT_ONCE], disable_tqdm=True)
        report("zero-shot", len(requests), len(requests), task)
        return answers

    return loglikelihood


def _load(directory: Path, options: Options) -> Any:  # noqa: ANN401  (lm-eval's untyped model)
    load_tokenizer(directory)  # its sentence where there is none
    require_equal(read_config(directory), "lm-eval's transformers")
    from lm_eval.models.huggingface import HFLM

    try:
        return HFLM(
            pretrained=str(directory),
            device=resolve_device(options.device),
            dtype=options.dtype,
            batch_size=options.batch,
            trust_remote_code=False,
        )
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{directory}: transformers cannot load this model ({reason})") from error


@contextmanager
def _plain(directory: Path, work: Path, report: Reporter) -> Iterator[Path]:
    """The directory itself, or for as long as it is needed an unpacked copy of a packed one."""
    if not is_packed(directory):
        yield directory
        return
    copy = work / "unpacked"
    shutil.rmtree(copy, ignore_errors=True)
    unpack(directory, copy, report=report)
    try:
        yield copy
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def _names(models: Sequence[Path]) -> list[str]:
    """Directory names, told apart by number where two are the same."""
    plain = [model.resolve().name for model in models]
    return [name if plain.count(name) == 1 else f"{name} ({place})" for place, name in enumerate(plain, 1)]


def _named(report: Reporter, model: str) -> Reporter:
    def tell(stage: str, done: int, total: int, note: str = "") -> None:
        report(f"{model} {note}" if stage == "zero-shot" else stage, done, total, "requests")

    return tell


def _file(items: Items, asked: Items) -> TaskFile:
    version = str((_definition(items).get("metadata") or {}).get("version", "unknown"))
    return TaskFile(items.file, items.sha256, len(asked.rows), len(items.rows), version)


def _versions() -> dict[str, str]:
    return {"tailcut": __version__} | {name: metadata.version(name) for name in ("lm_eval", "torch", "transformers")}


def _require_lm_eval() -> None:
    missing = _lm_eval_missing()
    if missing is not None:
        raise MissingEnvironmentError(
            f"zero-shot tasks need lm-eval, which cannot be used here ({missing}); run: {_INSTALL}"
        )


def _lm_eval_missing() -> ImportError | None:
    """Why lm-eval cannot be used, None if it can."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the libraries are first imported
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    try:
        import accelerate  # noqa: F401  (lm-eval's Hugging Face models need it)
        import lm_eval.tasks._yaml_loader  # noqa: F401
    except ImportError as error:
        return error
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval warns of every default that its own definitions leave open; transformers draws a bar for each load."""
    from transformers.utils import logging as bars

    logger: Any = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    bars.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logger.setLevel(before)
        bars.enable_progress_bar()  # type: ignore[no-untyped-call]
