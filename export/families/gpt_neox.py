"""GPT-NeoX (Pythia): partial rotary, parallel residual, qkv fused per head."""

from tailcut.export.rotary import rotary
from tailcut.export.settings import Config, number, positive
from tailcut.export.spec import AttentionSpec, BlockSpec, DecoderSpec, MlpSpec, Norm, Rotary


def describe(config: Config) -> DecoderSpec:
    """GPT-NeoX. Old configs name the rotary share `rotary_pct` and its base `rotary_emb_base`."""
    hidden, heads = positive(config, "hidden_size"), positive(config, "num_attention_heads")
    old = {"partial_rotary_factor": config.get("rotary_pct", 0.25), "rope_theta": config.get("rotary_emb_base", 10000)}
    turn = rotary({**old, **config}, hidden // heads)
    return DecoderSpec(
        family="gpt_neox",
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        intermediate=positive(config, "intermediate_size"),
        vocab=positive(config, "vocab_size"),
        norm=Norm("layer", number(config, "layer_norm_eps", 1e-5)),
        blocks=tuple(_block(config, index, turn) for index in range(positive(config, "num_hidden_layers"))),
        embedding="gpt_neox.embed_in",
        head="embed_out",
        tied=bool(config.get("tie_word_embeddings", False)),
        final_norm="gpt_neox.final_layer_norm",
        max_positions=positive(config, "max_position_embeddings"),
        prefixes=("gpt_neox.",),
    )


def _block(config: Config, index: int, turn: Rotary) -> BlockSpec:
    base = f"gpt_neox.layers.{index}"
    head_dim = positive(config, "hidden_size") // positive(config, "num_attention_heads")
    activation = str(config.get("hidden_act", "gelu"))
    return BlockSpec(
        attention=AttentionSpec(
            (f"{base}.attention.query_key_value",),
            f"{base}.attention.dense",
            head_dim**-0.5,
            order="heads",
            rotary=turn,
        ),
        mlp=MlpSpec((f"{base}.mlp.dense_h_to_4h",), f"{base}.mlp.dense_4h_to_h", activation, gated=False),
        attention_norm=f"{base}.input_layernorm",
        mlp_norm=f"{base}.post_attention_layernorm",
        parallel=bool(config.get("use_parallel_residual", True)),
    )
