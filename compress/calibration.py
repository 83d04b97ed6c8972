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
        return tokens_sha256(self.tokens)


def tokens_sha256(tokens: Tokens) -> str:
    """Hash of token windows, whatever the machine's byte order."""
    return hashlib.sha256(np.ascontiguousarray(tokens, "<i8").tobytes()).hexdigest()


def draw(calibration: Calibration, model_dir: Path, max_positions: int) -> CalibrationTokens:
    """Tokenise the source with the tokenizer of `model_dir` and draw windows of min(seqlen, 2048, max_positions)."""
    source = _tokenise(calibration, model_dir, max_positions)
    return source.windows(source.drawn(calibration))


def draw_apart(
    calibration: Calibration, model_dir: Path, max_positions: int, windows: int
) -> tuple[CalibrationTokens, CalibrationTokens]:
    """What `draw` gives, and up to `windows` more windows of the same length that share no token with it or each other.

    These lie side by side in the stretches that were not drawn, and come in an order that the seed decides.
    InputError where the text has no room for two.
    """
    source = _tokenise(calibration, model_dir, max_positions)
    drawn = source.drawn(calibration)
    free = _free_starts(drawn, source.body, len(source.ids))
    if len(free) < 2:
        raise InputError(
            f"calibration text {source.text.name}: {len(source.ids)} tokens, of which {calibration.samples} windows of "
            f"{source.body} leave no room to judge by; give a longer text, fewer samples or a smaller --seqlen"
        )
    chosen = np.random.default_rng([calibration.seed, 1]).permutation(free)[:windows]
    return source.windows(drawn), source.windows(chosen)


@dataclass(frozen=True, slots=True)
class _Source:
    """A tokenised text and the windows it is cut into: `body` tokens, and a begin-of-text before them unless None."""

    text: EvalText
    ids: Tokens  # [tokens]
    bos: int | None
    body: int

    def drawn(self, calibration: Calibration) -> Tokens:
        """Where the calibration's windows start [samples]."""
        return np.random.default_rng(calibration.seed).integers(0, len(self.ids) - self.body + 1, calibration.samples)

    def windows(self, starts: Tokens) -> CalibrationTokens:
        windows = self.ids[starts[:, None] + np.arange(self.body)]
        if self.bos is not None:
            windows = np.concatenate([np.full((len(windows), 1), self.bos, np.int64), windows], axis=1)
        return CalibrationTokens(windows, self.text.name, self.text.sha256)


def _tokenise(calibration: Calibration, model_dir: Path, max_positions: int) -> _Source:
    length = min(calibration.seqlen, MAX_SEQLEN, max_positions)
    text = _text(calibration)
    ids, bos = encode(model_dir, text.text)
    body = length - (bos is not None)
    if len(ids) < body:
        raise InputError(
            f"calibration text {text.name}: {len(ids)} tokens, less than one window of {length}; "
            "give a longer text or a smaller --seqlen"
        )
    return _Source(text, np.asarray(ids, np.int64), bos, body)


def _free_starts(drawn: Tokens, body: int, size: int) -> Tokens:
    """Starts of windows side by side in what the drawn ones leave of `size` tokens, ascending."""
    ends = np.concatenate([[0], np.sort(drawn) + body])  # windows are equally long, so their ends rise as their starts
    begins = np.concatenate([np.sort(drawn), [size]])
    gaps = zip(ends.tolist(), begins.tolist(), strict=True)
    return np.array([start for low, high in gaps for start in range(low, high - body + 1, body)], np.int64)


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
