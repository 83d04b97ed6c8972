"""Parity with torch: the exported graph must give transformers' logits before a package is published.

Three runs on seeded random tokens, each against the model in float32 with eager attention:
    prefill   batch 2, the second row left-padded; every real position
    cached    the same batch, then token by token from the cache
    single    one row, token by token from an empty cache
model.onnx and fused.onnx go through them on plain ONNX Runtime, function bodies and all. Where a package rounds its
weights, torch gets the rounded ones, and where fused.onnx keeps a float16 cache, torch's is rounded after every run: the
limits below are about arithmetic, what rounding costs is stated apart.

Tolerance: both sides sum in float32 in different orders. How far that moves a logit depends on the model (a badly cut one
amplifies rounding tens of times more), so it is measured: torch runs again with its embeddings moved by one float32
rounding, and the graph may differ by ROUNDINGS times the most that changes, or by RELATIVE_TOLERANCE of the largest logit
if that is more. Measured, SmolLM2-135M: graph 1.1e-4 against sensitivity 1e-4; with half its weights cut by magnitude
3.3e-3 against 1e-3 to 2e-3; int8 with a float16 cache 4.0e-3, where rounding torch's cache moves logits by 5.1e-3. A wrong mask, scale or rotation changes logits by their own size.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import numpy.typing as npt
import onnxruntime

from tailcut.checkpoint import Checkpoint, read_config
from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.export.fused_check import FusedRunner
from tailcut.export.layouts import Storage
from tailcut.export.quantise import Matrix, round_trip
from tailcut.export.spec import DecoderSpec
from tailcut.export.uneven import load_uneven
from tailcut.kernels.decoder import Decoder, Ints
from tailcut.kernels.package import FUSED_NAME, MODEL_NAME
from tailcut.kernels.session import session_options
from tailcut.quantised import Precision
from tailcut.shapes import differs
from tailcut.sidecar import Sidecars

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Details = dict[str, str | int | float | bool | None]
Logits = npt.NDArray[np.float32]
RELATIVE_TOLERANCE: Final = 2e-4  # of the largest |logit|
ROUNDINGS: Final = 10.0
DRAWS: Final = 4
_PROMPT, _STEPS, _PADDING, _SINGLE = 12, 4, 5, 8


@dataclass(frozen=True, slots=True)
class Parity:
    """How far the graph is from torch: the largest |difference| of a logit, and the share of equal top tokens."""

    max_abs_error: float
    max_abs_logit: float
    top1_agreement: float
    positions: int
    sensitivity: float = 0.0  # largest change of a torch logit when embeddings move by one rounding
    cache_rounding: float = 0.0  # the same when the cache is rounded to float16, where the graph's is

    @property
    def tolerance(self) -> float:
        # both sides round: what lies between two numbers of float16 may go to one here and to the other there
        rounded = 2 * self.cache_rounding
        return max(RELATIVE_TOLERANCE * max(self.max_abs_logit, 1.0), ROUNDINGS * self.sensitivity, rounded)

    @property
    def passed(self) -> bool:
        return bool(self.max_abs_error <= self.tolerance)

    def details(self) -> dict[str, float | int]:
        """For the manifest."""
        rounding = {"parity_cache_rounding": self.cache_rounding} if self.cache_rounding else {}
        return rounding | {
            "parity_max_abs_error": self.max_abs_error,
            "parity_max_abs_logit": self.max_abs_logit,
            "parity_tolerance": self.tolerance,
            "parity_sensitivity": self.sensitivity,
            "parity_top1_agreement": self.top1_agreement,
            "parity_positions": self.positions,
        }


def check_parity(model_dir: Path, graph: Path, *, seed: int = 0) -> Parity:
    """Compare `graph` (an ONNX file) with the model it was made from; InputError when they differ."""
    model = load_torch(model_dir)
    return require(compare(model, Decoder(None, session=_plain_session(graph)), seed=seed), model_dir)


def _plain_session(graph: Path) -> Any:  # noqa: ANN401 onnxruntime has no types
    options = session_options(threads=None, spinning=False)
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def check_package(
    model_dir: Path, directory: Path, spec: DecoderSpec, storage: Storage, sidecars: Sidecars | None = None
) -> Details:
    """Compare model.onnx, and fused.onnx where there is one, with torch *at the stored weights*; for the manifest."""
    model = load_torch(model_dir)
    round_weights(model, spec, storage, sidecars or Sidecars())
    portable = compare(model, Decoder(None, session=_plain_session(directory / MODEL_NAME)))
    found: Details = dict(require(portable, model_dir).details())
    if (directory / FUSED_NAME).is_file():
        runner = FusedRunner(directory / FUSED_NAME)
        halves = storage.kv_cache == "float16"
        fused = compare(model, runner, moved=portable.sensitivity, halves=halves)
        if halves and not np.isfinite(fused.max_abs_error):
            raise InputError(f"{model_dir}: keys or values do not fit a float16 cache (65504); pass --kv-cache float32")
        require(fused, model_dir)
        found |= {f"fused_{name}": value for name, value in fused.details().items()}
    return found


def round_weights(model: "PreTrainedModel", spec: DecoderSpec, storage: Storage, sidecars: Sidecars) -> None:
    """Give torch the weights that the package stores, so that only arithmetic is compared.

    Matrices with integers are q * scale, which the directory's dtype may hold rounded.
    """
    inside = [*spec.linears, *(name for name in (spec.project_in, spec.project_out) if name)]
    ends = [model.get_input_embeddings(), *([] if spec.tied else [model.get_output_embeddings()])]  # type: ignore[no-untyped-call]
    for name in inside:
        weight = cast("Tensor", model.get_submodule(name).weight).data
        matrix = weight.T if spec.conv1d else weight
        if name in sidecars:
            _put(matrix, sidecars.read(name).dense())
        else:
            _round(matrix, storage.weights)
    for module in ends:
        _round(cast("Tensor", module.weight).data, storage.head)


def _round(weight: "Tensor", precision: Precision) -> None:
    if precision != "float32":
        _put(weight, round_trip(weight.numpy(), precision))


def _put(weight: "Tensor", values: Matrix) -> None:
    import torch

    weight.copy_(torch.from_numpy(np.ascontiguousarray(values)))


def require(parity: Parity, model_dir: Path) -> Parity:
    """The parity if it passed; InputError otherwise."""
    if not parity.passed:
        raise InputError(
            f"{model_dir}: the exported graph differs from torch by {parity.max_abs_error:.3g} (limit "
            f"{parity.tolerance:.3g}, top tokens agree at {parity.top1_agreement:.0%}); nothing was written. This model "
            "deviates from its family in a way tailcut does not know; please report its config"
        )
    return parity


def load_torch(model_dir: Path) -> "PreTrainedModel":
    """The model in float32 with eager attention, from safetensors only."""
    try:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar
    except ImportError as error:
        raise MissingEnvironmentError(
            "checking an export needs torch and transformers: pip install 'tailcut[compress]', or pass --no-check"
        ) from error
    if Checkpoint(model_dir).packed:
        raise InputError(
            f"{model_dir}: torch cannot read packed matrices; export an unpacked directory or pass --no-check"
        )
    disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if differs(read_config(model_dir)):
        return load_uneven(model_dir)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=torch.float32, attn_implementation="eager", use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(f"{model_dir}: transformers cannot load the model ({str(error).splitlines()[0]})") from error
    model.requires_grad_(False)
    return cast("PreTrainedModel", model)


def compare(
    model: "PreTrainedModel",
    decoder: Decoder | FusedRunner,
    *,
    seed: int = 0,
    moved: float | None = None,
    halves: bool = False,
) -> Parity:
    """Run both sides over prefill, cached decode and a single row.

    moved: the model's sensitivity where it is known. halves: the graph's cache is float16.
    """
    rng = np.random.default_rng(seed)
    vocab = int(model.config.get_text_config().vocab_size)
    tokens = rng.integers(0, vocab, (2, _PROMPT + _STEPS))
    mask = np.ones_like(tokens)
    mask[1, :_PADDING] = 0
    pairs = [*_batch(model, decoder, tokens, mask, halves), *_single(model, decoder, tokens[:1, :_SINGLE], halves)]
    rounding = cache_rounding(model, tokens) if halves else 0.0
    return summary(pairs, sensitivity(model, tokens) if moved is None else moved, rounding)


def sensitivity(model: "PreTrainedModel", tokens: Ints) -> float:
    """Largest change of a logit when every embedding value moves by about one float32 rounding (seeded, DRAWS times).

    One draw is not enough: of a model cut in half by magnitude, draws and prompts lie a factor of 20 apart.
    """
    import torch

    rng = np.random.default_rng(0)
    changes = []
    with torch.inference_mode():
        embedded = model.get_input_embeddings()(torch.from_numpy(np.ascontiguousarray(tokens)))
        still = model(inputs_embeds=embedded).logits
        for _ in range(DRAWS):
            noise = rng.standard_normal(tuple(embedded.shape), np.float32) * np.finfo(np.float32).eps
            moved = model(inputs_embeds=embedded * (1 + torch.from_numpy(noise))).logits
            changes.append(float((moved - still).abs().max()))
    return max(changes)


def cache_rounding(model: "PreTrainedModel", tokens: Ints) -> float:
    """Largest change of a torch logit after the prompt when the prompt's cache is rounded to float16."""
    mask = np.ones_like(tokens)
    exact, _ = torch_logits(model, tokens, mask, None)
    _, cache = torch_logits(model, tokens[:, :_PROMPT], mask[:, :_PROMPT], None)
    rounded, _ = torch_logits(model, tokens[:, _PROMPT:], mask, _kept(cache, True))
    return float(np.abs(rounded - exact[:, _PROMPT:]).max())


