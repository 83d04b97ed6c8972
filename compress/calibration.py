"""Calibration tokens: random windows of a text, from an explicit seed.

The documents are joined by blank lines, tokenised once with the model's own tokenizer, and windows are drawn
uniformly over all positions (documents longer than a window are rare in small texts, so windows may cross
from one document into the next). A tokenizer's own begin-of-text token is put first in every window.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from tailcut.compress.tokens import encode
from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.texts import demo_calibration
from tailcut.windows import EvalText, Tokens, read_text

MAX_SEQLEN: Final = 2048  # the papers' window; model limits of 128k would need terabytes of activations
_DATASETS: Final = "datasets:"
_CHARS_PER_TOKEN: Final = 16  # how much text of a data set is fetched for each token that will be drawn


@dataclass(frozen=True, slots=True)
class Calibration:
    """`source`: "demo" (packaged public-domain prose), a .txt or .jsonl file, or "datasets:NAME" from the hub."""

    source: str = "demo"
    samples: int = 32
    seqlen: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InputError(f"calibration needs at least 1 sample, got {self.samples}")
        if self.seqlen < 2:
            raise InputError(f"calibration needs windows of at least 2 tokens, got {self.seqlen}")


@dataclass(frozen=True, slots=True)
class CalibrationTokens:
    """What was drawn: tokens int64 [samples, seqlen], and the source's name and hash for the manifest."""

    tokens: Tokens
    name: str
    text_sha256: str

    @property
    def sha256(self) -> str:
        """Hash of the tokens themselves: equal hashes, equal statistics."""
        return hashlib.sha256(np.ascontiguousarray(self.tokens, "<i8").tobytes()).hexdigest()


def draw(calibration: Calibration, model_dir: Path, max_positions: int) -> CalibrationTokens:
    """Tokenise the source with the tokenizer of `model_dir` and draw windows of min(seqlen, 2048, max_positions)."""
    length = min(calibration.seqlen, MAX_SEQLEN, max_positions)
    text = _text(calibration)
    ids, bos = encode(model_dir, text.text)
    body = length - (bos is not None)
    if len(ids) < body:
        raise InputError(
            f"calibration text {text.name}: {len(ids)} tokens, less than one window of {length}; "
            "give a longer text or a smaller --seqlen"
        )
    starts = np.random.default_rng(calibration.seed).integers(0, len(ids) - body + 1, calibration.samples)
    windows = np.asarray(ids, np.int64)[starts[:, None] + np.arange(body)]
    if bos is not None:
        windows = np.concatenate([np.full((len(windows), 1), bos, np.int64), windows], axis=1)
    return CalibrationTokens(windows, text.name, text.sha256)


def _text(calibration: Calibration) -> EvalText:
    if calibration.source == "demo":
        return read_text(demo_calibration())
    if calibration.source.startswith(_DATASETS):
        return _from_hub(calibration)
    return read_text(Path(calibration.source))


def _from_hub(calibration: Calibration) -> EvalText:
    """The first documents of a hub data set's train split, as much text as the samples need."""
    name = calibration.source.removeprefix(_DATASETS)
    needed = calibration.samples * min(calibration.seqlen, MAX_SEQLEN) * _CHARS_PER_TOKEN
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingEnvironmentError(
            f"data set {name}: the package `datasets` is not installed; pip install 'tailcut[datasets]', "
            "or give a local .txt or .jsonl file"
        ) from error
    try:
        documents = _first_documents(load_dataset(name, split="train", streaming=True), name, needed)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MissingEnvironmentError(
            f"data set {name} cannot be fetched ({reason}); give a local .txt or .jsonl file"
        ) from error
    joined = "\n\n".join(documents)
    if not joined.strip():
        raise InputError(f"data set {name}: the text is empty")
    return EvalText(
        joined, calibration.source, hashlib.sha256(joined.encode()).hexdigest(), "documents joined by \\n\\n"
    )


def _first_documents(rows: Iterable[Mapping[str, object]], name: str, characters: int) -> list[str]:
    documents: list[str] = []
    for row in rows:
        if "text" not in row:
            raise InputError(f'data set {name}: its rows have no "text" column, only {", ".join(sorted(row))}')
        documents.append(str(row["text"]))
        characters -= len(documents[-1])
        if characters <= 0:
            break
    return documents
