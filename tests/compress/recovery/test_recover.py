"""`tailcut recover` by hand: what it says, and what it says of bad input."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailcut.checkpoint import Checkpoint
from tailcut.compress.packing import pack, unpack
from tailcut.compress.recover import recover
from tailcut.compress.recovery._text import Texts, read_texts
from tailcut.errors import InputError
from tailcut.manifest import verify
from tailcut.recovering import Effort, Recovering, parse_effort, try_recovery

TinyModel = Callable[..., Path]
Tailcut = Callable[..., tuple[int, str, str]]
Settings = Callable[..., Recovering]
QUICK = ("--seqlen", 24, "--batch", 4, "--samples", 4, "--device", "cpu", "--budget", "4steps", "--rate", "0.003")


def test_the_command_writes_a_directory_and_says_what_it_reached(
    cut: Callable[..., Path], tiny_model: TinyModel, text: Path, tmp_path: Path, tailcut: Tailcut
) -> None:
    words = (cut("llama"), "--teacher", tiny_model("llama"), "--text", text, *QUICK)
    code, shown, errors = tailcut("recover", *words, "-o", tmp_path / "a")
    assert code == 0, errors
    assert "KL to" in shown
    assert "least-squares:" in shown
    assert "distill: 4 steps, 384 tokens" in shown
    assert ": the same" in shown
    assert "tokens/s" in errors
    code, shown, _ = tailcut("recover", *words, "-o", tmp_path / "b", "--json")
    assert code == 0
    assert json.loads(shown)["schema"] == "tailcut/RecoveryResult"
    verify(tmp_path / "b")
    code, _, errors = tailcut("recover", *words, "-o", tmp_path / "b")
    assert code == 2
    assert "already exists" in errors


def test_a_packed_student_and_a_recovered_one_packed(
    cut: Callable[..., Path], tiny_model: TinyModel, text: Path, tmp_path: Path, tailcut: Tailcut
) -> None:
    pack(cut("llama"), tmp_path / "packed")
    words = ("--teacher", tiny_model("llama"), "--text", text, *QUICK, "--method", "least-squares")
    assert tailcut("recover", tmp_path / "packed", *words, "-o", tmp_path / "out")[0] == 0
    manifest = verify(tmp_path / "out")
    assert "packed" not in manifest.details
    pack(tmp_path / "out", tmp_path / "again")
    unpack(tmp_path / "again", tmp_path / "plain")
    assert try_recovery(tmp_path / "plain") == try_recovery(tmp_path / "out")


def test_a_directory_without_a_manifest_keeps_its_zeros(
    cut: Callable[..., Path], tiny_model: TinyModel, text: Path, tmp_path: Path, tailcut: Tailcut
) -> None:
    shutil.copytree(cut("llama"), tmp_path / "bare")
    (tmp_path / "bare" / "manifest.json").unlink()
    words = ("--teacher", tiny_model("llama"), "--text", text, *QUICK, "-o", tmp_path / "out")
    assert tailcut("recover", tmp_path / "bare", *words)[0] == 0
    assert verify(tmp_path / "out").sparsity == pytest.approx(0.5)


def write(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


BAD: list[tuple[str, dict[str, Any], str]] = [
    (
        "another vocabulary",
        {"teacher": ("llama", {"vocab_size": 300})},
        "the teacher has another vocabulary (300 tokens)",
    ),
    ("another family", {"teacher": ("qwen2", {})}, "the teacher is a qwen2"),
    ("another size", {"teacher": ("llama", {"intermediate_size": 48})}, "its zeros are those of another model"),
    (
        "a wider teacher",  # of which the student may have been cut, but not matrix by matrix
        {"teacher": ("llama", {"intermediate_size": 96})},
        "least-squares needs matrices of the teacher's shapes",
    ),
    ("a dense model", {"student": "dense"}, "there is nothing to keep"),
    ("no text", {"text": None}, "recovery needs text to learn from"),
    ("an empty text", {"text": ""}, "the text is empty"),
    ("too little text", {"text": "sheep " * 12}, "give more text"),
    ("no such text", {"text": Path("no.txt")}, "cannot read the text"),
    ("no time", {"budget": "0m"}, "the budget must be more than 0"),
    ("no steps", {"budget": "0steps"}, "the budget must be more than 0"),
    ("nonsense", {"budget": "soon"}, "neither a time nor a number of steps"),
    ("a bare number", {"budget": "20"}, "neither a time nor a number of steps"),
    ("half a step", {"budget": "1.5steps"}, "steps are whole"),
    ("an unknown method", {"method": "prayer"}, "unknown recovery"),
    ("no method", {"method": " , "}, "no recovery method"),
    ("a wild rate", {"rate": "2"}, "between 0 and 1"),
    ("no teacher", {"teacher": ("nowhere", {})}, "no such directory"),
]


@pytest.mark.parametrize(("what", "change", "sentence"), BAD, ids=[row[0] for row in BAD])
def test_bad_input_is_one_sentence_and_writes_nothing(
    what: str,
    change: dict[str, Any],
    sentence: str,
    cut: Callable[..., Path],
    tiny_model: TinyModel,
    text: Path,
    tmp_path: Path,
    tailcut: Tailcut,
) -> None:
    family, overrides = change.get("teacher", ("llama", {}))
    teacher = tmp_path / "no" if family == "nowhere" else tiny_model(family, **overrides)
    student = tiny_model("llama") if "student" in change else cut("llama")
    given = change.get("text", text)
    path = write(tmp_path / "t.txt", given) if isinstance(given, str) else given
    words = () if path is None else ("--text", path)
    settings = {name.lstrip("-"): value for name, value in zip(QUICK[::2], QUICK[1::2], strict=True)}  # type: ignore[union-attr]
    settings |= {name: change[name] for name in ("budget", "method", "rate") if name in change}
    flags = [word for name, value in settings.items() for word in (f"--{name}", value)]
    code, shown, errors = tailcut("recover", student, "--teacher", teacher, *words, *flags, "-o", tmp_path / "out")
    assert code == 2, what
    assert sentence in " ".join(errors.split())
    assert "Traceback" not in errors
    assert shown == ""
    assert not (tmp_path / "out").exists()


def test_budgets_as_they_are_written() -> None:
    assert parse_effort("20m") == Effort(minutes=20.0)
    assert parse_effort("1.5h") == Effort(minutes=90.0)
    assert parse_effort("30 s") == Effort(minutes=0.5)
    assert parse_effort("500steps") == parse_effort("500 step") == Effort(steps=500)
    assert Effort(steps=5).part(8) == Effort(steps=1)
    assert Effort(minutes=9.0).part(3).progress(0, 90.0) == 0.5


def texts(ids: int, bos: int | None = None) -> Texts:
    return Texts(np.arange(ids, dtype=np.int32), bos, 10, np.zeros((1, 10), np.int64), {}, 4)


@pytest.mark.parametrize("size", [10, 11, 19, 20, 29, 97])
@pytest.mark.parametrize("bos", [None, 7])
def test_every_epoch_goes_through_the_text_once_at_another_offset(size: int, bos: int | None) -> None:
    found = texts(size, bos)
    offsets = set()
    for epoch in range(20):
        rows = found.rows(range(epoch * found.windows, (epoch + 1) * found.windows))
        assert rows.shape == (found.windows, 10)
        body = rows if bos is None else rows[:, 1:]
        assert bos is None or (rows[:, 0] == bos).all()
        starts = np.sort(body[:, 0])
        assert (np.diff(starts) == found.body).all()
        assert (body == body[:, :1] + np.arange(found.body)).all()
        offsets.add(int(starts[0]))
    assert len(offsets) > 1 or size == found.body
    assert np.array_equal(found.batch(3, 4), found.rows(range(12, 16)))


def test_heldout_windows_are_not_learnt_from(
    tiny_model: TinyModel, settings: Settings, text: Path, tmp_path: Path
) -> None:
    model = tiny_model("llama")
    other = write(tmp_path / "other.txt", "goats " * 200)
    found = read_texts(model, settings("distill", texts=(str(text), str(other))), 128)
    assert set(found.files) == {text.name, "other.txt"}
    learnt = {tuple(found.ids[start : start + 24]) for start in range(len(found.ids) - 23)}
    held = {tuple(row) for row in found.heldout}
    assert len(found.heldout) >= 4
    repeats = {row for row in held if row in learnt}
    assert len(repeats) <= 2  # goats repeat themselves
    separate = read_texts(model, settings("distill", heldout=str(other)), 128)
    assert len(separate.ids) == len(read_texts(model, settings("distill", texts=(str(text),)), 128).ids) + 24 * 5
    with pytest.raises(InputError, match="smaller --batch"):
        read_texts(model, settings("distill", batch=500), 128)


def test_a_tied_head_that_is_stored_too_stays_the_embedding(
    tiny_model: TinyModel, cut: Callable[..., Path], settings: Settings, tmp_path: Path
) -> None:
    """Some checkpoints hold a tied matrix twice; whoever reads the other copy must see the learnt one."""
    tied, student = tmp_path / "teacher", tmp_path / "student"
    for source, copy in ((tiny_model("llama"), tied), (cut("llama"), student)):
        shutil.copytree(source, copy)
        (copy / "manifest.json").unlink(missing_ok=True)
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert "lm_head.weight" in Checkpoint(student).names
    recover(student, tied, tmp_path / "out", settings("distill", rate=1e-3))
    made, before = Checkpoint(tmp_path / "out"), Checkpoint(student)
    head, embedding = made.read("lm_head.weight"), made.read("model.embed_tokens.weight")
    assert np.array_equal(head, embedding)
    assert not np.array_equal(embedding, before.read("model.embed_tokens.weight"))
