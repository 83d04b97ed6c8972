"""Which tokens are scored: the papers' joining rule, windows, and perplexity."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailcut.errors import InputError
from tailcut.windows import perplexity, read_text, split_windows

REFERENCE = Path(__file__).resolve().parents[2] / ".." / "shared" / "reference"


def papers_text(path: Path) -> str:
    """What `"\\n\\n".join(load_dataset("wikitext", "wikitext-2-raw-v1")["text"])` gives, from the raw file.

    That data set's loader reads the file line by line and yields '' for a blank line, the line with its newline
    otherwise.
    """
    with path.open(encoding="utf-8", newline="\n") as stream:
        rows = [row if row.strip() else "" for row in stream]
    return "\n\n".join(rows)


SAMPLES = {
    "as in wikitext": " \n = Robert Boulter = \n \n Robert is an actor . \n He was . \n \n",
    "no newline at the end": "one\ntwo",
    "one line": "one\n",
    "other line ends": "a\u2028b\x0bc\x85d\rx\n\ny\n",  # only \n ends a row
    "blank lines at the end": "a\n\n\n",
}


@pytest.mark.parametrize("name", SAMPLES)
def test_joining_is_the_papers_rule(name: str, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(SAMPLES[name].encode())
    assert read_text(path).text == papers_text(path)


def test_joining_of_the_real_file() -> None:
    path = REFERENCE / "wikitext-2-raw" / "wiki.test.raw"
    if not path.is_file():
        pytest.skip("the WikiText-2 reference file is not on this machine")
    text = read_text(path)
    assert text.text == papers_text(path)
    # 4358 rows (the data set's own count) have 4357 joints of two characters; blank rows lose theirs
    blanks = sum(not line.strip() for line in path.read_text().split("\n")[:-1])
    removed = sum(len(line) + 1 for line in path.read_text().split("\n")[:-1] if not line.strip())
    assert blanks > 1000
    assert len(text.text) == len(path.read_text()) + 2 * 4357 - removed


def test_jsonl_documents_are_joined(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in ("one", "two\nlines", "drei ü")) + "\n\n")
    assert read_text(path).text == "one\n\ntwo\nlines\n\ndrei ü"


def test_line_ends_that_json_leaves_alone_stay_in_their_document(tmp_path: Path) -> None:
    path, text = tmp_path / "t.jsonl", "one\u2028two\u0085three\x0cfour"
    path.write_text(json.dumps({"text": text}, ensure_ascii=False) + "\r\n", newline="")
    assert read_text(path).text == text


@pytest.mark.parametrize("line", ["{", "[]", '{"txt": "a"}', "3", "null"])
def test_bad_jsonl_names_the_line(line: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "ok"}\n' + line + "\n")
    with pytest.raises(InputError, match=r't\.jsonl:2: each line must be a JSON object with a "text" key'):
        read_text(path)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"   \n\t\n"])
def test_empty_text_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(InputError, match=r"t\.txt: the text is empty"):
        read_text(tmp_path / "t.txt")


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the text"):
        read_text(tmp_path / "none.txt")
    (tmp_path / "b.txt").write_bytes(b"abc\xff")
    with pytest.raises(InputError, match="not UTF-8 text \\(byte 3\\)"):
        read_text(tmp_path / "b.txt")


def test_text_carries_its_name_and_hash(tmp_path: Path) -> None:
    (tmp_path / "abc.txt").write_bytes(b"abc")
    text = read_text(tmp_path / "abc.txt", limit_chars=2)
    assert (text.name, text.text) == ("abc.txt", "ab")
    assert text.sha256.startswith("ba7816bf")  # of the whole file


@given(st.integers(2, 9), st.integers(0, 60), st.booleans())
def test_windows_partition_the_tokens(context: int, count: int, bos: bool) -> None:
    body = context - bos
    tokens = list(range(100, 100 + count))
    if count < body:
        with pytest.raises(InputError, match=f"has {count} tokens, less than one window of {context}"):
            split_windows(tokens, context, 1 if bos else None)
        return
    windows = split_windows(tokens, context, 1 if bos else None)
    assert windows.shape == (count // body, context)
    assert windows[:, int(bos) :].ravel().tolist() == tokens[: count // body * body]
    assert not bos or (windows[:, 0] == 1).all()


def test_limit_and_too_small_a_context() -> None:
    assert split_windows(range(20), 4, limit=3).shape == (3, 4)
    assert split_windows(range(20), 4, limit=30).shape == (5, 4)
    with pytest.raises(InputError, match="at least 2 tokens, got 1"):
        split_windows(range(20), 1)


def test_perplexity_of_a_uniform_guess_is_the_vocabulary() -> None:
    window_nll = np.full(7, 31 * np.log(50.0))
    assert perplexity(window_nll, 31) == pytest.approx(50.0, rel=1e-12)  # one exp and one log in float64
