"""`tailcut perplexity`: how well a model predicts a text, alone or beside its dense self."""

import json as jsonlib
import os
from pathlib import Path
from typing import Annotated, Final, cast

import numpy as np
import numpy.typing as npt
import typer

from tailcut import codec
from tailcut.errors import InputError
from tailcut.manifest import try_manifest
from tailcut.progress import Reporter, console
from tailcut.results import Quality, Workload
from tailcut.texts import demo_heldout
from tailcut.windows import EvalText, Tokens, perplexity, read_text

Nll = npt.NDArray[np.float64]
ENGINES: Final = ("onnxruntime", "tailcut")


def command(
    target: Annotated[Path, typer.Argument(help="A Hugging Face directory (plain or packed) or an ONNX package.")],
    text: Annotated[
        str, typer.Option(help='"demo" (packaged prose, not the calibration text), or a .txt/.jsonl/.raw file.')
    ] = "demo",
    context: Annotated[int, typer.Option(help="Tokens a window; windows do not overlap.")] = 512,
    windows: Annotated[int, typer.Option(help="Windows scored from the start of the text; 0: all of it.")] = 0,
    against: Annotated[
        Path | None, typer.Option(help="The dense model of the same kind; gives the ratio with its interval.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda; Hugging Face directories only.")] = "auto",
    batch: Annotated[int, typer.Option(help="Windows at a time.")] = 1,
    precision: Annotated[
        str, typer.Option(help="float32, or bfloat16 (faster on a GPU, moves it by about 0.2 %).")
    ] = "float32",
    engine: Annotated[
        str, typer.Option(help="What runs a package: onnxruntime, or tailcut (its kernels, int8 activations and all).")
    ] = "onnxruntime",
    kl: Annotated[
        bool, typer.Option("--kl", help="With --against: also KL(dense || TARGET) of the next token.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Perplexity of TARGET on a text: exp of the mean negative log-likelihood per token.

    The text is tokenised once by the model's own tokenizer and cut into windows; every token of a window but the
    first is scored. Perplexities of models with different vocabularies cannot be compared.
    """
    if precision not in ("float32", "bfloat16"):
        raise InputError(f"precision must be float32 or bfloat16, got {precision!r}")
    if batch < 1 or windows < 0:
        raise InputError(f"batch must be at least 1 and windows at least 0, got {batch} and {windows}")
    if kl and (against is None or _is_package(target) != _is_package(against) or engine != "onnxruntime"):
        raise InputError(
            "--kl compares two directories, or two packages in onnxruntime: give --against of the same kind"
        )
    content = read_text(demo_heldout() if text == "demo" else Path(text))
    if engine not in ENGINES:
        raise InputError(f"engine must be {' or '.join(ENGINES)}, got {engine!r}")
    with console(quiet=json) as report:
        tokens, bos = _tokenise(target, content, context, windows or None)
        scores = [
            _nll(directory, tokens, device, batch, precision, engine, report)
            for directory in ((target,) if against is None else (against, target))
        ]
        divergence = _kl(against, target, tokens, device, batch, report) if kl and against is not None else None
    if against is None:
        _show_one(target, scores[0], content, tokens, bos, engine, json)
    else:
        _show_pair(scores, content, context, bos, (against, target), engine, json, divergence)


def _is_package(target: Path) -> bool:
    return (target / "model.onnx").is_file()


def _tokenise(target: Path, text: EvalText, context: int, limit: int | None) -> tuple[Tokens, int | None]:
    if _is_package(target):
        from tailcut.bench.quality import tokenise as package_tokenise

        return package_tokenise(target, text, context, limit)
    from tailcut.compress.perplexity import tokenise

    return tokenise(target, text, context, limit)


def _nll(target: Path, tokens: Tokens, device: str, batch: int, precision: str, engine: str, report: Reporter) -> Nll:
    if _is_package(target):
        from tailcut.bench.quality import package_nll

        return package_nll(target, tokens, _workload(tokens), report, engine_name=engine)
    from tailcut.compress.perplexity import directory_nll
    from tailcut.compress.resident import Forward

    chosen = cast(Forward, precision)
    return directory_nll(target, tokens, device=device, batch=batch, precision=chosen, report=report)


def _kl(dense: Path, sparse: Path, tokens: Tokens, device: str, batch: int, report: Reporter) -> Nll:
    """KL(dense || sparse) of each window, nats a position, float64 [windows]."""
    if _is_package(sparse):
        from tailcut.bench.quality import package_kl

        return package_kl(dense, sparse, tokens, _workload(tokens), report)
    from tailcut.compress.divergence import directory_kl

    return directory_kl(sparse, dense, tokens, device=device, batch=batch, report=report)


def _workload(tokens: Tokens) -> Workload:
    threads, length = len(os.sched_getaffinity(0)), int(tokens.shape[1])
    return Workload(batch=1, prompt_tokens=length, new_tokens=1, context=length + 1, threads=threads, blocks=1, seed=0)


def _show_one(target: Path, nll: Nll, text: EvalText, tokens: Tokens, bos: int | None, engine: str, json: bool) -> None:
    scored = int(tokens.shape[1]) - 1
    value = perplexity(nll, scored)
    facts = {
        "perplexity": value,
        "text": text.name,
        "text_sha256": text.sha256,
        "joining": text.joining,
        "context": int(tokens.shape[1]),
        "windows": len(nll),
        "tokens_scored": scored * len(nll),
        "bos": bos,
        "measured_with": _measured_with(target, engine),
        "nll": nll.tolist(),
    }
    if json:
        print(jsonlib.dumps(facts, indent=1))
        return
    print(f"perplexity {value:.4f} on {text.name} ({facts['tokens_scored']} tokens scored, context {tokens.shape[1]})")
    _show_notes(target)


def _show_pair(
    scores: list[Nll],
    text: EvalText,
    context: int,
    bos: int | None,
    pair: tuple[Path, Path],
    engine: str,
    json: bool,
    kl_nats: Nll | None,
) -> None:
    from tailcut.bench.quality import compare

    manifests = [try_manifest(directory) for directory in pair]
    notes = tuple(dict.fromkeys(note for manifest in manifests if manifest for note in manifest.notes))
    quality: Quality = compare(
        scores[0],
        scores[1],
        text=text,
        context=context,
        bos=bos,
        notes=notes,
        measured_with=_measured_with(pair[1], engine),
        kl_nats=kl_nats,
    )
    if json:
        print(codec.to_json(quality), end="")
        return
    ratio = quality.ratio
    print(f"dense  {quality.dense_perplexity:.4f}")
    print(f"sparse {quality.sparse_perplexity:.4f}")
    print(f"ratio  {ratio.value:.4f} [{ratio.low:.4f}, {ratio.high:.4f}]")
    if kl_nats is not None:
        print(f"KL     {kl_nats.mean():.4f} nats from dense")
    print(f"{quality.tokens_scored} tokens of {text.name} scored, context {context}")
    for note in notes:
        print(f"note: {note}")


def _measured_with(target: Path, engine: str) -> str:
    return engine if _is_package(target) else "torch"


def _show_notes(target: Path) -> None:
    manifest = try_manifest(target)
    for note in manifest.notes if manifest else ():
        print(f"note: {note}")
