"""A model's own tokenizer, loaded from its directory and from nowhere else."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tailcut.errors import InputError
from tailcut.shapes import differs

# any one of these makes a directory's tokenizer
_TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_PIECE: Final = 1 << 16  # characters
_PIECES: Final = 256  # that the tokenizers library takes at once, on all cores


def load_tokenizer(model_dir: Path) -> Any:  # noqa: ANN401  (transformers' tokenizers share no typed base)
    """The tokenizer of a Hugging Face directory; no download, no remote code."""
    if not any((model_dir / name).is_file() for name in _TOKENIZER_FILES):
        raise InputError(f"{model_dir}: no tokenizer (tokenizer.json); copy the tokenizer files beside the weights")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            model_dir, config=_config(model_dir), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the tokenizers library raises bare Exception for a malformed file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{model_dir}: the tokenizer cannot be loaded ({reason})") from error


@dataclass(frozen=True, slots=True)
class _Stated:
    """A `Described` of a directory that may hold no weights."""

    directory: Path
    config: Mapping[str, Any]


def _config(model_dir: Path) -> Any:  # noqa: ANN401  (a config of transformers, or None: it finds its own)
    """What transformers looks the tokenizer's class up by; its own reading refuses blocks of different shapes."""
    path = model_dir / "config.json"
    stated = json.loads(path.read_bytes()) if path.is_file() else {}
    if not isinstance(stated, dict) or not differs(stated):
        return None
    from tailcut.compress.skeleton import typed_config

    return typed_config(_Stated(model_dir, stated))


def encode(model_dir: Path, text: str) -> tuple[list[int], int | None]:
    """Text -> token ids without special tokens, and the begin-of-text id if the tokenizer puts one first itself."""
    tokenizer = load_tokenizer(model_dir)
    ids = [int(token) for token in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
    with_special = list(tokenizer("a", add_special_tokens=True)["input_ids"])
    bos = tokenizer.bos_token_id
    adds_bos = bos is not None and bool(with_special) and with_special[0] == bos
    return ids, int(bos) if adds_bos else None


def encode_long(model_dir: Path, text: str) -> tuple[npt.NDArray[np.int32], int | None]:
    """The same for a text of any length, int32 [tokens]: pieces of some 64 kB that end at blank lines go one by one."""
    tokenizer = load_tokenizer(model_dir)
    _, bos = encode(model_dir, "a")
    pieces = list(_pieces(text))
    parts: list[npt.NDArray[np.int32]] = [np.zeros(0, np.int32)]
    for start in range(0, len(pieces), _PIECES):
        found = tokenizer(pieces[start : start + _PIECES], add_special_tokens=False, verbose=False)["input_ids"]
        parts += [np.asarray(ids, np.int32) for ids in found]
    return np.concatenate(parts), bos


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = text.find("\n\n", start + _PIECE)
        end = len(text) if end < 0 else end + 2
        yield text[start:end]
        start = end
