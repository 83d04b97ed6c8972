"""Perplexity of dense beside sparse on the same windows of the same text, and their ratio with an interval.

`compare` is pure and takes each window's nats from wherever they were computed (torch on directories, ONNX
Runtime on packages). The interval resamples windows in pairs: text differs far more from window to window than
the two models do on one window.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tailcut.bench import engines as registry
from tailcut.bench.stats import mean_exp_ratio
from tailcut.bench.worker import Worker
from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.manifest import read_manifest
from tailcut.progress import Reporter, silent
from tailcut.results import Quality, Workload
from tailcut.windows import EvalText, Tokens, perplexity, split_windows

Nll = npt.NDArray[np.float64]
Role = Literal["dense", "sparse"]


def compare(
    dense_nll: Nll,
    sparse_nll: Nll,
    *,
    text: EvalText,
    context: int,
    bos: int | None,
    notes: Sequence[str] = (),
    measured_with: str = "torch",
    confidence: float = 0.95,
    seed: int = 0,
) -> Quality:
    """Nats summed over each window's scored tokens, float64 [windows] for both -> Quality.

    context - 1 tokens a window are scored: all but the first, which is the begin-of-text token if there is one.
    """
    if dense_nll.shape != sparse_nll.shape or dense_nll.ndim != 1 or not dense_nll.size:
        raise InputError(f"quality needs the same windows twice, got {dense_nll.shape} and {sparse_nll.shape}")
    if not (np.isfinite(dense_nll).all() and np.isfinite(sparse_nll).all()):
        raise InputError(f"{text.name}: a window's log-likelihood is not finite; the model's weights are damaged")
    scored = context - 1
    return Quality(
        text=text.name,
        text_sha256=text.sha256,
        joining=text.joining,
        context=context,
        bos=bos,
        tokens_scored=scored * dense_nll.size,
        dense_perplexity=perplexity(dense_nll, scored),
        sparse_perplexity=perplexity(sparse_nll, scored),
        ratio=mean_exp_ratio(dense_nll, sparse_nll, scored, confidence=confidence, seed=seed),
        dense_nll=tuple(float(value) for value in dense_nll),
        sparse_nll=tuple(float(value) for value in sparse_nll),
        measured_with=measured_with,
        notes=tuple(notes),
    )


def package_quality(
    dense: Path,
    sparse: Path,
    text: EvalText,
    *,
    context: int,
    limit: int | None = None,
    workload: Workload,
    report: Reporter = silent,
) -> Quality:
    """Score both packages with ONNX Runtime on the first `limit` windows of the text (None: all)."""
    windows, bos = tokenise(dense, text, context, limit)
    scores: dict[Role, Nll] = {
        "dense": package_nll(dense, windows, workload, report),
        "sparse": package_nll(sparse, windows, workload, report),
    }
    notes = tuple(dict.fromkeys((*read_manifest(dense).notes, *read_manifest(sparse).notes)))
    return compare(
        scores["dense"],
        scores["sparse"],
        text=text,
        context=context,
        bos=bos,
        notes=notes,
        measured_with="onnxruntime",
        confidence=workload.confidence,
        seed=workload.seed,
    )


def package_nll(
    package: Path, windows: Tokens, workload: Workload, report: Reporter = silent, *, engine_name: str = "onnxruntime"
) -> Nll:
    """windows int64 [n, context] -> nats summed over each window's scored tokens, float64 [n].

    engine_name: "onnxruntime" (float32 arithmetic on the stored weights), or an engine with a score command of its own.
    """
    engine = registry.load(engine_name)
    if reason := engine.available():
        raise MissingEnvironmentError(f"engine {engine_name}: {reason}")
    if reason := engine.unfit(package, workload):
        raise InputError(f"{package}: {reason}")
    launch = engine.launch(package, "prefill", workload)
    found = []
    with Worker(launch, timeout_s=1800.0) as worker:
        worker.ask("open", **launch.settings)
        for done, window in enumerate(windows, 1):
            _, arrays = worker.ask("score", {"tokens": window[None]})
            found.append(float(arrays["nll"][0]))
            report(f"perplexity {package.name}", done, len(windows))
    return np.asarray(found, np.float64)


def tokenise(package: Path, text: EvalText, context: int, limit: int | None) -> tuple[Tokens, int | None]:
    """The text's windows [n, context] by the package's own tokenizer, and its begin-of-text token if it adds one."""
    tokenizer = read_tokenizer(package)
    bos = begin_of_text(tokenizer)
    tokens = tokenizer.encode(text.text, add_special_tokens=False).ids
    return split_windows(tokens, context, bos, limit), bos


def read_tokenizer(package: Path) -> Tokenizer:
    """tokenizer.json of a package; InputError if there is none or it is damaged."""
    path = package / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"{path}: there is no tokenizer, and perplexity needs one; export from a model that has it")
    try:
        tokenizer: Tokenizer = Tokenizer.from_str(path.read_text())
    # the tokenizers library raises bare Exception for every malformed file
    except Exception as error:
        raise InputError(f"{path}: not a tokenizer file ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def begin_of_text(tokenizer: Tokenizer) -> int | None:
    """The token that the tokenizer's own post-processor puts before a text, None if it puts none."""
    with_special = tokenizer.encode("a", add_special_tokens=True)
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    ids = with_special.ids
    return ids[0] if len(ids) > len(plain) and with_special.special_tokens_mask[0] else None


def read_nll(path: Path) -> Nll:
    """Per-window nats from a JSON list or an .npy file (never a pickle)."""
    try:
        loaded = np.load(path, allow_pickle=False) if path.suffix == ".npy" else json.loads(path.read_bytes())
        return np.asarray(loaded, np.float64)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: not a list of per-window log-likelihoods ({error})") from error
