"""Parity of the static variant with torch: one prompt through prefill.onnx, then tokens through decode.onnx.

The cache is kept as a caller keeps it: fixed arrays, new rows written into free slots, the bias hiding empty ones. For
cached.onnx it is kept as the engine keeps it: the joined cache without its oldest column is the next past.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime

from tailcut.export.check import Logits, Parity, load_torch, require, sensitivity, summary, torch_logits
from tailcut.kernels.decoder import Ints
from tailcut.kernels.session import session_options

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_STEPS: Final = 4
_HIDDEN: Final = np.float32(-1e9)  # exp of it is 0 beside any real score


@dataclass(frozen=True, slots=True)
class StaticPair:
    """Open sessions of the two graphs, and their fixed sizes."""

    prefill: Any  # onnxruntime.InferenceSession
    decode: Any

    @property
    def prompt(self) -> int:
        return int(self.prefill.get_inputs()[0].shape[1])

    @property
    def context(self) -> int:
        return context_of(self.decode)


def check_static(model_dir: Path, prefill: Path, decode: Path, cached: Path | None = None, *, seed: int = 0) -> Parity:
    """Compare the graphs with the model they were made from; InputError when they differ."""
    model = load_torch(model_dir)
    pair = StaticPair(*(_open(path) for path in (prefill, decode)))
    found = require(compare_static(model, pair, seed=seed), model_dir)
    if cached is not None:
        require(compare_cached(model, _open(cached), seed=seed), model_dir)
    return found


def compare_cached(model: "PreTrainedModel", session: Any, *, seed: int = 0) -> Parity:  # noqa: ANN401 onnxruntime
    """Logits of a few tokens from an empty cache against torch's single pass over them."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, int(model.config.get_text_config().vocab_size), (1, min(2 * _STEPS, context_of(session))))
    want, _ = torch_logits(model, tokens, np.ones_like(tokens), None)
    return summary([(run_cached(session, tokens), want[0])], sensitivity(model, tokens))


def run_cached(session: Any, tokens: Ints) -> Logits:  # noqa: ANN401 onnxruntime
    """tokens [1, n] one by one through cached.onnx -> logits [n, vocab]."""
    context = context_of(session)
    past = {
        value.name: np.zeros(value.shape, np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past_key_values.")
    }
    logits = []
    for place in range(tokens.shape[1]):
        bias = np.full((1, 1, 1, context), _HIDDEN)
        bias[..., context - 1 - place :] = 0
        ids = tokens[:, place : place + 1]
        found = _run(session, {"input_ids": ids, "position_ids": np.array([[place]]), "attention_bias": bias} | past)
        past = {name: found[name.replace("past_key_values.", "present.")][:, :, 1:] for name in past}
        logits.append(found["logits"][0])
    return np.concatenate(logits)


def context_of(session: Any) -> int:  # noqa: ANN401 onnxruntime
    """Columns of a static decode graph's attention bias."""
    shapes = {value.name: value.shape for value in session.get_inputs()}
    return int(shapes["attention_bias"][3])


def compare_static(model: "PreTrainedModel", pair: StaticPair, *, seed: int = 0) -> Parity:
    """Logits of the prompt and of a few decoded tokens against torch's single pass over all of them."""
    steps = min(_STEPS, pair.context - pair.prompt)
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, int(model.config.get_text_config().vocab_size), (1, pair.prompt + steps))
    want, _ = torch_logits(model, tokens, np.ones_like(tokens), None)
    got = run_static(pair, tokens)
    return summary([(got, want[0])], sensitivity(model, tokens))


def run_static(pair: StaticPair, tokens: Ints) -> Logits:
    """tokens [1, prompt + steps] -> logits [prompt + steps, vocab]."""
    prompt = pair.prompt
    upper = np.triu(np.full((1, 1, prompt, prompt), _HIDDEN), 1)
    feeds: dict[str, npt.NDArray[Any]] = {
        "input_ids": tokens[:, :prompt],
        "position_ids": np.arange(prompt)[None],
        "attention_bias": upper,
    }
    found = _run(pair.prefill, feeds)
    cache = {
        value.name: np.zeros(value.shape, np.float32)
        for value in pair.decode.get_inputs()
        if value.name.startswith("past_key_values.")
    }
    _keep(cache, found, slice(0, prompt))
    logits = [found["logits"][0]]
    for place in range(prompt, tokens.shape[1]):
        bias = np.full((1, 1, 1, pair.context), _HIDDEN)
        bias[..., :place] = bias[..., -1] = 0
        step: dict[str, npt.NDArray[Any]] = {
            "input_ids": tokens[:, place : place + 1],
            "position_ids": np.array([[place]]),
            "attention_bias": bias,
        }
        found = _run(pair.decode, step | cache)
        if place < pair.context - 1:
            _keep(cache, found, slice(place, place + 1))
        logits.append(found["logits"][0])
    return np.concatenate(logits)


def _keep(cache: dict[str, npt.NDArray[Any]], found: dict[str, npt.NDArray[Any]], place: slice) -> None:
    for name, array in cache.items():
        array[:, :, place] = found[name.replace("past_key_values.", "new.")]


def _run(session: Any, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:  # noqa: ANN401 onnxruntime
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def _open(path: Path) -> Any:  # noqa: ANN401 onnxruntime has no types
    return onnxruntime.InferenceSession(
        str(path), session_options(threads=None, spinning=False), providers=["CPUExecutionProvider"]
    )
