"""A lean decode loop for Llama-family models: static cache, one CUDA graph a step, any matrix product.

The same loop runs dense and sparse, so that what is compared is the matrices: `Model` holds, for each place, a
callable x [rows, in] -> [rows, out] (cuBLAS, a sparse layout, an int4 library). What is not a matrix is fused into
three or four small kernels a block (`step`). Token and position live on the device and the largest logit is found
there, so a greedy step needs no host: a step is one graph replay, and the host reads the tokens at the end.

    decoder = Decoder(assemble(weights, dense_linear), batch=1, capacity=1024)
    tokens = decoder.generate(prompt, 256)

On a CPU the same loop runs in plain torch (`step_reference`), without a graph.
"""

from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

from tailcut.errors import InputError
from tailcut.kernels.gpu import prefill, step, step_reference
from tailcut.kernels.gpu.llama import Architecture, rotary_table
from tailcut.kernels.gpu.model import Activated, Model
from tailcut.kernels.gpu.scratch import Scratch, make_scratch

_WARM_UPS: Final = 3  # steps before a capture: kernels compile and libraries allocate in the first


class Operations(Protocol):
    """What `step` and `step_reference` both are."""

    def embed_norm(
        self, table: Tensor, tokens: Tensor, position: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]: ...
    def add_norm(self, delta: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor: ...
    def attend(self, qkv: Tensor, cache: Tensor, rotary: Tensor, position: Tensor, scratch: Scratch) -> Tensor: ...
    def swiglu(self, gate_up: Tensor) -> Tensor: ...
    def choose(self, logits: Tensor, tokens: Tensor, position: Tensor, scratch: Scratch) -> None: ...


@dataclass(frozen=True, slots=True)
class _Graph:
    """A recorded step, and where it leaves its logits."""

    recorded: torch.cuda.CUDAGraph
    logits: Tensor


class Decoder:
    """A model with its cache for `batch` rows of up to `capacity` positions. Greedy."""

    def __init__(
        self,
        model: Model,
        batch: int = 1,
        capacity: int = 1024,
        *,
        operations: Operations | None = None,
        graph: bool | None = None,
    ) -> None:
        architecture, device = model.architecture, model.embedding.device
        _refuse_sizes(architecture, batch, capacity)
        on_gpu = device.type == "cuda"
        self.model, self.batch, self.capacity = model, batch, capacity
        self._operations: Operations = operations or (step if on_gpu else step_reference)
        self._wants_graph = on_gpu if graph is None else graph
        self._graph: _Graph | None = None
        self._rotary = rotary_table(architecture, capacity, device)
        self._scratch = make_scratch(architecture, batch, device)
        shape = (architecture.layers, 2, batch, architecture.kv_heads, capacity, architecture.head_dim)
        self.cache = torch.zeros(shape, dtype=model.embedding.dtype, device=device)
        self.tokens = torch.zeros(batch, capacity + 1, dtype=torch.int32, device=device)
        self.position = torch.zeros(batch, dtype=torch.int32, device=device)
        self.logits = torch.zeros(
            batch, architecture.vocabulary, dtype=model.embedding.dtype, device=device
        )  # the last
        self._used = 0  # positions the host knows to be filled

    def prefill(self, prompt: Tensor) -> Tensor:
        """Start from a prompt [batch, n]; the first new token is chosen. Returns the last logits [batch, vocabulary]."""
        batch, count = prompt.shape
        if batch != self.batch or not 0 < count <= self.capacity:
            raise InputError(
                f"this loop takes {self.batch} rows of 1 to {self.capacity} tokens, got {tuple(prompt.shape)}"
            )
        with torch.inference_mode():
            self.tokens[:, :count] = prompt.to(self.tokens)
            self.position.fill_(count - 1)
            hidden = prefill.run(self.model, prompt.to(self.tokens.device), self.cache, self._rotary)
            self.logits = self.model.head(hidden)
            self._operations.choose(self.logits, self.tokens, self.position, self._scratch)
        self._used = count
        return self.logits

    def pretend(self, length: int, seed: int = 0) -> None:
        """Start from `length` positions of noise instead of a prompt, to time steps: their time is the same."""
        if not 0 <= length < self.capacity:
            raise InputError(f"a loop of {self.capacity} positions cannot pretend {length} and still take a step")
        with torch.inference_mode():
            generator = torch.Generator(self.cache.device).manual_seed(seed)
            self.cache.normal_(generator=generator)
            self.tokens[:, length] = 1
            self.position.fill_(length)
        self._used = length

    def step(self) -> None:
        """One token a row: the token at each row's position runs, the next is chosen; nothing waits for the host."""
        if self._used >= self.capacity:
            raise InputError(f"all {self.capacity} positions of the cache are used; make a loop of a larger capacity")
        with torch.inference_mode():
            if not self._wants_graph:
                self._run()
            else:
                self._graph = self._graph or self._capture()
                self._graph.recorded.replay()
                self.logits = self._graph.logits
        self._used += 1

    def generate(self, prompt: Tensor, count: int) -> Tensor:
        """Prompt [batch, n] -> the `count` tokens after it, int32 [batch, count]."""
        start = prompt.shape[1]
        if count < 1 or start + count - 1 > self.capacity:
            raise InputError(f"{start} + {count} tokens do not fit a cache of {self.capacity} positions")
        self.prefill(prompt)
        for _ in range(count - 1):
            self.step()
        return self.tokens[:, start : start + count].clone()

    def _run(self) -> None:
        """The work of a step, in the order in which a graph records it."""
        model, ops, eps = self.model, self._operations, self.model.architecture.norm_eps
        first = model.blocks[0].attention_norm
        residual, x = ops.embed_norm(model.embedding, self.tokens, self.position, first, eps)
        following = [block.attention_norm for block in model.blocks[1:]] + [model.final_norm]
        for block, cache, next_norm in zip(model.blocks, self.cache, following, strict=True):
            attended = ops.attend(block.qkv(x), cache, self._rotary, self.position, self._scratch)
            x = ops.add_norm(block.o(attended), residual, block.mlp_norm, eps)
            gate_up = block.gate_up
            inner = gate_up.apply(x) if isinstance(gate_up, Activated) else ops.swiglu(gate_up(x))
            x = ops.add_norm(block.down(inner), residual, next_norm, eps)
        self.logits = model.head(x)
        ops.choose(self.logits, self.tokens, self.position, self._scratch)

    def _capture(self) -> "_Graph":
        """A step as a CUDA graph. What the warm-up steps change is put back."""
        saved = [tensor.clone() for tensor in (self.tokens, self.position)]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._run()
                self.position.copy_(saved[1])
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            self._run()
        self.tokens.copy_(saved[0])
        return _Graph(graph, self.logits)


def _refuse_sizes(architecture: Architecture, batch: int, capacity: int) -> None:
    if batch < 1 or capacity < 1:
        raise InputError(f"a loop needs at least one row and one position, got {batch} and {capacity}")
    if architecture.window is not None and capacity > architecture.window:
        raise InputError(
            f"this model looks back on {architecture.window} positions; a loop of {capacity} would show it more"
        )
