"""Text to learn from: tokens, held-out windows, and which window comes when.

The window of a step is a function of the seed and the step's number alone, so a resumed run needs no state for its data.
Every epoch cuts the text at another offset and goes through the pieces in another order.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from tailcut.compress.tokens import encode_long
from tailcut.errors import InputError
from tailcut.recovering import Recovering
from tailcut.windows import Tokens, read_text, split_windows

HELDOUT: Final = 20  # one window of so many is held out, from the end of every text
HELDOUT_WINDOWS: Final = 32  # at most
Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Texts:
    """Training tokens [tokens], held-out windows [windows, seqlen], and the files by name with their hashes."""

    ids: Ids
    bos: int | None
    seqlen: int
    heldout: Tokens
    files: Mapping[str, str]
    seed: int

    @property
    def body(self) -> int:
        """Tokens of a window that are text."""
        return self.seqlen - (self.bos is not None)

    @property
    def windows(self) -> int:
        """Windows an epoch."""
        return max(1, (len(self.ids) - self.body + 1) // self.body)

    def batch(self, step: int, size: int) -> Tokens:
        """The windows of one step, int64 [size, seqlen]."""
        return self.rows(range(step * size, (step + 1) * size))

    def rows(self, places: Sequence[int]) -> Tokens:
        """The windows at these places of the endless sequence of epochs, int64 [places, seqlen]."""
        starts = [self._start(place) for place in places]
        found = self.ids[np.asarray(starts)[:, None] + np.arange(self.body)].astype(np.int64)
        if self.bos is None:
            return found
        return np.concatenate([np.full((len(found), 1), self.bos, np.int64), found], axis=1)

    def sha256(self) -> str:
        """Hash of everything that is read."""
        digest = hashlib.sha256(np.ascontiguousarray(self.ids, "<i4").tobytes())
        digest.update(np.ascontiguousarray(self.heldout, "<i8").tobytes())
        return digest.hexdigest()

    def _start(self, place: int) -> int:
        epoch, number = divmod(place, self.windows)
        offset, order = _epoch(
            self.seed, epoch, self.windows, min(self.body, len(self.ids) - self.body * self.windows + 1)
        )
        return offset + int(order[number]) * self.body


@lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, windows: int, offsets: int) -> tuple[int, npt.NDArray[np.int64]]:
    """Where an epoch cuts, and the order of its pieces."""
    rng = np.random.default_rng([seed, epoch])
    return int(rng.integers(offsets)), rng.permutation(windows)


def read_texts(model_dir: Path, settings: Recovering, max_positions: int) -> Texts:
    """Tokenise the settings' files with the tokenizer of `model_dir`; InputError where there is too little."""
    seqlen = min(settings.seqlen, max_positions)
    parts: list[Ids] = []
    kept: list[Tokens] = []
    files: dict[str, str] = {}
    bos: int | None = None
    for name in settings.texts:
        text = read_text(Path(name))
        files[text.name] = text.sha256
        ids, bos = encode_long(model_dir, text.text)
        windows = ids.size // (seqlen - (bos is not None))
        held = min(max(1, windows // HELDOUT), HELDOUT_WINDOWS) if settings.heldout is None and windows > 1 else 0
        if held:
            kept.append(split_windows(ids[-held * (seqlen - (bos is not None)) :].tolist(), seqlen, bos))
            ids = ids[: -held * (seqlen - (bos is not None))]
        parts.append(ids)
    if settings.heldout is not None:
        text = read_text(Path(settings.heldout))
        files[text.name] = text.sha256
        ids, bos = encode_long(model_dir, text.text)
        kept = [split_windows(ids.tolist(), seqlen, bos, HELDOUT_WINDOWS)]
    return _checked(np.concatenate(parts), kept, bos, seqlen, files, settings)


def _checked(
    ids: Ids, kept: Sequence[Tokens], bos: int | None, seqlen: int, files: Mapping[str, str], settings: Recovering
) -> Texts:
    needed = settings.batch * (seqlen - (bos is not None))
    if len(ids) < needed or not kept:
        raise InputError(
            f"{', '.join(files)}: {len(ids)} tokens to learn from, a step takes {settings.batch} windows of {seqlen}; give "
            "more text (`tailcut sample-text` writes some), a smaller --batch or a smaller --seqlen"
        )
    heldout = np.concatenate(kept)
    few = np.linspace(0, len(heldout) - 1, min(len(heldout), HELDOUT_WINDOWS)).astype(np.int64)
    return Texts(ids, bos, seqlen, heldout[few], files, settings.seed)
