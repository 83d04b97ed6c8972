"""Perplexity of dense beside sparse on the same windows of the same text, and their ratio with an interval.

`compare` is pure and takes each window's nats from wherever they were computed (torch on directories, ONNX
Runtime on packages). The interval resamples windows in pairs: text differs far more from window to window than
the two models do on one window.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, Literal

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
Floats = npt.NDArray[np.float32]
_POSITIONS: Final = 64  # whose distributions are in float64 at once: 100 MB with a vocabulary of 50,000
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
    kl_nats: Nll | None = None,
) -> Quality:
    """Nats summed over each window's scored tokens, float64 [windows] for both -> Quality.

    kl_nats: mean KL(dense || sparse) over each window's positions, float64 [windows].

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
        kl_nats=() if kl_nats is None else tuple(float(value) for value in kl_nats),
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
    kl: bool = False,
    report: Reporter = silent,
) -> Quality:
    """Score both packages with ONNX Runtime on the first `limit` windows of the text (None: all), and KL if asked for."""
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
        kl_nats=package_kl(dense, sparse, windows, workload, report) if kl else None,
    )


def package_kl(dense: Path, sparse: Path, windows: Tokens, workload: Workload, report: Reporter = silent) -> Nll:
    """Windows int64 [n, context] -> mean KL(dense || sparse) over the scored positions, nats, float64 [n].

    Both packages are open at once, in ONNX Runtime; the logits of one window travel from each (4 bytes a token and word).
    """
    found = []
    with ExitStack() as stack:
        workers = [stack.enter_context(_opened(package, workload, "onnxruntime")) for package in (dense, sparse)]
        for done, window in enumerate(windows, 1):
            logits = [worker.ask("logits", {"tokens": window[None]})[1]["logits"][0, :-1] for worker in workers]
            found.append(float(np.mean(_divergence(*logits))))
            report("kl", done, len(windows))
    return np.asarray(found, np.float64)


def _divergence(dense: Floats, sparse: Floats) -> Nll:
    """Logits float32 [positions, vocabulary] twice -> KL(dense || sparse) float64 [positions], some positions at a time."""
    parts = []
    for start in range(0, len(dense), _POSITIONS):
        log_p, log_q = (_log_softmax(one[start : start + _POSITIONS].astype(np.float64)) for one in (dense, sparse))
        parts.append((np.exp(log_p) * (log_p - log_q)).sum(axis=-1))
    return np.concatenate(parts)


def _log_softmax(logits: Nll) -> Nll:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), np.float64)


def package_nll(
    package: Path, windows: Tokens, workload: Workload, report: Reporter = silent, *, engine_name: str = "onnxruntime"
) -> Nll:
    """windows int64 [n, context] -> nats summed over each window's scored tokens, float64 [n].

    engine_name: "onnxruntime" (float32 arithmetic on the stored weights), or an engine with a score command of its own.
    """
    found = []
    with _opened(package, workload, engine_name) as worker:
        for done, window in enumerate(windows, 1):
            _, arrays = worker.ask("score", {"tokens": window[None]})
            found.append(float(arrays["nll"][0]))
            report(f"perplexity {package.name}", done, len(windows))
    return np.asarray(found, np.float64)


@contextmanager
def _opened(package: Path, workload: Workload, engine_name: str) -> Iterator[Worker]:
    """A worker of the engine that holds the package."""
    engine = registry.load(engine_name)
    if reason := engine.available():
        raise MissingEnvironmentError(f"engine {engine_name}: {reason}")
    if reason := engine.unfit(package, workload):
        raise InputError(f"{package}: {reason}")
    launch = engine.launch(package, "prefill", workload)
    with Worker(launch, timeout_s=1800.0) as worker:
        worker.ask("open", **launch.settings)
        yield worker


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
