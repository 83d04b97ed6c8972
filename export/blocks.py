"""The parts of a decoder as graph fragments, shared by the dynamic and the static graph.

Shapes: x [batch, sequence, hidden]; queries, keys and values [batch, sequence, heads, head_dim] until attention,
which works on [batch, kv_heads, group * sequence, head_dim]: the query heads that share a key/value head become rows of
one matrix product, so K and V are never repeated.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from tailcut.errors import InputError
from tailcut.export.embedding import Vocabulary
from tailcut.export.graph import Graph
from tailcut.export.layouts import Linears
from tailcut.export.spec import AttentionSpec, BlockSpec, DecoderSpec, MlpSpec, Rotary
from tailcut.export.weights import Weights

Cache = Callable[[int, str, str], tuple[str, str]]  # (block, new keys, new values) -> all keys, all values


@dataclass(frozen=True, slots=True)
class Emitter:
    """Writes one graph. `primitive` spells LayerNormalization and Gelu in basic ops (DeepSparse splits on them)."""

    graph: Graph
    weights: Weights
    linears: Linears
    spec: DecoderSpec
    primitive: bool = False
    fixed: tuple[int, int] | None = None  # tokens and total of a static graph of batch 1

    def norm(self, x: str, module: str | None, size: int) -> str:
        """Normalise the last axis of x [..., size]; unchanged when the family has no norm there."""
        if module is None:
            return x
        if self.spec.norm.kind == "layer":
            return self._layer_norm(x, module, size)
        weight = self.weights.vector(module, "weight", size) + np.float32(self.spec.norm.offset)
        y = self._divide_by_root(x, self.graph.op("Pow", x, self.graph.real(2.0)))
        return self.graph.op("Mul", y, self.graph.weight(f"{module}.weight", weight))

    def _layer_norm(self, x: str, module: str, size: int) -> str:
        graph = self.graph
        ones, zeros = np.ones(size, np.float32), np.zeros(size, np.float32)
        has = self.weights.has
        scale = self.weights.vector(module, "weight", size) if has(module) else ones
        shift = self.weights.vector(module, "bias", size) if has(module, "bias") else zeros
        weight, bias = graph.weight(f"{module}.weight", scale), graph.weight(f"{module}.bias", shift)
        if not self.primitive:
            return graph.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=self.spec.norm.eps)
        centred = graph.op("Sub", x, self._mean(x))
        y = self._divide_by_root(centred, graph.op("Pow", centred, graph.real(2.0)))
        return graph.op("Add", graph.op("Mul", y, weight), bias)

    def _divide_by_root(self, x: str, squares: str) -> str:
        graph = self.graph
        return graph.op(
            "Div", x, graph.op("Sqrt", graph.op("Add", self._mean(squares), graph.real(self.spec.norm.eps)))
        )

    def _mean(self, x: str) -> str:
        if self.graph.opset < 18:  # axes became an input in opset 18
            return self.graph.op("ReduceMean", x, axes=[-1], keepdims=1)
        return self.graph.op("ReduceMean", x, self.graph.constant([-1]), keepdims=1)

    def activation(self, x: str, kind: str) -> str:
        """One of transformers' activations by name."""
        op = self.graph.op
        if kind in ("silu", "swish"):
            return op("Mul", x, op("Sigmoid", x))
        if kind == "quick_gelu":
            return op("Mul", x, op("Sigmoid", op("Mul", x, self.graph.real(1.702))))
        if kind == "relu":
            return op("Relu", x)
        if kind == "gelu":
            return self._gelu(x) if self.primitive else op("Gelu", x)
        if kind in ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"):
            return self._gelu_tanh(x) if self.primitive else op("Gelu", x, approximate="tanh")
        raise InputError(f"config.json: activation {kind!r} is not exported; silu, relu, gelu and its variants are")

    def _gelu(self, x: str) -> str:
        op, real = self.graph.op, self.graph.real
        inner = op("Add", op("Erf", op("Div", x, real(math.sqrt(2)))), real(1.0))
        return op("Mul", op("Mul", x, inner), real(0.5))

    def _gelu_tanh(self, x: str) -> str:
        op, real = self.graph.op, self.graph.real
        cubic = op("Mul", op("Mul", op("Mul", x, x), x), real(0.044715))
        inner = op("Tanh", op("Mul", op("Add", x, cubic), real(math.sqrt(2 / math.pi))))
        return op("Mul", op("Mul", x, op("Add", inner, real(1.0))), real(0.5))

    def softcap(self, x: str, cap: float | None) -> str:
        """cap * tanh(x / cap), or x."""
        if cap is None:
            return x
        limit = self.graph.real(cap)
        return self.graph.op("Mul", self.graph.op("Tanh", self.graph.op("Div", x, limit)), limit)

    def mlp(self, x: str, spec: MlpSpec) -> str:
        """The feed-forward part: [batch, sequence, hidden] -> same."""
        hidden, wide = self.spec.hidden, self.spec.width_of(spec)
        if not spec.gated:
            inner = self.activation(self.linears.apply(x, spec.up[0], wide, hidden), spec.activation)
        else:
            gate, up = self._gate_and_up(x, spec)
            inner = self.graph.op("Mul", self.activation(gate, spec.activation), up)
        return self.linears.apply(inner, spec.down, hidden, wide)

    def _gate_and_up(self, x: str, spec: MlpSpec) -> tuple[str, str]:
        hidden, wide = self.spec.hidden, self.spec.width_of(spec)
        if len(spec.up) == 2 and not self.linears.storage.joins:
            gate, up = (self.linears.apply(x, module, wide, hidden) for module in spec.up)
            return gate, up
        fused = self.gate_up(x, spec)
        gate, up = self.graph.ops("Split", (fused, self.graph.constant([wide, wide])), 2, axis=-1)
        return gate, up

    def gate_up(self, x: str, spec: MlpSpec) -> str:
        """x -> gate and up side by side, [batch, sequence, 2 intermediate], from one matrix."""
        sizes = [2 * self.spec.width_of(spec) // len(spec.up)] * len(spec.up)
        return self.linears.apply_joined(x, spec.up, sizes, self.spec.hidden)

    def packed_qkv(self, x: str, spec: AttentionSpec) -> str:
        """x -> queries, keys and values side by side, from one matrix."""
        sizes = self.qkv_sizes(spec)
        sizes = sizes if len(spec.qkv) == 3 else [sum(sizes)]
        return self.linears.apply_joined(x, spec.qkv, sizes, self.spec.hidden)

    def qkv_sizes(self, spec: AttentionSpec) -> list[int]:
        """Channels of one block's queries, keys and values."""
        dims = self.spec
        cached = dims.kv_heads_of(spec) * dims.head_dim
        return [dims.heads_of(spec) * dims.head_dim, cached, cached]

    def project(self, x: str, spec: AttentionSpec) -> tuple[str, str, str]:
        """x -> queries [batch, sequence, heads, head_dim], keys and values [batch, sequence, kv_heads, head_dim]."""
        dims, graph, sizes = self.spec, self.graph, self.qkv_sizes(spec)
        if spec.order == "heads":
            return self._split_heads(self.packed_qkv(x, spec))
        if len(spec.qkv) == 1 or self.linears.storage.joins:
            flat = graph.ops("Split", (self.packed_qkv(x, spec), graph.constant(sizes)), 3, axis=-1)
        else:
            flat = tuple(
                self.linears.apply(x, module, size, dims.hidden) for module, size in zip(spec.qkv, sizes, strict=True)
            )
        q, k, v = (graph.op("Reshape", part, graph.constant([0, 0, -1, dims.head_dim])) for part in flat)
        return q, k, v

    def _split_heads(self, fused: str) -> tuple[str, str, str]:
        width = self.spec.head_dim
        heads = self.graph.op("Reshape", fused, self.graph.constant([0, 0, -1, 3 * width]))
        q, k, v = self.graph.ops("Split", (heads, self.graph.constant([width] * 3)), 3, axis=-1)
        return q, k, v

    def rotate(self, x: str, rotary: Rotary, tables: tuple[str, str]) -> str:
        """Rotate the first channels of x [batch, sequence, heads, head_dim].

        tables: cos and signed sin, [batch, sequence, 1, channels]; the first half of sin is negated, so that
        (x1, x2) -> (x1, x2) * cos + (x2, x1) * sin is Su et al.'s rotation in the halves layout.
        """
        graph, channels = self.graph, rotary.channels
        rest = self.spec.head_dim - channels
        head, tail = x, ""
        if rest:
            head, tail = graph.ops("Split", (x, graph.constant([channels, rest])), 2, axis=-1)
        first, second = graph.ops("Split", (head, graph.constant([channels // 2] * 2)), 2, axis=-1)
        swapped = graph.op("Concat", second, first, axis=-1)
        turned = graph.op("Add", graph.op("Mul", head, tables[0]), graph.op("Mul", swapped, tables[1]))
        return graph.op("Concat", turned, tail, axis=-1) if rest else turned

    def attention(
        self, x: str, index: int, spec: AttentionSpec, bias: str, tables: tuple[str, str] | None, cache: Cache
    ) -> str:
        """Self-attention over the cache. bias: float32, added to scores [batch, kv_heads, group * sequence, total]."""
        graph, dims = self.graph, self.spec
        q, k, v = self.project(x, spec)
        q, k = self.norm(q, spec.q_norm, dims.head_dim), self.norm(k, spec.k_norm, dims.head_dim)
        if spec.rotary is not None and tables is not None:
            q, k = self.rotate(q, spec.rotary, tables), self.rotate(k, spec.rotary, tables)
        heads = dims.heads_of(spec)
        q = self._to_groups(graph.op("Mul", q, graph.real(spec.scale)), heads)
        k, v = (graph.op("Transpose", part, perm=[0, 2, 1, 3]) for part in (k, v))
        keys, values = cache(index, k, v)
        scores = graph.op("MatMul", q, graph.op("Transpose", keys, perm=[0, 1, 3, 2]))
        mixed = graph.op("MatMul", self._attention_weights(self.softcap(scores, spec.softcap), bias, heads), values)
        return self.linears.apply(self._from_groups(mixed, heads), spec.out, dims.hidden, heads * dims.head_dim)

    def _to_groups(self, q: str, heads: int) -> str:
        """[batch, sequence, heads, d] -> [batch, kv_heads, group * sequence, d]."""
        graph, dims = self.graph, self.spec
        turned = graph.op("Transpose", q, perm=[0, 2, 1, 3])
        if dims.group == 1:
            return turned
        return graph.op("Reshape", turned, graph.constant([0, heads // dims.group, -1, dims.head_dim]))

    def _from_groups(self, mixed: str, heads: int) -> str:
        """[batch, kv_heads, group * sequence, d] -> [batch, sequence, heads * d]."""
        graph, dims = self.graph, self.spec
        if dims.group > 1:
            mixed = graph.op("Reshape", mixed, graph.constant([0, heads, -1, dims.head_dim]))
        turned = graph.op("Transpose", mixed, perm=[0, 2, 1, 3])
        return graph.op("Reshape", turned, graph.constant([0, 0, heads * dims.head_dim]))

    def _attention_weights(self, scores: str, bias: str, heads: int) -> str:
        """softmax(scores + bias). With fixed sizes the heads are unfolded, so that one row of bias serves a group."""
        graph, group = self.graph, self.spec.group
        if self.fixed is None or group == 1 or self.fixed[0] == 1:
            return graph.op("Softmax", graph.op("Add", scores, bias), axis=-1)
        tokens, total = self.fixed
        unfolded = graph.op("Reshape", scores, graph.constant([1, heads, tokens, total]))
        weights = graph.op("Softmax", graph.op("Add", unfolded, bias), axis=-1)
        return graph.op("Reshape", weights, graph.constant([1, heads // group, group * tokens, total]))

    def block(
        self,
        x: str,
        index: int,
        biases: Mapping[int | None, str],
        tables: Mapping[Rotary, tuple[str, str]],
        cache: Cache,
    ) -> str:
        """One decoder block: [batch, sequence, hidden] -> same."""
        spec = self.spec.blocks[index]
        self.graph.scope = spec.attention.out
        rotary = spec.attention.rotary
        turn = tables[rotary] if rotary else None

        def attend(value: str) -> str:
            return self.attention(value, index, spec.attention, biases[spec.attention.window], turn, cache)

        if spec.norm_after_residual:
            x = self._norm(self._add(x, attend(x)), spec.attention_norm)
            return self._norm(self._add(x, self.mlp(x, spec.mlp)), spec.mlp_norm)
        branch = self._norm(attend(self._norm(x, spec.attention_norm)), spec.after_attention_norm)
        middle = self._add(x, branch)
        source = x if spec.parallel else middle
        return self._add(middle, self._mlp_branch(source, spec))

    def _mlp_branch(self, x: str, spec: BlockSpec) -> str:
        self.graph.scope = spec.mlp.down
        return self._norm(self.mlp(self._norm(x, spec.mlp_norm), spec.mlp), spec.after_mlp_norm)

    def _norm(self, x: str, module: str | None) -> str:
        return self.norm(x, module, self.spec.hidden)

    def _add(self, x: str, y: str) -> str:
        return self.graph.op("Add", x, y)

    def embed(self, input_ids: str, position_ids: str) -> str:
        """Token ids [batch, sequence] -> x [batch, sequence, hidden]."""
        spec, graph = self.spec, self.graph
        x = self.vocabulary.look_up(input_ids)
        if spec.embedding_scale != 1.0:
            x = graph.op("Mul", x, graph.real(spec.embedding_scale))
        if spec.project_in is not None:
            x = self.linears.apply(x, spec.project_in, spec.hidden, spec.width)
        if spec.positions is not None:
            table = self.weights.table(spec.positions.module, spec.hidden)[spec.positions.offset :]
            rows = graph.weight(f"{spec.positions.module}.weight", table)
            x = graph.op("Add", x, graph.op("Gather", rows, position_ids, axis=0))
        return x

    @property
    def vocabulary(self) -> Vocabulary:
        """The token embedding and the output head."""
        return Vocabulary(self.graph, self.weights, self.linears, self.spec)

    def finish(self, x: str) -> str:
        """Final norm and, if the family has it, the projection back to the embedding's width."""
        spec = self.spec
        self.graph.scope = "head"
        x = self._norm(x, spec.final_norm)
        return x if spec.project_out is None else self.linears.apply(x, spec.project_out, spec.width, spec.hidden)
