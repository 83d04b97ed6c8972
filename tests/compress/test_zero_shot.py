"""Zero-shot tasks: the files' check without lm-eval; with it, its answers against log-likelihoods by transformers."""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from transformers import AutoModelForCausalLM

from tailcut import codec
from tailcut.accuracy import ZeroShot
from tailcut.compress import zero_shot as module
from tailcut.compress.packing import pack
from tailcut.compress.zero_shot import Options, zero_shot
from tailcut.compress.zero_shot_tasks import TASKS, read_tasks
from tailcut.errors import InputError, MissingEnvironmentError

TinyModel = Callable[..., Path]
Tailcut = Callable[..., tuple[int, str, str]]
CHOICES: Final = {"text": ["a red fox", "ice", "two old men"], "label": ["A", "B", "C"]}
ROWS: Final[dict[str, list[dict[str, Any]]]] = {
    "boolq": [{"passage": f"Fact {i}.", "question": f"is {i} odd", "label": i % 2, "idx": i} for i in range(5)],
    "rte": [{"sentence1": f"It has {i}.", "sentence2": "It has.", "label": i % 2} for i in range(4)],
    "winogrande": [
        {"sentence": f"Ann met Bo and _ had {i} hats.", "option1": "Ann", "option2": "Bo", "answer": str(1 + i % 2)}
        for i in range(5)
    ],
    "arc_easy": [{"question": f"What is {i}?", "choices": CHOICES, "answerKey": "ABC"[i % 3]} for i in range(6)],
    "openbookqa": [
        {"question_stem": f"Of {i} it is said", "choices": CHOICES, "answerKey": "CAB"[i % 3]} for i in range(6)
    ],
}
needs_lm_eval = pytest.mark.skipif(
    module._lm_eval_missing() is not None, reason="lm-eval is not installed (the extra `eval`)"
)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    directory = tmp_path / "tasks"
    directory.mkdir()
    for name, rows in ROWS.items():
        (directory / TASKS[name].file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


@pytest.fixture
def cut(tiny_model: TinyModel, tmp_path: Path) -> Path:
    """The tiny model with its smaller weights at zero, so that it answers some items otherwise."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    for name, parameter in model.named_parameters():
        if "_proj" in name:
            parameter.data[parameter.data.abs() < parameter.data.abs().median()] = 0
    out = tmp_path / "cut"
    model.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (out / name).write_bytes((tiny_model("llama") / name).read_bytes())
    return out


def log_likelihood(model: Any, context: str, continuation: str) -> float:
    """Sum of log-probabilities of the continuation's bytes (the tiny tokenizer gives one token a byte)."""
    tokens = torch.tensor([list((context + continuation).encode())])
    spelt = [model.tokens[byte] for byte in tokens[0].tolist()]
    ids = torch.tensor([spelt])
    with torch.inference_mode():
        scores = model(ids).logits[0, :-1].double().log_softmax(-1)
    start = len(context.encode()) - 1
    return float(scores[range(start, len(spelt) - 1), ids[0, start + 1 :]].sum())


def opened(directory: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    vocabulary = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    model.tokens = {
        ord(symbol): index for symbol, index in vocabulary.items() if len(symbol) == 1 and ord(symbol) < 127
    }
    model.tokens |= {ord(" "): vocabulary["Ġ"], ord("\n"): vocabulary["Ċ"]}
    return model


def expected(directory: Path) -> dict[str, dict[str, str]]:
    """Prompts as lm-eval's shipped definitions have them, written out here; the best choice is the likeliest one."""
    model, right = opened(directory), {name: {"acc": ""} for name in ROWS}
    right["arc_easy"]["acc_norm"] = right["openbookqa"]["acc_norm"] = ""

    def judge(task: str, scores: list[float], texts: list[str], target: int) -> None:
        right[task]["acc"] += str(int(scores.index(max(scores)) == target))
        if "acc_norm" in right[task]:
            per_letter = [score / len(text) for score, text in zip(scores, texts, strict=True)]
            right[task]["acc_norm"] += str(int(per_letter.index(max(per_letter)) == target))

    for row in ROWS["boolq"]:
        context = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
        judge("boolq", [log_likelihood(model, context, f" {word}") for word in ("no", "yes")], [], row["label"])
    for row in ROWS["rte"]:
        context = f"{row['sentence1']}\nQuestion: {row['sentence2']} True or False?\nAnswer:"
        judge("rte", [log_likelihood(model, context, f" {word}") for word in ("True", "False")], [], row["label"])
    for row in ROWS["winogrande"]:
        before, after = row["sentence"].split("_")
        scores = [log_likelihood(model, before + row[f"option{i}"], after) for i in (1, 2)]
        judge("winogrande", scores, [], int(row["answer"]) - 1)
    for task, head in (("arc_easy", "Question: {question}\nAnswer:"), ("openbookqa", "{question_stem}")):
        for row in ROWS[task]:
            scores = [log_likelihood(model, head.format(**row), f" {text}") for text in CHOICES["text"]]
            judge(task, scores, CHOICES["text"], "ABC".index(row["answerKey"]))
    return right


@needs_lm_eval
def test_answers_are_those_of_the_likeliest_choice(
    tiny_model: TinyModel, cut: Path, tasks: Path, tmp_path: Path
) -> None:
    models = (tiny_model("llama"), cut, tiny_model("qwen2"))
    result = zero_shot(models, read_tasks(tasks, list(ROWS)), tmp_path / "out.json", Options("cpu"))
    for directory, answers in zip(models, result.models, strict=True):
        assert {task: dict(metrics) for task, metrics in answers.right.items()} == expected(directory)
    assert result.models[0].right != result.models[2].right
    assert {task: file.items for task, file in result.tasks.items()} == {name: len(rows) for name, rows in ROWS.items()}
    assert result.versions["lm_eval"]


@needs_lm_eval
def test_the_definitions_are_lm_evals_own(tasks: Path) -> None:
    """All that differs from the shipped file is where items come from."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    folders = {(Path(lm_eval.__file__).parent / "tasks" / task.definition).parent for task in TASKS.values()}
    shipped = TaskManager(include_defaults=False, include_path=sorted(folders)).task_index
    for items in read_tasks(tasks, list(ROWS)):
        ours, theirs = module._definition(items), dict(shipped[items.task].cfg)
        changed = {"tag", "training_split", "validation_split", "test_split", "custom_dataset", "dataset_kwargs"}
        functions = {key for key, value in ours.items() if callable(value)}  # the index does not load them
        same = (set(ours) | set(theirs)) - changed - functions
        assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
        assert {key: str(theirs[key]).rsplit(".", 1)[-1] for key in functions & set(theirs)} == {
            key: ours[key].__name__ for key in functions & set(theirs)
        }


@needs_lm_eval
def test_the_command_writes_prints_and_goes_on(
    tailcut: Tailcut, tiny_model: TinyModel, cut: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, words = tmp_path / "z.json", ["--tasks", tasks, "--names", "boolq,arc_easy", "--limit", 3, "--device", "cpu"]
    ask, asked = module._ask, list[str]()

    def stopping(*given: Any) -> Any:
        if len(asked) == 3:
            asked.append("stopped")
            raise KeyboardInterrupt
        asked.append(given[1].task)
        return ask(*given)

    monkeypatch.setattr(module, "_ask", stopping)
    code, _, _ = tailcut("zero-shot", tiny_model("llama"), cut, *words, "-o", out)
    assert (code, out.exists()) == (130, False)
    code, shown, _ = tailcut("zero-shot", tiny_model("llama"), cut, *words, "-o", out)
    assert code == 0
    assert asked == ["boolq", "arc_easy", "boolq", "stopped", "arc_easy"]  # nothing is asked twice
    result = codec.load(ZeroShot, out)
    whole = {task: {name: bits[:3] for name, bits in found.items()} for task, found in expected(cut).items()}
    assert result.models[1].right == {task: whole[task] for task in ("boolq", "arc_easy")}
    assert "the first 3 items of each task" in shown
    assert not Path(f"{out}.work").exists()
    assert tailcut("zero-shot", cut, *words, "-o", out)[0] == 2  # never silently overwritten


@needs_lm_eval
def test_a_packed_directory_answers_as_its_plain_self(cut: Path, tasks: Path, tmp_path: Path) -> None:
    pack(cut, tmp_path / "packed")
    items = read_tasks(tasks, ["rte", "winogrande"])
    plain = zero_shot([cut], items, tmp_path / "a.json", Options("cpu"))
    packed = zero_shot([tmp_path / "packed"], items, tmp_path / "b.json", Options("cpu"))
    assert plain.models[0].right == packed.models[0].right
    assert not (tmp_path / "b.json.work" / "unpacked").exists()


@needs_lm_eval
def test_a_directory_without_a_tokenizer_is_one_sentence(cut: Path, tasks: Path, tmp_path: Path) -> None:
    (cut / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="no tokenizer"):
        zero_shot([cut], read_tasks(tasks, ["rte"]), tmp_path / "out.json", Options("cpu"))
    assert logging.getLogger("lm_eval").level != logging.ERROR


def test_without_lm_eval_it_says_what_to_install(
    tailcut: Tailcut, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, _, said = tailcut("zero-shot", tmp_path, "--tasks", tasks, "-o", tmp_path / "z.json")
    assert code == MissingEnvironmentError.exit_code
    assert "pip install" in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("task", "changes", "sentence"),
    [
        ("boolq", {"passage": ""}, "'passage' must be a text"),
        ("boolq", {"label": "true"}, "'label' must be 0 or 1, got 'true'"),
        ("rte", {"sentence2": None}, "'sentence2' must be a text"),
        ("winogrande", {"sentence": "no gap"}, "must hold a _"),
        ("winogrande", {"answer": 1}, "'answer' must be"),
        ("arc_easy", {"answerKey": "D"}, "'answerKey' must be one of A, B, C"),
        ("arc_easy", {"choices": ["x", "y"]}, "'choices' must hold lists"),
        ("openbookqa", {"choices": {"text": ["x", "y"], "label": ["A"]}}, "'choices' must hold lists"),
    ],
)
def test_a_wrong_row_is_one_sentence(
    tailcut: Tailcut, tasks: Path, tmp_path: Path, task: str, changes: dict[str, Any], sentence: str
) -> None:
    path = tasks / TASKS[task].file
    path.write_text(json.dumps(ROWS[task][0]) + "\n\n" + json.dumps(ROWS[task][1] | changes) + "\n")
    code, _, said = tailcut("zero-shot", tmp_path, "--tasks", tasks, "--names", task, "-o", tmp_path / "z.json")
    assert code == 2
    assert sentence in said.splitlines()[-1]
    assert f"{path.name}:3" in said


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"", "no items"), (b"{", "not valid JSON"), (b"[1]", "must be a JSON object"), (b"\xff", "not UTF-8")],
)
def test_a_wrong_file_is_one_sentence(tasks: Path, content: bytes, sentence: str) -> None:
    (tasks / TASKS["rte"].file).write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        read_tasks(tasks, ["rte"])


def test_unknown_tasks_and_missing_files_are_named(tailcut: Tailcut, tasks: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown task mmlu; choose from boolq"):
        read_tasks(tasks, ["rte", "mmlu"])
    (tasks / "rte_val.jsonl").unlink()
    with pytest.raises(InputError, match=r"rte_val.jsonl: cannot read the items of task rte"):
        read_tasks(tasks, ["rte"])
    assert tailcut("zero-shot", tmp_path, "-o", tmp_path / "z.json")[0] == 2  # no --tasks


def test_rows_come_out_with_the_fields_of_the_hubs_data_set(tasks: Path) -> None:
    boolq, arc = read_tasks(tasks, ["boolq", "arc_easy", "boolq"])
    assert set(boolq.rows[0]) == {"passage", "question", "label"}
    assert arc.rows[0]["choices"] == CHOICES
    assert [len(boolq.rows), len(arc.rows)] == [5, 6]


@pytest.mark.parametrize("wrong", [{"dtype": "int8"}, {"batch": 0}, {"limit": 0}])
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Options(**wrong)
