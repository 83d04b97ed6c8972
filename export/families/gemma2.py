"""Gemma 2: (1 + w) norms before and after each branch, soft-capped scores and logits, every other block slides."""

from tailcut.export.families import _llama_like as shared
from tailcut.export.rotary import rotary
from tailcut.export.settings import Config, number, optional_number, positive, sliding_windows
from tailcut.export.spec import DecoderSpec


def describe(config: Config) -> DecoderSpec:
    """Gemma 2. Without `layer_types` (configs before transformers 4.53) even blocks slide."""
    width, layers = positive(config, "head_dim", 256), positive(config, "num_hidden_layers")
    turn = rotary(config, width)
    scale = number(config, "query_pre_attn_scalar", 256.0) ** -0.5
    window = shared.window(config)
    windows = sliding_windows(config, layers, window=window, every=lambda index: index % 2 == 0)
    blocks = [
        shared.block(
            index,
            shared.attention(
                index, turn, scale, window=seen, softcap=optional_number(config, "attn_logit_softcapping")
            ),
            str(config.get("hidden_activation") or "gelu_pytorch_tanh"),
            four=True,
        )
        for index, seen in enumerate(windows)
    ]
    return shared.decoder(
        config,
        "gemma2",
        blocks,
        width=width,
        offset=1.0,
        tied=True,
        embedding_scale=positive(config, "hidden_size") ** 0.5,
        final_softcap=optional_number(config, "final_logit_softcapping"),
    )
