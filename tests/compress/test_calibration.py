"""Calibration windows: drawn from the text, by the seed, within the model's limits."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tailcut.compress.calibration import Calibration, draw, draw_apart
from tailcut.compress.tokens import encode
from tailcut.errors import InputError, MissingEnvironmentError

TinyModel = Callable[..., Path]


def test_windows_are_pieces_of_the_text(tiny_model: TinyModel, text: Path) -> None:
    drawn = draw(Calibration(str(text), samples=20, seqlen=30), tiny_model("llama"), 128)
    ids, bos = encode(tiny_model("llama"), text.read_text() + "\n")
    stream = "".join(map(chr, ids))
    assert bos is None
    assert drawn.tokens.shape == (20, 30)
    assert drawn.tokens.dtype == np.int64
    assert all("".join(map(chr, window)) in stream for window in drawn.tokens.tolist())


def test_the_seed_decides_and_the_hash_tells(tiny_model: TinyModel, text: Path) -> None:
    directory = tiny_model("llama")
    a, b, c = (draw(Calibration(str(text), samples=4, seqlen=8, seed=seed), directory, 128) for seed in (1, 1, 2))
    assert np.array_equal(a.tokens, b.tokens)
    assert a.sha256 == b.sha256 != c.sha256
    assert a.text_sha256 == c.text_sha256


@pytest.mark.parametrize("seed", range(5))
def test_windows_drawn_apart_share_no_token(seed: int, tiny_model: TinyModel, tmp_path: Path) -> None:
    """In a text of rising numbers every window says where it stands."""
    places = "".join(f"{number:04d}" for number in range(300))
    (tmp_path / "t.txt").write_text(places)
    calibration = Calibration(str(tmp_path / "t.txt"), samples=4, seqlen=40, seed=seed)
    drawn, apart = draw_apart(calibration, tiny_model("llama"), 128, 100)
    assert np.array_equal(drawn.tokens, draw(calibration, tiny_model("llama"), 128).tokens)
    ids, _ = encode(tiny_model("llama"), places + "\n")
    starts = {tuple(ids[start : start + 40]): start for start in range(len(ids) - 39)}
    of_drawn = [starts[tuple(window)] for window in drawn.tokens.tolist()]
    of_apart = [starts[tuple(window)] for window in apart.tokens.tolist()]
    covered = {place for start in of_drawn for place in range(start, start + 40)}
    taken = [place for start in of_apart for place in range(start, start + 40)]
    assert len(set(taken)) == len(taken)
    assert not covered & set(taken)
    few, _ = draw_apart(calibration, tiny_model("llama"), 128, 2)[::-1]
    assert np.array_equal(few.tokens, apart.tokens[:2])  # the same order, however many are asked for


@pytest.mark.parametrize(("asked", "limit", "got"), [(64, 32, 32), (10, 128, 10), (5000, 10**6, 2048)])
def test_length_is_capped(asked: int, limit: int, got: int, tiny_model: TinyModel) -> None:
    assert draw(Calibration("demo", samples=1, seqlen=asked), tiny_model("llama"), limit).tokens.shape == (1, got)


def test_own_begin_of_text_token_comes_first(tiny_model: TinyModel, text: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(tiny_model("llama"), tmp_path / "bos"))
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}},
    }
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    drawn = draw(Calibration(str(text), samples=3, seqlen=8), directory, 128)
    assert drawn.tokens[:, 0].tolist() == [256] * 3
    assert (drawn.tokens[:, 1:] < 256).all()


def test_jsonl_documents(tiny_model: TinyModel, tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text("\n".join(json.dumps({"text": word * 10}) for word in ("ab", "cd")))
    drawn = draw(Calibration(str(path), samples=1, seqlen=42), tiny_model("llama"), 128)
    ids, _ = encode(tiny_model("llama"), "ab" * 10 + "\n\n" + "cd" * 10)
    assert drawn.tokens[0].tolist() == ids


def test_empty_text(tiny_model: TinyModel, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n\n ")
    with pytest.raises(InputError, match=r"empty\.txt: the text is empty"):
        draw(Calibration(str(tmp_path / "empty.txt")), tiny_model("llama"), 128)


def test_short_text(tiny_model: TinyModel, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("hello")
    with pytest.raises(InputError, match=r"short\.txt: 5 tokens, less than one window of 64"):
        draw(Calibration(str(tmp_path / "short.txt"), seqlen=64), tiny_model("llama"), 128)


def test_missing_text(tiny_model: TinyModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.txt: cannot read the text"):
        draw(Calibration(str(tmp_path / "gone.txt")), tiny_model("llama"), 128)


def test_missing_tokenizer(tiny_model: TinyModel, text: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(tiny_model("llama"), tmp_path / "m"))
    (directory / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"no tokenizer \(tokenizer\.json\)"):
        draw(Calibration(str(text)), directory, 128)


def test_damaged_tokenizer(tiny_model: TinyModel, text: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(tiny_model("llama"), tmp_path / "m"))
    (directory / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="the tokenizer cannot be loaded"):
        draw(Calibration(str(text)), directory, 128)


def test_data_set_without_the_package(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    with pytest.raises(MissingEnvironmentError, match="`datasets` is not installed"):
        draw(Calibration("datasets:wikitext"), tiny_model("llama"), 128)


@pytest.mark.parametrize(("samples", "seqlen"), [(0, 8), (4, 1)])
def test_nonsense_sizes(samples: int, seqlen: int) -> None:
    with pytest.raises(InputError, match="calibration needs"):
        Calibration("demo", samples, seqlen)
