"""What Llama, Mistral, Qwen, Gemma and Phi-3 share: module names, RMS norms, rotary, gated MLP."""

from collections.abc import Sequence
from typing import Any

from tailcut.export.settings import Config, number, positive, sliding_windows
from tailcut.export.spec import AttentionSpec, BlockSpec, DecoderSpec, MlpSpec, Norm, Rotary


def head_dim(config: Config) -> int:
    """Channels of one head; hidden / heads unless the config says otherwise."""
    return positive(config, "head_dim", positive(config, "hidden_size") // positive(config, "num_attention_heads"))


def window(config: Config) -> int | None:
    """The sliding window in tokens; None when the config says null or 0."""
    return positive(config, "sliding_window") if config.get("sliding_window") else None


def always(index: int) -> bool:
    """Every block slides."""
    return True


def qwen_windows(config: Config) -> tuple[int | None, ...]:
    """Qwen's windows: none unless `use_sliding_window`, and then from block `max_window_layers` on."""
    seen = window(config) if config.get("use_sliding_window") else None
    first = int(number(config, "max_window_layers", 28))
    return sliding_windows(
        config, positive(config, "num_hidden_layers"), window=seen, every=lambda index: index >= first
    )


def attention(
    index: int,
    rotary: Rotary,
    scale: float,
    *,
    fused: bool = False,
    head_norms: bool = False,
    window: int | None = None,
    softcap: float | None = None,
) -> AttentionSpec:
    """Attention of block `index` under Llama's module names."""
    base = f"model.layers.{index}.self_attn"
    return AttentionSpec(
        qkv=(f"{base}.qkv_proj",) if fused else tuple(f"{base}.{part}_proj" for part in "qkv"),
        out=f"{base}.o_proj",
        scale=scale,
        q_norm=f"{base}.q_norm" if head_norms else None,
        k_norm=f"{base}.k_norm" if head_norms else None,
        rotary=rotary,
        window=window,
        softcap=softcap,
    )


def block(
    index: int, attention: AttentionSpec, activation: str, *, fused: bool = False, four: bool = False
) -> BlockSpec:
    """Block `index`; `four` norms as in Gemma 2 and 3 (before and after each branch)."""
    base = f"model.layers.{index}"
    up = (f"{base}.mlp.gate_up_proj",) if fused else (f"{base}.mlp.gate_proj", f"{base}.mlp.up_proj")
    return BlockSpec(
        attention=attention,
        mlp=MlpSpec(up, f"{base}.mlp.down_proj", activation, gated=True),
        attention_norm=f"{base}.input_layernorm",
        mlp_norm=f"{base}.pre_feedforward_layernorm" if four else f"{base}.post_attention_layernorm",
        after_attention_norm=f"{base}.post_attention_layernorm" if four else None,
        after_mlp_norm=f"{base}.post_feedforward_layernorm" if four else None,
    )


def decoder(
    config: Config,
    family: str,
    blocks: Sequence[BlockSpec],
    *,
    width: int | None = None,
    offset: float = 0.0,
    tied: bool = False,
    **extra: Any,  # noqa: ANN401 fields of DecoderSpec
) -> DecoderSpec:
    """The whole decoder; `tied` is the family's default when the config does not say."""
    found = config.get("tie_word_embeddings")
    heads = positive(config, "num_attention_heads")
    return DecoderSpec(
        family=family,
        hidden=positive(config, "hidden_size"),
        heads=heads,
        kv_heads=positive(config, "num_key_value_heads", heads),
        head_dim=width or head_dim(config),
        intermediate=positive(config, "intermediate_size"),
        vocab=positive(config, "vocab_size"),
        max_positions=positive(config, "max_position_embeddings"),
        norm=Norm("rms", number(config, "rms_norm_eps", 1e-6), offset),
        blocks=tuple(blocks),
        embedding="model.embed_tokens",
        head="lm_head",
        tied=tied if found is None else bool(found),
        final_norm="model.norm",
        prefixes=("model.",),
        **extra,
    )
