"""Text in, text out: a package's tokenizer, chat template and sampling, without torch or transformers.

Greedy decoding picks the largest logit. Otherwise softmax(logits / temperature) is cut to the smallest set of tokens whose
probability reaches `top_p` (nucleus sampling, Holtzman et al. 2020) and one is drawn with the given seed.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.kernels.decoder import Decoder

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sampling:
    """temperature 0 is greedy; top_p in (0, 1] keeps that much probability."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature must be 0 (greedy) or positive, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top-p must be in (0, 1], got {self.top_p}")


def choose(logits: Floats, sampling: Sampling, rng: np.random.Generator) -> int:
    """The next token from logits [vocab]."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / sampling.temperature
    weights = np.exp(scaled - scaled.max())
    order = np.argsort(-weights, kind="stable")
    shares = weights[order] / weights.sum()
    # a token stays while the ones before it have not reached top_p; the first always stays
    kept = np.count_nonzero(np.cumsum(shares) - shares < sampling.top_p)
    nucleus = shares[:kept] / shares[:kept].sum()
    return int(order[rng.choice(kept, p=nucleus)])


def tokenizer_of(package: Path) -> Tokenizer:
    """The package's `tokenizer.json`; InputError when it is missing or malformed."""
    path = package / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"{path}: no tokenizer; export a model directory that has tokenizer.json, or use token ids")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception for a malformed file
        raise InputError(f"{path}: not a tokenizer file ({error})") from error


def end_tokens(package: Path) -> frozenset[int]:
    """Tokens that end a text: generation_config.json's, else config.json's."""
    for name in ("generation_config.json", "config.json"):
        found = _json(package / name).get("eos_token_id")
        if isinstance(found, int):
            return frozenset({found})
        if isinstance(found, list):
            return frozenset(int(token) for token in found)
    return frozenset()


def chat_prompt(package: Path, message: str) -> str:
    """One user message through the model's chat template (jinja2, sandboxed)."""
    settings = _json(package / "tokenizer_config.json")
    file = package / "chat_template.jinja"
    template = file.read_text() if file.is_file() else settings.get("chat_template")
    if not isinstance(template, str):
        raise InputError(f"{package}: the model has no chat template; leave out --chat")
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise MissingEnvironmentError("--chat needs jinja2: pip install 'tailcut[report]'") from error
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    special = {name: _text(settings.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    try:
        return environment.from_string(template).render(
            messages=[{"role": "user", "content": message}], add_generation_prompt=True, **special
        )
    except TemplateError as error:
        raise InputError(f"{package}: the chat template cannot be used ({error})") from error


def generate(
    decoder: Decoder, prompt: Sequence[int], *, limit: int, ends: frozenset[int] = frozenset(), sampling: Sampling
) -> Iterator[int]:
    """Tokens after `prompt`, at most `limit`, without the end token."""
    if not prompt:
        raise InputError("the prompt has no tokens; give some text")
    rng = np.random.default_rng(sampling.seed)
    logits = decoder.prefill(np.asarray([prompt], np.int64), last_only=True)[0, -1]
    for count in range(1, limit + 1):
        token = choose(logits, sampling, rng)
        if token in ends:
            return
        yield token
        if count < limit:
            logits = decoder.step(np.asarray([token], np.int64))[0]


def stream_text(tokenizer: Tokenizer, tokens: Iterator[int]) -> Iterator[str]:
    """Decode as tokens come: pieces whose concatenation is the whole text; half characters wait for the rest."""
    ids: list[int] = []
    shown = ""
    for token in tokens:
        ids.append(token)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        if not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
    rest = tokenizer.decode(ids, skip_special_tokens=True)[len(shown) :]
    if rest:
        yield rest


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    return found if isinstance(found, dict) else {}


def _text(token: object) -> str:
    """A special token, written as text or as {"content": text}."""
    if isinstance(token, dict):
        return str(token.get("content", ""))
    return token if isinstance(token, str) else ""
