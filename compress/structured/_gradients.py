"""Gradients of a model of which one block is resident: forward with the blocks' inputs kept, then backward block by block.

The loss is the mean nats of a sequence's next tokens. One sequence at a time, so that the squared gradients of single
sequences, whose mean is the diagonal of the Fisher information, come with it. In memory: one block with two arrays of its size
(three while a gradient is made), the inputs of all blocks (hidden size x tokens x blocks; float32 in RAM), one sequence's
logits. Nothing of the model itself but embeddings and head stays.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tailcut.compress.blocks import open_stream
from tailcut.compress.recording import Answer, Call, Tape, in_place_of
from tailcut.compress.resident import Weights
from tailcut.compress.skeleton import linears_of
from tailcut.errors import InputError
from tailcut.windows import Tokens


@dataclass(frozen=True, slots=True)
class Slopes:
    """Of one matrix, as it is stored, float32 on the device: mean gradient, and mean squared gradient of a sequence."""

    gradient: Tensor
    fisher: Tensor


def backward(
    weights: Weights, tokens: Tokens, tell: Callable[[str, int], None]
) -> Iterator[tuple[int, nn.Module, Mapping[str, Slopes]]]:
    """Windows [windows, length] -> block index, resident block and slopes by linear, from the last block to the first.

    `tell` hears "forward" or "backward" and the block before it runs. InputError where a gradient is no finite number.
    """
    weights.load_rest()
    stream = open_stream(weights, tokens, batch=1)
    inputs: list[list[Tensor]] = []
    for index in range(len(weights.skeleton.blocks)):
        tell("forward", index)
        inputs.append([hidden.cpu() for hidden in stream.batches])
        with weights.block(index) as block:
            stream.advance(index, block)
    upstream = [
        _loss_slope(weights, stream.tape, row, hidden) for row, hidden in zip(tokens, stream.batches, strict=True)
    ]
    calls = stream.tape.calls[1]
    stream.batches.clear()
    for index in reversed(range(len(inputs))):
        tell("backward", index)
        with weights.block(index) as block:
            slopes = _through(block, _normal_call(calls[index]), inputs.pop(), upstream, weights.device)
            _require_finite(weights.skeleton.block_prefix(index), slopes)
            yield index, block, slopes


def _loss_slope(weights: Weights, tape: Tape, row: Any, hidden: Tensor) -> Tensor:  # noqa: ANN401  (numpy row of tokens)
    """d loss / d final hidden states [1, length, hidden] of one window, on the CPU."""
    model: Any = weights.skeleton.model
    ids = torch.from_numpy(row.copy())[None].to(weights.device)
    answer = hidden.to(weights.device).clone().requires_grad_()
    with in_place_of(weights.skeleton.blocks, lambda real: Answer(real, tape, answer)), torch.enable_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        loss = cross_entropy(logits, ids[0, 1:])
        (slope,) = torch.autograd.grad(loss, answer)
    return slope.cpu()


def _through(
    block: nn.Module, call: Call, inputs: list[Tensor], upstream: list[Tensor], device: torch.device
) -> dict[str, Slopes]:
    """Slopes of the block's linears; `upstream`, one tensor a window, is moved in front of the block in place."""
    names = [name for name, _ in linears_of(block)]
    matrices = [block.get_parameter(f"{name}.weight").requires_grad_() for name in names]
    sums = [Slopes(*(torch.zeros_like(matrix, dtype=torch.float32) for _ in range(2))) for matrix in matrices]
    for place, kept in enumerate(inputs):
        hidden = kept.to(device).clone().requires_grad_()
        with torch.enable_grad():
            out = call(block, hidden)
            out = out[0] if isinstance(out, tuple) else out
            slope, *grads = torch.autograd.grad(out, [hidden, *matrices], upstream[place].to(device))
        upstream[place] = slope.cpu()
        for grad, total in zip(grads, sums, strict=True):
            single = grad.float()
            total.gradient.add_(single, alpha=1 / len(inputs))
            total.fisher.addcmul_(single, single, value=1 / len(inputs))
    for matrix in matrices:
        matrix.requires_grad_(False)
    return dict(zip(names, sums, strict=True))


def _normal_call(call: Call) -> Call:
    """The call with tensors that autograd may keep: they were noted in inference mode."""
    return Call(
        tuple(map(_normal, call.args)), {name: _normal(value) for name, value in call.kwargs.items()}, call.by_keyword
    )


def _normal(value: Any) -> Any:  # noqa: ANN401  (whatever a family passes its blocks)
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(map(_normal, value))
    if isinstance(value, list):
        return list(map(_normal, value))
    return {name: _normal(one) for name, one in value.items()} if isinstance(value, dict) else value


def _require_finite(prefix: str, slopes: Mapping[str, Slopes]) -> None:
    for name, one in slopes.items():
        if not bool(one.fisher.isfinite().all()):
            raise InputError(f"{prefix}{name}: its gradients overflow on the calibration text; pass --forward float32")