def _batch(
    model: "PreTrainedModel", decoder: Decoder | FusedRunner, tokens: Ints, mask: Ints, halves: bool
) -> list[tuple[Logits, Logits]]:
    """Left-padded prefill, then steps; both sides keep their own cache."""
    want, cache = torch_logits(model, tokens[:, :_PROMPT], mask[:, :_PROMPT], None)
    got = decoder.prefill(tokens[:, :_PROMPT], mask[:, :_PROMPT])
    real = mask[:, :_PROMPT].astype(bool)
    pairs = [(got[real], want[real])]
    for end in range(_PROMPT + 1, _PROMPT + _STEPS + 1):
        want, cache = torch_logits(model, tokens[:, end - 1 : end], mask[:, :end], _kept(cache, halves))
        pairs.append((decoder.step(tokens[:, end - 1]), want[:, -1]))
    return pairs


def _single(
    model: "PreTrainedModel", decoder: Decoder | FusedRunner, tokens: Ints, halves: bool
) -> list[tuple[Logits, Logits]]:
    """One row token by token from an empty cache. Torch steps too: LongRoPE keeps early keys as they were made."""
    pairs, cache = [], None
    for end in range(1, tokens.shape[1] + 1):
        last = tokens[:, end - 1 : end]
        want, cache = torch_logits(model, last, np.ones((1, end), np.int64), _kept(cache, halves))
        got = decoder.prefill(last)[:, -1] if end == 1 else decoder.step(last[:, 0])
        pairs.append((got, want[:, -1]))
    return pairs


