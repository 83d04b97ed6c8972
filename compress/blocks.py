"""Block by block through a causal LM: one decoder block and the activations are resident, never the model.

`open_stream` runs the model's own forward with recorders in the place of the blocks; what they noted drives the
real blocks one at a time. `finish` is again the model's own forward (final norm, head, soft-capping), with blocks
that answer the hidden states that were computed. Nothing here knows a family.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from tailcut.compress.heads import vocabulary
from tailcut.compress.recording import Answer, Recorder, Tape, in_place_of
from tailcut.compress.resident import Weights
from tailcut.errors import InputError
from tailcut.windows import Tokens

TOKENS_PER_BATCH: Final = 2048  # on a CPU
# on a GPU, where few tokens are launches and little else: float32 inputs of the widest matrix of a block
_BATCH_BYTES: Final = 1 << 28


@dataclass(slots=True)
class Stream:
    """Hidden states on their way through the blocks: one tensor [sequences, tokens, hidden] per batch."""

    batches: list[Tensor]
    tape: Tape
    device: torch.device

    def watch(self, index: int, block: nn.Module) -> None:
        """Run one block for its hooks' sake; the stream stays where it is."""
        for hidden in self.batches:
            self._run(index, block, hidden)

    def advance(self, index: int, block: nn.Module) -> None:
        """Replace the hidden states by the block's output."""
        for place, hidden in enumerate(self.batches):
            self.batches[place] = self._run(index, block, hidden).to(hidden.device)

    def again(self) -> "Stream":
        """The same stream where it stands, to be moved on its own."""
        return type(self)(list(self.batches), self.tape, self.device)

    def _run(self, index: int, block: nn.Module, hidden: Tensor) -> Tensor:
        with torch.inference_mode():
            out = self.tape.calls[len(hidden)][index](block, hidden.to(self.device))
        result: Tensor = out[0] if isinstance(out, tuple) else out
        return result


def open_stream(weights: Weights, tokens: Tokens, batch: int | None = None) -> Stream:
    """Token windows [windows, length] -> the stream in front of block 0. Call `weights.load_rest()` before."""
    require_known_tokens(weights, tokens)
    size = batch or max(1, _tokens_per_batch(weights) // tokens.shape[1])
    blocks, tape = weights.skeleton.blocks, Tape()
    home = _home(weights, tokens)
    batches: list[Tensor] = []
    with weights.block(0), in_place_of(blocks, lambda real: Recorder(real, tape)):
        for start in range(0, len(tokens), size):
            tape.begin()
            _forward(weights, tokens[start : start + size], positions=None)
            batches.append(tape.end(len(blocks)).to(home))
    return Stream(batches, tape, weights.device)


def run_through(weights: Weights, stream: Stream, tell: Callable[[int], None] = lambda index: None) -> None:
    """The stream from in front of block 0 to behind the last one; `tell` hears of each block before it runs."""
    for index in range(len(weights.skeleton.blocks)):
        tell(index)
        with weights.block(index) as block:
            stream.advance(index, block)


def finish(weights: Weights, stream: Stream, tokens: Tokens, hidden: Tensor, positions: Tensor) -> Tensor:
    """Final hidden states of the windows `tokens` [n, length] -> logits [n, positions, vocabulary] float32."""
    answer = hidden.to(weights.device)
    with in_place_of(weights.skeleton.blocks, lambda real: Answer(real, stream.tape, answer)):
        return _forward(weights, tokens, positions).float()


@contextmanager
def watched(block: nn.Module, receivers: Mapping[str, Callable[[Tensor], None]]) -> Iterator[None]:
    """Give the input of each named linear to its receiver while the context lasts."""

    def hook(receive: Callable[[Tensor], None]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: receive(inputs[0])

    handles = [block.get_submodule(name).register_forward_pre_hook(hook(item)) for name, item in receivers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def require_known_tokens(weights: Weights, tokens: Tokens) -> None:
    """Token ids inside the embedding and windows inside the position range; InputError otherwise."""
    model: Any = weights.skeleton.model
    rows = vocabulary(weights)
    if tokens.size and int(tokens.max()) >= rows:
        raise InputError(
            f"{weights.checkpoint.directory}: token {int(tokens.max())} is outside the model's vocabulary of {rows}; "
            "tokenizer and weights do not belong together"
        )
    limit = max_positions(model)
    if tokens.shape[1] > limit:
        raise InputError(f"windows of {tokens.shape[1]} tokens are longer than the model's {limit} positions")


def max_positions(model: Any) -> int:  # noqa: ANN401  (untyped library object)
    """The longest sequence the model's config allows (2^31 when it states none)."""
    return int(getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or 2**31)


def _forward(weights: Weights, tokens: Tokens, positions: Tensor | None) -> Tensor:
    """The model on windows [n, length]: logits at `positions`, or at the last one when None."""
    model: Any = weights.skeleton.model
    ids = torch.from_numpy(tokens.copy()).to(weights.device)
    with torch.inference_mode():
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            keep = 1 if positions is None else positions.to(weights.device)
            logits: Tensor = model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits
            return logits
        logits = model(input_ids=ids, use_cache=False).logits
        return logits[:, -1:] if positions is None else logits[:, positions.to(weights.device)]


def _tokens_per_batch(weights: Weights) -> int:
    if weights.device.type != "cuda":
        return TOKENS_PER_BATCH
    widest = max(max(parameter.shape) for parameter in weights.skeleton.blocks[0].parameters())
    return max(TOKENS_PER_BATCH, _BATCH_BYTES // (4 * widest))


def _home(weights: Weights, tokens: Tokens) -> torch.device:
    """Where activations wait: on the device if they take less than a third of its free memory, else in RAM."""
    if weights.device.type != "cuda":
        return weights.device
    config: Any = weights.skeleton.model.config
    width = int(config.get_text_config(decoder=True).hidden_size)
    free, _ = torch.cuda.mem_get_info(weights.device)
    return weights.device if tokens.size * width * 4 < free / 3 else torch.device("cpu")
