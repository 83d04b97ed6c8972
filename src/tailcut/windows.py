"""Which tokens are scored and which calibrate: one rule, used with torch and without it.

Perplexity (the rule of GPTQ, Wanda and AlphaPruning): the text is tokenised once, cut into
non-overlapping windows of `context` tokens, every position but a window's first is scored, and
perplexity = exp(mean negative log-likelihood over all scored tokens). A tokenizer's own begin-of-text
token is put at the start of every window. A last partial window is dropped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tailcut.errors import InputError

Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class EvalText:
    """A text to score: its content, where it came from, and how its documents were joined."""

    text: str
    name: str
    sha256: str
    joining: str


def read_text(path: Path, limit_chars: int | None = None) -> EvalText:
    """A local text file (one document a line of `.jsonl`: key "text"), joined as the papers do.

    Plain text follows the wikitext-raw convention: rows are lines, joined by a blank line.
    """
    import hashlib

    try:
        raw = path.read_bytes()
        content = raw.decode()
    except OSError as error:
        raise InputError(f"{path}: cannot read the text ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from error
    documents = _json_documents(content, path) if path.suffix == ".jsonl" else _rows(content)
    joined = "\n\n".join(documents)
    if not joined.strip():
        raise InputError(f"{path}: the text is empty")
    return EvalText(joined[:limit_chars], path.name, hashlib.sha256(raw).hexdigest(), "documents joined by \\n\\n")


def _rows(content: str) -> list[str]:
    # load_dataset("wikitext", ...) yields one row a line with its newline kept and blank lines as ''. Only \n ends
    # a line, and nothing follows the last one.
    return [line if line.strip() else "" for line in StringIO(content, newline="\n")]


def _json_documents(content: str, path: Path) -> list[str]:
    import json

    documents = []
    # not splitlines: a text may hold U+2028, U+0085 and the like as they are
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            documents.append(str(json.loads(line)["text"]))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f'{path}:{number}: each line must be a JSON object with a "text" key') from error
    return documents


def split_windows(tokens: Sequence[int], context: int, bos: int | None = None, limit: int | None = None) -> Tokens:
    """Token ids -> [windows, context] int64; `bos`, if given, takes the first place of every window.

    Raises InputError when the text gives less than one window.
    """
    if context < 2:
        raise InputError(f"context must be at least 2 tokens, got {context}")
    body = context - (bos is not None)
    count = len(tokens) // body
    if limit is not None:
        count = min(count, limit)
    if count == 0:
        raise InputError(f"the text has {len(tokens)} tokens, less than one window of {context}")
    windows = np.asarray(tokens[: count * body], np.int64).reshape(count, body)
    if bos is None:
        return windows
    return np.concatenate([np.full((count, 1), bos, np.int64), windows], axis=1)


def perplexity(window_nll: npt.NDArray[np.float64], scored_per_window: int) -> float:
    """exp of the mean negative log-likelihood; `window_nll` holds each window's sum in nats."""
    return float(np.exp(window_nll.sum() / (window_nll.size * scored_per_window)))
