"""The graph of a cache that DeepSparse keeps itself: cached.onnx, beside decode.onnx and over the same data file.

    input_ids, position_ids int64 [1, 1], attention_bias float32 [1, 1, 1, context],
    past_key_values.{i}.key / .value [1, heads, context - 1, head_dim]
    -> logits [1, 1, vocab], present.{i}.key / .value [1, heads, context, head_dim]

The engine finds `present = Concat(past, new)` and keeps it: a caller names the present outputs as cached and feeds no past.
The newest token is the last column, the one before it the column to its left, so position p sees the last p + 1 columns.
When the cache is full, after `context` tokens, the engine's next logits are wrong or the process dies (measured on 1.8.0):
a caller must stop there.

The engine aborts where query heads share a key/value head. So the rows of such k and v projections are written once for each
query head that reads them: the same numbers, more weights and a larger cache.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from tailcut.export.spec import AttentionSpec, DecoderSpec
from tailcut.export.weights import Matrix, Weights

CACHED_NAME: Final = "cached.onnx"
_MARK: Final = ".each_head"  # ends the names of projections whose rows are repeated


@dataclass(frozen=True, slots=True)
class Repeated(Weights):
    """The weights of a model whose k and v projections have a row block for every query head, under `_MARK` names."""

    rows: dict[str, tuple[int, ...]]  # module of the checkpoint -> its row blocks of head_dim rows, in the new order

    def has(self, module: str, part: str = "weight") -> bool:
        return self._find(module.removesuffix(_MARK), part) is not None

    def vector(self, module: str, part: str, size: int) -> Matrix:
        name = module.removesuffix(_MARK)
        if name == module:
            return self._read(module, part, (size,))
        return self._repeat(name, self._read(name, part, (self._stored_rows(name),)))

    def matrix(self, module: str, out: int, inputs: int) -> Matrix:
        name = module.removesuffix(_MARK)
        plain = Weights(self.checkpoint, self.spec)
        if name == module:
            return plain.matrix(module, out, inputs)
        return self._repeat(name, plain.matrix(name, self._stored_rows(name), inputs))

    def _stored_rows(self, name: str) -> int:
        return (max(self.rows[name]) + 1) * self.spec.head_dim

    def _repeat(self, name: str, array: Matrix) -> Matrix:
        blocks = array.reshape(-1, self.spec.head_dim, *array.shape[1:])
        return np.ascontiguousarray(blocks[list(self.rows[name])].reshape(-1, *array.shape[1:]))


def own_heads(weights: Weights) -> tuple[Weights, DecoderSpec]:
    """Weights and description of the same decoder with one key/value head a query head."""
    spec = weights.spec
    if spec.group == 1:
        return weights, spec
    rows: dict[str, tuple[int, ...]] = {}
    blocks = []
    for block in spec.blocks:
        attention = block.attention
        found = _row_blocks(spec, attention)
        rows |= found
        names = tuple(name + _MARK if name in found else name for name in attention.qkv)
        blocks.append(replace(block, attention=replace(attention, qkv=names, kv_heads=spec.heads_of(attention))))
    wide = replace(spec, kv_heads=spec.heads, blocks=tuple(blocks))
    return Repeated(weights.checkpoint, wide, rows), wide


def _row_blocks(spec: DecoderSpec, attention: AttentionSpec) -> dict[str, tuple[int, ...]]:
    """For each projection with keys or values: which of its row blocks of head_dim rows make up the repeated one."""
    heads, shared = spec.heads_of(attention), spec.kv_heads_of(attention)
    repeated = tuple(head // spec.group for head in range(heads))
    if len(attention.qkv) == 3:
        return dict.fromkeys(attention.qkv[1:], repeated)
    keys = tuple(heads + block for block in repeated)
    return {attention.qkv[0]: (*range(heads), *keys, *(block + shared for block in keys))}
