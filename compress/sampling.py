"""Text that a model writes by itself, fast: many sequences at once, a cache that is allocated once, no wait for the host.

A decode step of a small model is a few hundred short kernels whatever the number of sequences is, so sequences are what
makes it fast. Every step attends to the written part of the cache only, as views of it: no mask, nothing is copied, and
grouped heads stay grouped. A sequence goes on after its end token with another document, as in pretraining; documents are
taken apart afterwards. Batches are files in `<out>.work/`, each a function of the seed and its number: a killed run goes on.
"""

import hashlib
import inspect
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers.cache_utils import Cache

from tailcut import __version__
from tailcut.checkpoint import Checkpoint
from tailcut.compress.blocks import max_positions
from tailcut.compress.growing import Growing
from tailcut.compress.journal import open_journal
from tailcut.compress.resident import Weights
from tailcut.compress.skeleton import build_skeleton
from tailcut.compress.spectra import resolve_device
from tailcut.compress.tokens import encode_long, load_tokenizer
from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.files import require_absent, write_file
from tailcut.progress import Reporter, silent
from tailcut.windows import Tokens, read_text

BATCH: Final = {"cpu": 16, "cuda": 512}
_TOLD: Final = 16  # steps between two lines of progress


@dataclass(frozen=True, slots=True)
class Sampling:
    """How much is written and how. `prompts`: a text whose pieces of `prompt_tokens` are continued; None: from nothing."""

    tokens: int
    length: int = 512  # of a sequence
    batch: int | None = None  # sequences at once; None: 512 on a GPU, 16 on a CPU
    temperature: float = 1.0
    prompts: str | None = None
    prompt_tokens: int = 16
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("tokens", "prompt_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch is not None and self.batch < 1:
            raise InputError(f"batch must be at least 1, got {self.batch}")
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"temperature must be more than 0, got {self.temperature}")


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was written. `seconds` are those of this process, `fresh` the tokens it sampled."""

    tokens: int
    documents: int
    fresh: int
    seconds: float


def sample_text(model_dir: Path, out: Path, sampling: Sampling, *, report: Reporter = silent) -> Sampled:
    """Write at least `sampling.tokens` tokens as JSON lines {"text": ...}, one document each, to the file `out`."""
    require_absent(out)
    if out.suffix != ".jsonl":
        raise InputError(f"{out}: the text is written as JSON lines; name a .jsonl file")
    device = resolve_device(sampling.device)
    writer = _Writer.open(model_dir, sampling, device)
    journal, _ = open_journal(out, _fingerprint(writer, sampling))
    began, fresh = time.monotonic(), 0
    for number in range(writer.batches):
        part = journal.model / f"{number:06d}.jsonl"
        if not part.is_file():
            rows = writer.sample(number, report)
            lines = [json.dumps({"text": text}, ensure_ascii=False) for text in writer.documents(rows)]
            write_file(part, "".join(f"{line}\n" for line in lines).encode())
            fresh += rows.size - len(rows) * writer.given
    report("sample", writer.steps, writer.steps)
    parts = [(journal.model / f"{number:06d}.jsonl").read_bytes() for number in range(writer.batches)]
    whole = journal.work / out.name
    write_file(whole, b"".join(parts))
    whole.replace(out)
    shutil.rmtree(journal.work, ignore_errors=True)
    documents = sum(part.count(b"\n") for part in parts)
    return Sampled(
        writer.batches * writer.size * (writer.length - writer.given), documents, fresh, time.monotonic() - began
    )


@dataclass(frozen=True, slots=True)
class _Writer:
    """A resident model and everything that does not change between batches."""

    weights: Weights
    tokenizer: Any
    sampling: Sampling
    size: int  # sequences of a batch
    length: int
    first: int | None  # begin-of-text token
    ends: tuple[int, ...]
    prompts: Tokens | None  # [pieces, prompt_tokens]
    last: Mapping[str, int]  # what asks the model for the logits of the last position only

    @classmethod
    def open(cls, model_dir: Path, sampling: Sampling, device: str) -> "_Writer":
        checkpoint = Checkpoint(model_dir)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        weights = Weights(checkpoint, build_skeleton(checkpoint), device, dtype)
        tokenizer = load_tokenizer(model_dir)
        length = min(sampling.length, max_positions(weights.skeleton.model))
        prompts = _prompts(model_dir, sampling)
        first, ends = tokenizer.bos_token_id, _ends(model_dir, tokenizer)
        if first is None and prompts is None:
            raise InputError(
                f"{model_dir}: its tokenizer has no begin-of-text token to start from; give --prompts FILE"
            )
        begun = (0 if prompts is None else prompts.shape[1]) + (first is not None)
        if length <= begun:
            raise InputError(
                f"sequences of {length} tokens leave nothing to write after {begun}; give a larger --length"
            )
        weights.load_rest()
        for index in range(len(weights.skeleton.blocks)):
            weights.load_block(index)
        checkpoint.release()
        size = sampling.batch or BATCH[device]
        takes = inspect.signature(weights.skeleton.model.forward).parameters
        last = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        return cls(weights, tokenizer, sampling, size, length, first, ends, prompts, last)

    @property
    def given(self) -> int:
        """Tokens of a sequence that are not sampled."""
        return (0 if self.prompts is None else int(self.prompts.shape[1])) + (self.first is not None)

    @property
    def batches(self) -> int:
        return -(-self.sampling.tokens // (self.size * (self.length - self.given)))

    @property
    def steps(self) -> int:
        return self.batches * (self.length - self.given)

    def sample(self, number: int, report: Reporter) -> Tokens:
        """One batch, int64 [sequences, length]."""
        try:
            with torch.inference_mode():
                return self._sample(number, report)
        except torch.OutOfMemoryError as error:
            raise MissingEnvironmentError(
                f"{self.size} sequences of {self.length} tokens do not fit into the GPU's memory; give a smaller --batch"
            ) from error

    def _sample(self, number: int, report: Reporter) -> Tokens:
        device = self.weights.device
        generator = torch.Generator(device).manual_seed(_seed(self.sampling.seed, number))
        tokens = torch.zeros(self.size, self.length, dtype=torch.long, device=device)
        tokens[:, : self.given] = self._begun(number).to(device)
        ends = torch.tensor(self.ends, dtype=torch.long, device=device)
        cache = Cache(layers=[Growing(self.length) for _ in self.weights.skeleton.blocks])
        fed = tokens[:, : self.given]
        for place in range(self.given, self.length):
            drawn = _draw(self._logits(fed, cache), self.sampling.temperature, generator)
            if self.first is not None and self.first not in self.ends:
                drawn = torch.where(torch.isin(tokens[:, place - 1], ends), self.first, drawn)
            tokens[:, place] = drawn
            fed = drawn[:, None]
            if place % _TOLD == 0:
                done = number * (self.length - self.given) + place - self.given
                report("sample", done, self.steps, f"{done * self.size:,} tokens")
        found: Tokens = tokens.cpu().numpy()
        return found

    def _logits(self, fed: Tensor, cache: Cache) -> Tensor:
        model: Any = self.weights.skeleton.model
        logits: Tensor = model(input_ids=fed, past_key_values=cache, use_cache=True, **self.last).logits[:, -1]
        return logits

    def _begun(self, number: int) -> Tensor:
        """What every sequence of a batch begins with [sequences, given]."""
        parts = [] if self.first is None else [np.full((self.size, 1), self.first, np.int64)]
        if self.prompts is not None:
            chosen = np.random.default_rng([self.sampling.seed, number]).integers(0, len(self.prompts), self.size)
            parts.append(self.prompts[chosen])
        return torch.from_numpy(np.concatenate(parts, axis=1))

    def documents(self, rows: Tokens) -> list[str]:
        """The texts between begin and end tokens; empty ones are left out."""
        marks = {*self.ends, self.first}
        pieces = [piece for row in rows.tolist() for piece in _split(row, marks)]
        texts = self.tokenizer.batch_decode(pieces, skip_special_tokens=True)
        return [text for text in texts if text.strip()]


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """One token of each distribution [sequences]: the first of exponential clocks whose rates are the probabilities."""
    rates = (logits.float() / temperature).softmax(-1)
    clocks = torch.empty_like(rates).exponential_(generator=generator).clamp_(min=torch.finfo(torch.float32).tiny)
    return (rates / clocks).argmax(-1)


def _split(row: Sequence[int], marks: set[int | None]) -> Iterator[list[int]]:
    piece: list[int] = []
    for token in (*row, None):
        if token is not None and token not in marks:
            piece.append(token)
        elif piece:
            yield piece
            piece = []


def _prompts(model_dir: Path, sampling: Sampling) -> Tokens | None:
    if sampling.prompts is None:
        return None
    ids, _ = encode_long(model_dir, read_text(Path(sampling.prompts)).text)
    count = len(ids) // sampling.prompt_tokens
    if count == 0:
        raise InputError(f"{sampling.prompts}: {len(ids)} tokens, less than one prompt of {sampling.prompt_tokens}")
    return ids[: count * sampling.prompt_tokens].reshape(count, -1).astype(np.int64)


def _ends(model_dir: Path, tokenizer: Any) -> tuple[int, ...]:  # noqa: ANN401  (untyped library object)
    """End-of-text tokens: the generation config's, else the tokenizer's."""
    path, stated = model_dir / "generation_config.json", None
    if path.is_file():
        stated = json.loads(path.read_bytes()).get("eos_token_id")
    stated = tokenizer.eos_token_id if stated is None else stated
    listed = stated if isinstance(stated, list) else [stated]
    return tuple(int(token) for token in listed if token is not None)


def _seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:7])


def _fingerprint(writer: _Writer, sampling: Sampling) -> str:
    prompts = None if writer.prompts is None else hashlib.sha256(writer.prompts.tobytes()).hexdigest()
    parts = [
        writer.weights.checkpoint.fingerprint(), asdict(sampling), prompts, writer.size, str(writer.weights.device),
        __version__, torch.__version__, transformers.__version__,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
