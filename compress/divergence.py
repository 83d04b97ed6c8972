"""How far a model's next-token distributions are from a reference's: mean KL(reference || model) of each window.

Scored are the positions that perplexity scores. The heads are applied to a few positions at a time, twice: with a
vocabulary of 262,144 the logits of 300,000 tokens would be 300 GB, the hidden states in front of the head are 1.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tailcut.checkpoint import Checkpoint
from tailcut.compress.blocks import Stream, finish, open_stream, run_through
from tailcut.compress.heads import next_tokens, position_chunks, vocabulary
from tailcut.compress.kl import kl_and_nats, prepared
from tailcut.compress.resident import Weights
from tailcut.compress.skeleton import build_skeleton
from tailcut.compress.spectra import resolve_device
from tailcut.compress.statistics import exact_float32
from tailcut.errors import InputError
from tailcut.progress import Reporter, silent
from tailcut.windows import Tokens

Floats = npt.NDArray[np.float64]
# logits of one model held at once (128 and 512 MB float32), of which about six arrays are alive; few calls for a GPU
_LOGITS: Final = {"cpu": 1 << 25, "cuda": 1 << 27}


@dataclass(frozen=True, slots=True)
class Finished:
    """A model whose blocks have run: its embeddings and head, and the stream behind its last block."""

    weights: Weights
    stream: Stream

    @property
    def vocabulary(self) -> int:
        return vocabulary(self.weights)


def directory_kl(
    model_dir: Path,
    reference_dir: Path,
    windows: Tokens,
    *,
    device: str = "auto",
    batch: int = 1,
    report: Reporter = silent,
) -> Floats:
    """Windows int64 [windows, context] -> mean KL(reference || model) over positions, nats, float64 [windows].

    One block of one model is resident, and the hidden states of both. InputError if the vocabularies differ.
    """
    with exact_float32():
        reference, model = (_run(path, windows, device, batch, report) for path in (reference_dir, model_dir))
        _, kl = window_losses(model, reference, windows)
        return np.asarray(kl / (windows.shape[1] - 1), np.float64)


def window_losses(model: Finished, reference: Finished, windows: Tokens) -> tuple[Floats, Floats]:
    """Sums over every position of a window but the last: nats of the next token under `model`, and KL to `reference`.

    Windows int64 [windows, context] in the streams' batches -> two float64 [windows].
    """
    if model.vocabulary != reference.vocabulary:
        raise InputError(
            f"{model.weights.checkpoint.directory}: a vocabulary of {model.vocabulary}, the reference has "
            f"{reference.vocabulary}; compare models of one family"
        )
    nats: list[float] = []
    kl: list[float] = []
    place = 0
    for ours, theirs in zip(model.stream.batches, reference.stream.batches, strict=True):
        tokens = windows[place : place + len(ours)]
        place += len(ours)
        sums = _batch_losses(model, reference, tokens, ours, theirs)
        nats += sums[0].tolist()
        kl += sums[1].tolist()
    return np.asarray(nats, np.float64), np.asarray(kl, np.float64)


def _batch_losses(model: Finished, reference: Finished, tokens: Tokens, ours: Tensor, theirs: Tensor) -> Tensor:
    """One batch [windows, context, hidden] twice -> float64 [2, windows]."""
    device = model.weights.device
    sums = torch.zeros(2, len(tokens), dtype=torch.float64, device=device)
    for positions in position_chunks(model.weights, len(tokens), tokens.shape[1] - 1, _LOGITS[device.type]):
        logits = finish(model.weights, model.stream, tokens, ours, positions)
        wanted = finish(reference.weights, reference.stream, tokens, theirs, positions).to(device)
        targets = next_tokens(tokens, positions).to(device)
        with torch.inference_mode():
            kl, nats = kl_and_nats(prepared(wanted), logits, targets)
            sums[0] += nats.sum(1, dtype=torch.float64)
            sums[1] += kl.sum(1, dtype=torch.float64)
    return sums.cpu()


def _run(model_dir: Path, windows: Tokens, device: str, batch: int, report: Reporter) -> Finished:
    checkpoint = Checkpoint(model_dir)
    weights = Weights(checkpoint, build_skeleton(checkpoint), resolve_device(device), torch.float32)
    weights.load_rest()
    stream, blocks = open_stream(weights, windows, batch), len(weights.skeleton.blocks)
    run_through(weights, stream, lambda index: report("kl", index, blocks, f"{model_dir.name}, block {index}"))
    report("kl", blocks, blocks)
    return Finished(weights, stream)