def _kept(cache: Any, halves: bool) -> Any:  # noqa: ANN401 transformers' cache
    """What a graph with a float16 cache has kept of it."""
    for layer in cache.layers if halves and cache is not None else ():
        layer.keys, layer.values = layer.keys.half().float(), layer.values.half().float()
    return cache


def torch_logits(model: "PreTrainedModel", tokens: Ints, mask: Ints, cache: Any) -> tuple[Logits, Any]:  # noqa: ANN401 transformers' cache
    """Logits of the last tokens.shape[1] positions of a row with this mask, and the cache after them."""
    import torch

    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, -tokens.shape[1] :]
    with torch.inference_mode():
        out = model(
            input_ids=torch.from_numpy(np.ascontiguousarray(tokens)),
            attention_mask=torch.from_numpy(np.ascontiguousarray(mask)),
            position_ids=torch.from_numpy(np.ascontiguousarray(positions)),
            past_key_values=cache,
            use_cache=True,
        )
    return out.logits.numpy(), out.past_key_values


def summary(pairs: list[tuple[Logits, Logits]], sensitivity: float = 0.0, cache_rounding: float = 0.0) -> Parity:
    """Parity over (got, want) pairs of logits [..., vocab]."""
    got = np.concatenate([pair[0].reshape(-1, pair[0].shape[-1]) for pair in pairs])
    want = np.concatenate([pair[1].reshape(-1, pair[1].shape[-1]) for pair in pairs])
    error = float(np.abs(got - want).max())
    return Parity(
        max_abs_error=error if np.isfinite(got).all() else float("inf"),
        max_abs_logit=float(np.abs(want).max()),
        top1_agreement=float((got.argmax(-1) == want.argmax(-1)).mean()),
        positions=len(want),
        sensitivity=sensitivity,
        cache_rounding=cache_rounding,
    )
