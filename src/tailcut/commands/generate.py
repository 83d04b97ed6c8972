"""`tailcut generate`: text from a package."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from tailcut.errors import InputError


def command(
    package: Annotated[Path, typer.Argument(help="A package made by `tailcut export`.")],
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    max_new_tokens: Annotated[int, typer.Option(help="Stop after this many tokens.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; higher is more random.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens that reach this probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the sampling; the same seed gives the same text.")] = 0,
    chat: Annotated[bool, typer.Option("--chat", help="Send PROMPT as a user's message (chat template).")] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads. [default: ONNX Runtime's choice]")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print text, tokens and speed as JSON instead.")] = False,
) -> None:
    """Stream text that PACKAGE writes after PROMPT; the speed goes to stderr. Needs no torch."""
    from tailcut.kernels import text
    from tailcut.kernels.decoder import Decoder

    if max_new_tokens < 1:
        raise InputError(f"--max-new-tokens must be at least 1, got {max_new_tokens}")
    sampling = text.Sampling(temperature, top_p, seed)
    tokenizer = text.tokenizer_of(package)
    written = text.chat_prompt(package, prompt) if chat else prompt
    # a chat template writes the special tokens itself
    ids = tokenizer.encode(written, add_special_tokens=not chat).ids
    decoder = Decoder(package, threads)
    clock = _Clock()
    tokens = clock.watch(
        text.generate(decoder, ids, limit=max_new_tokens, ends=text.end_tokens(package), sampling=sampling)
    )
    pieces = text.stream_text(tokenizer, tokens)
    if json:
        _print_json("".join(pieces), len(ids), clock)
        return
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    print(clock.summary(len(ids)), file=sys.stderr)


class _Clock:
    """Times the first token (prefill) apart from the rest (decode)."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.tokens: list[int] = []
        self.began = time.perf_counter()

    def watch(self, tokens: Iterator[int]) -> Iterator[int]:
        self.began = time.perf_counter()
        for token in tokens:
            self.times.append(time.perf_counter())
            self.tokens.append(token)
            yield token

    @property
    def first_seconds(self) -> float:
        return self.times[0] - self.began if self.times else 0.0

    @property
    def decode_rate(self) -> float | None:
        """Tokens a second after the first; None with fewer than two."""
        if len(self.times) < 2:
            return None
        return (len(self.times) - 1) / max(self.times[-1] - self.times[0], 1e-9)

    def summary(self, prompt: int) -> str:
        if not self.times:
            return f"prompt {prompt} tokens; the model ended the text at once"
        rate = f", then {self.decode_rate:.1f} tok/s" if self.decode_rate else ""
        return f"prompt {prompt} tokens, first token after {self.first_seconds:.2f} s{rate} ({len(self.times)} tokens)"


def _print_json(written: str, prompt: int, clock: _Clock) -> None:
    import json

    body = {
        "text": written,
        "tokens": clock.tokens,
        "prompt_tokens": prompt,
        "first_token_seconds": clock.first_seconds,
        "decode_tokens_per_second": clock.decode_rate,
    }
    print(json.dumps(body, ensure_ascii=False))
