"""OPT: learned positions from row 2, layer norms, ReLU; OPT-350m normalises after the additions and projects embeddings."""

from tailcut.export.settings import Config, positive
from tailcut.export.spec import AttentionSpec, BlockSpec, DecoderSpec, MlpSpec, Norm, Positions

_BASE = "model.decoder"


def describe(config: Config) -> DecoderSpec:
    """OPT of every size."""
    hidden, heads = positive(config, "hidden_size"), positive(config, "num_attention_heads")
    width, before = positive(config, "word_embed_proj_dim", hidden), bool(config.get("do_layer_norm_before", True))
    tied = config.get("tie_word_embeddings")
    final = before and not config.get("_remove_final_layer_norm", False)
    return DecoderSpec(
        family="opt",
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        intermediate=positive(config, "ffn_dim"),
        vocab=positive(config, "vocab_size"),
        norm=Norm("layer", 1e-5),
        blocks=tuple(_block(config, index, before) for index in range(positive(config, "num_hidden_layers"))),
        embedding=f"{_BASE}.embed_tokens",
        head="lm_head",
        tied=tied is None or bool(tied),
        final_norm=f"{_BASE}.final_layer_norm" if final else None,
        max_positions=positive(config, "max_position_embeddings"),
        positions=Positions(f"{_BASE}.embed_positions", offset=2),
        embedding_width=width,
        project_in=f"{_BASE}.project_in" if width != hidden else None,
        project_out=f"{_BASE}.project_out" if width != hidden else None,
        prefixes=("model.",),
    )


def _block(config: Config, index: int, before: bool) -> BlockSpec:
    base = f"{_BASE}.layers.{index}"
    head_dim = positive(config, "hidden_size") // positive(config, "num_attention_heads")
    return BlockSpec(
        attention=AttentionSpec(
            tuple(f"{base}.self_attn.{part}_proj" for part in "qkv"), f"{base}.self_attn.out_proj", head_dim**-0.5
        ),
        mlp=MlpSpec((f"{base}.fc1",), f"{base}.fc2", str(config.get("activation_function", "relu")), gated=False),
        attention_norm=f"{base}.self_attn_layer_norm",
        mlp_norm=f"{base}.final_layer_norm",
        norm_after_residual=not before,
    )
