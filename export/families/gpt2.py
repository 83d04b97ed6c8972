"""GPT-2: learned positions, layer norms, fused qkv, Conv1D matrices stored [in, out]."""

from tailcut.errors import InputError
from tailcut.export.settings import Config, number, positive
from tailcut.export.spec import AttentionSpec, BlockSpec, DecoderSpec, MlpSpec, Norm, Positions


def describe(config: Config) -> DecoderSpec:
    """GPT-2 and DistilGPT-2."""
    if config.get("add_cross_attention"):
        raise InputError("config.json: add_cross_attention is not exported; only decoder-only models are")
    hidden, heads = positive(config, "n_embd"), positive(config, "n_head")
    tied = config.get("tie_word_embeddings")
    return DecoderSpec(
        family="gpt2",
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        intermediate=positive(config, "n_inner", 4 * hidden),
        vocab=positive(config, "vocab_size"),
        norm=Norm("layer", number(config, "layer_norm_epsilon", 1e-5)),
        blocks=tuple(_block(config, index, hidden // heads) for index in range(positive(config, "n_layer"))),
        embedding="transformer.wte",
        head="lm_head",
        tied=tied is None or bool(tied),
        final_norm="transformer.ln_f",
        max_positions=positive(config, "n_positions"),
        positions=Positions("transformer.wpe"),
        conv1d=True,
        prefixes=("transformer.",),
    )


def _block(config: Config, index: int, head_dim: int) -> BlockSpec:
    base = f"transformer.h.{index}"
    scale = head_dim**-0.5 if config.get("scale_attn_weights", True) else 1.0
    if config.get("scale_attn_by_inverse_layer_idx"):
        scale /= index + 1
    return BlockSpec(
        attention=AttentionSpec((f"{base}.attn.c_attn",), f"{base}.attn.c_proj", scale),
        mlp=MlpSpec(
            (f"{base}.mlp.c_fc",), f"{base}.mlp.c_proj", str(config.get("activation_function", "gelu_new")), gated=False
        ),
        attention_norm=f"{base}.ln_1",
        mlp_norm=f"{base}.ln_2",
    )
