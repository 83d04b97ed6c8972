"""Text that a model writes: its own distribution, whatever the family, resumed after a kill."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tailcut.compress import sampling as module
from tailcut.compress.sampling import Sampling, sample_text
from tailcut.compress.tokens import load_tokenizer
from tailcut.errors import InputError

TinyModel = Callable[..., Path]
Tailcut = Callable[..., tuple[int, str, str]]
BOS, EOS = 256, 257


def rows_of(directory: Path, sampling: Sampling) -> np.ndarray:
    writer = module._Writer.open(directory, sampling, "cpu")
    rows: np.ndarray = writer.sample(0, lambda *_: None)
    return rows


def test_a_cached_step_sees_what_the_whole_model_sees(family: str, tiny_model: TinyModel) -> None:
    """At a temperature near 0 each token is the likeliest one after all before it, by transformers' own forward."""
    directory = tiny_model(family)
    rows = rows_of(directory, Sampling(60, length=20, batch=3, temperature=1e-6, device="cpu"))
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.from_numpy(rows)).logits
    assert (rows[:, 0] == BOS).all()
    for row, scores in zip(rows, logits, strict=True):
        for place in range(1, 20):
            want = BOS if row[place - 1] == EOS else int(scores[place - 1].argmax())
            assert row[place] == want


def test_tokens_come_as_often_as_the_model_says(tiny_model: TinyModel) -> None:
    directory = tiny_model("llama")
    rows = rows_of(directory, Sampling(1, length=2, batch=20_000, device="cpu"))
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.inference_mode():
        wanted = model(torch.tensor([[BOS]])).logits[0, -1].softmax(-1).numpy()
    counted = np.bincount(rows[:, 1], minlength=len(wanted)) / len(rows)
    # five standard errors of a share: 258 shares, one in a million beyond it each
    assert (np.abs(counted - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / len(rows)) + 1e-9).all()


def test_documents_end_where_the_model_ends_them(tiny_model: TinyModel) -> None:
    writer = module._Writer.open(tiny_model("llama"), Sampling(10, length=16, batch=1, device="cpu"), "cpu")
    one, two, blank = (writer.tokenizer(text)["input_ids"] for text in ("one", "two", "  "))
    row = np.array([[BOS, *one, EOS, BOS, *two, EOS, BOS, EOS, *blank]])
    assert writer.documents(row) == ["one", "two"]


def test_the_file_is_read_as_text_and_a_killed_run_goes_on(tiny_model: TinyModel, tmp_path: Path) -> None:
    asked = Sampling(300, length=24, batch=4, seed=3, device="cpu")
    done = sample_text(tiny_model("llama"), tmp_path / "whole.jsonl", asked)
    assert done.tokens == done.fresh == 4 * 4 * 23  # four batches of four sequences, less their first token
    lines = (tmp_path / "whole.jsonl").read_text().splitlines()
    assert len(lines) == done.documents
    assert all(set(json.loads(line)) == {"text"} for line in lines)
    out, calls = tmp_path / "again.jsonl", 0

    def stop(stage: str, count: int, total: int, note: str = "") -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_text(tiny_model("llama"), out, asked, report=stop)
    assert not out.exists()
    rest = sample_text(tiny_model("llama"), out, asked)
    assert 0 < rest.fresh < done.fresh
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not out.with_name("again.jsonl.work").exists()
    sample_text(tiny_model("llama"), tmp_path / "other.jsonl", Sampling(300, 24, 4, seed=4, device="cpu"))
    assert (tmp_path / "other.jsonl").read_bytes() != out.read_bytes()


def test_prompts_are_continued(tiny_model: TinyModel, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("abcdefgh" * 4)
    rows = rows_of(tiny_model("llama"), Sampling(9, 16, 3, prompts=str(prompts), prompt_tokens=8, device="cpu"))
    assert load_tokenizer(tiny_model("llama")).decode(rows[0, 1:9]) == "abcdefgh"
    assert rows.shape == (3, 16)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tokens": 0}, "tokens must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"temperature": 0.0}, "temperature must be more than 0"),
        ({"length": 1}, "leave nothing to write"),
        ({"prompts": "no.txt"}, "cannot read the text"),
    ],
)
def test_bad_input_is_a_sentence(changes: dict[str, Any], sentence: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=sentence):
        sample_text(tiny_model("llama"), tmp_path / "t.jsonl", Sampling(**({"tokens": 10, "device": "cpu"} | changes)))
    assert not (tmp_path / "t.jsonl").exists()


def test_the_command_says_how_much_it_wrote(tiny_model: TinyModel, tmp_path: Path, tailcut: Tailcut) -> None:
    out, words = tmp_path / "t.jsonl", ("--tokens", 100, "--length", 16, "--batch", 8, "--device", "cpu")
    code, shown, _ = tailcut("sample-text", tiny_model("llama"), "-o", out, *words, "--json")
    assert code == 0
    assert json.loads(shown)["tokens"] == 120
    code, _, errors = tailcut("sample-text", tiny_model("llama"), "-o", out, *words)
    assert code == 2
    assert "already exists" in errors
