"""Local files of multiple-choice tasks: which names they have, which fields a line holds, and their check.

A file has one JSON object a line. Prompts, choices and metrics are not here: they are those of the installed lm-eval
(`compress/zero_shot.py`), so that a number means what its leaderboard name says. What is here is the shape of a row that
those prompts read; a row is checked before a model is loaded, and comes out with exactly the fields of the hub's data set.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tailcut.errors import InputError

Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Task:
    """One task: its file, where lm-eval keeps its definition (below lm_eval/tasks), and the check of a row."""

    file: str
    definition: str
    clean: Callable[[Mapping[str, Any]], Item]  # row -> the fields that the prompt reads; ValueError says what is wrong


@dataclass(frozen=True, slots=True)
class Items:
    """The rows of one task in the file's order, and the file's identity."""

    task: str
    file: str
    sha256: str
    rows: tuple[Item, ...]


def _texts(row: Mapping[str, Any], *fields: str) -> Item:
    for field in fields:
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise ValueError(f"field {field!r} must be a text that is not empty")
    return {field: row[field] for field in fields}


def _number(row: Mapping[str, Any], field: str) -> int:
    value = row.get(field)
    if value not in (0, 1):
        raise ValueError(f"field {field!r} must be 0 or 1, got {value!r}")
    return int(value)


def _boolq(row: Mapping[str, Any]) -> Item:
    return _texts(row, "passage", "question") | {"label": _number(row, "label")}


def _rte(row: Mapping[str, Any]) -> Item:
    return _texts(row, "sentence1", "sentence2") | {"label": _number(row, "label")}


def _winogrande(row: Mapping[str, Any]) -> Item:
    item = _texts(row, "sentence", "option1", "option2")
    if "_" not in item["sentence"]:
        raise ValueError("field 'sentence' must hold a _ where an option goes")
    if row.get("answer") not in ("1", "2"):
        raise ValueError(f'field \'answer\' must be "1" or "2", got {row.get("answer")!r}')
    return item | {"answer": row["answer"]}


def _chosen(question: str) -> Callable[[Mapping[str, Any]], Item]:
    """Rows of ARC and OpenBookQA: a question, {"text": [...], "label": [...]} and the label of the right one."""

    def clean(row: Mapping[str, Any]) -> Item:
        item, key, choices = _texts(row, question), row.get("answerKey"), row.get("choices")
        texts, labels = _list(choices, "text"), _list(choices, "label")
        if len(texts) != len(labels) or len(texts) < 2:
            raise ValueError('field \'choices\' must hold lists "text" and "label" of one length, of at least 2 texts')
        if not isinstance(key, str) or key.strip() not in labels:
            raise ValueError(f"field 'answerKey' must be one of {', '.join(labels)}, got {key!r}")
        return item | {"choices": {"text": texts, "label": labels}, "answerKey": key.strip()}

    return clean


def _list(choices: object, field: str) -> list[str]:
    """The list of texts under a field; empty where there is none."""
    values = choices.get(field) if isinstance(choices, dict) else None
    return values if isinstance(values, list) and all(isinstance(value, str) for value in values) else []


TASKS: Final[Mapping[str, Task]] = {
    "boolq": Task("boolq_val.jsonl", "super_glue/boolq/default.yaml", _boolq),
    "rte": Task("rte_val.jsonl", "glue/rte/default.yaml", _rte),
    "winogrande": Task("winogrande_val.jsonl", "winogrande/default.yaml", _winogrande),
    "arc_easy": Task("arc_easy_test.jsonl", "arc/arc_easy.yaml", _chosen("question")),
    "openbookqa": Task("openbookqa_test.jsonl", "openbookqa/openbookqa.yaml", _chosen("question_stem")),
}


def read_tasks(directory: Path, names: Sequence[str]) -> tuple[Items, ...]:
    """The named tasks' items from the files of `directory`; InputError names the file, the line and the field."""
    unknown = [name for name in names if name not in TASKS]
    if unknown or not names:
        raise InputError(f"unknown task {', '.join(unknown) or '(none named)'}; choose from {', '.join(TASKS)}")
    return tuple(_read(name, directory / TASKS[name].file) for name in dict.fromkeys(names))


def _read(name: str, path: Path) -> Items:
    try:
        raw = path.read_bytes()
        lines = raw.decode().split("\n")  # JSON may hold the other line ends that splitlines knows
    except OSError as error:
        raise InputError(f"{path}: cannot read the items of task {name} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from error
    rows = tuple(_row(name, line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip())
    if not rows:
        raise InputError(f"{path}: no items; one JSON object a line is expected")
    return Items(name, path.name, hashlib.sha256(raw).hexdigest(), rows)


def _row(name: str, line: str, place: str) -> Item:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not valid JSON ({error})") from error
    if not isinstance(data, dict):
        raise InputError(f"{place}: each line must be a JSON object, got {type(data).__name__}")
    try:
        return TASKS[name].clean(data)
    except ValueError as error:
        raise InputError(f"{place}: {error} (task {name})") from error
