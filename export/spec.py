"""What a decoder is, in the words the graph builder needs; one family file turns a config into it.

A `DecoderSpec` names modules (as transformers does) and states arithmetic; it holds no weights. A bias exists
where the checkpoint stores one. Everything a family can differ in is a field here, so that the builder has no
family names in it.
"""

from dataclasses import dataclass, field
from typing import Literal

QkvOrder = Literal["blocks", "heads"]


@dataclass(frozen=True, slots=True)
class Norm:
    """y = x / rms(x) * (weight + offset), or layer normalisation with weight and bias. `eps` is inside the root."""

    kind: Literal["rms", "layer"]
    eps: float
    offset: float = 0.0


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotary embedding of the first `2 * len(inverse_frequencies)` channels of each head (halves layout).

    `long_frequencies` replace the others once the sequence passes `original_length` (LongRoPE); cos and sin are
    multiplied by `scale`.
    """

    inverse_frequencies: tuple[float, ...]  # radians per position
    scale: float = 1.0
    long_frequencies: tuple[float, ...] = ()
    original_length: int = 0

    @property
    def channels(self) -> int:
        return 2 * len(self.inverse_frequencies)


@dataclass(frozen=True, slots=True)
class Positions:
    """Learned absolute positions: row `position + offset` of this embedding module is added."""

    module: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """One attention: module names and arithmetic. `qkv` holds one fused module or the three of q, k and v.

    Fused outputs lie as all q, all k, all v ("blocks") or per head as q, k, v ("heads", GPT-NeoX).
    """

    qkv: tuple[str, ...]
    out: str
    scale: float  # q·k is multiplied by it
    order: QkvOrder = "blocks"
    q_norm: str | None = None
    k_norm: str | None = None
    rotary: Rotary | None = None
    window: int | None = None  # a query sees itself and the window - 1 positions before it
    softcap: float | None = None
    kv_heads: int | None = None  # of this block, where blocks differ; None: the decoder's


@dataclass(frozen=True, slots=True)
class MlpSpec:
    """down(act(gate x) * (up x)) when `gated`, else down(act(up x)). `up` = (up,), (gate, up) or one fused module."""

    up: tuple[str, ...]
    down: str
    activation: str
    gated: bool
    width: int | None = None  # of this block, where blocks differ; None: the decoder's `intermediate`


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """One decoder block; norms that a family does not have are None."""

    attention: AttentionSpec
    mlp: MlpSpec
    attention_norm: str | None
    mlp_norm: str | None
    after_attention_norm: str | None = None  # applied to the branch before it is added
    after_mlp_norm: str | None = None
    parallel: bool = False  # x + attention(norm x) + mlp(norm' x)
    norm_after_residual: bool = False  # OPT-350m: norms follow the additions


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """A whole decoder-only language model."""

    family: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    norm: Norm
    blocks: tuple[BlockSpec, ...]
    embedding: str
    head: str  # module of the output head; its weight is the embedding's when `tied`
    tied: bool
    final_norm: str | None
    max_positions: int
    embedding_scale: float = 1.0
    positions: Positions | None = None
    embedding_width: int | None = None  # when it is not `hidden`: project_in and project_out lie between (OPT-350m)
    project_in: str | None = None
    project_out: str | None = None
    final_softcap: float | None = None
    conv1d: bool = False  # matrices stored [in, out] (GPT-2)
    prefixes: tuple[str, ...] = field(default=())  # what some checkpoints leave out of tensor names

    @property
    def width(self) -> int:
        """Columns of the embedding, and of a tied head."""
        return self.embedding_width or self.hidden

    @property
    def group(self) -> int:
        """Query heads that share one key/value head, in every block."""
        return self.heads // self.kv_heads

    def kv_heads_of(self, attention: AttentionSpec) -> int:
        """Key/value heads of one block."""
        return attention.kv_heads or self.kv_heads

    def heads_of(self, attention: AttentionSpec) -> int:
        """Query heads of one block."""
        return self.kv_heads_of(attention) * self.group

    def width_of(self, mlp: MlpSpec) -> int:
        """Inner channels of one block's MLP."""
        return mlp.width or self.intermediate

    @property
    def linears(self) -> tuple[str, ...]:
        """Module names of the matrices inside the blocks, in model order: the prunable ones."""
        found: list[str] = []
        for block in self.blocks:
            found += [*block.attention.qkv, block.attention.out, *block.mlp.up, block.mlp.down]
        return tuple(found)
