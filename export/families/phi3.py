"""Phi-3 and Phi-3.5 mini: fused qkv and gate_up, LongRoPE, partial rotary in Phi-4 mini."""

from tailcut.export.families import _llama_like as shared
from tailcut.export.rotary import rotary
from tailcut.export.settings import Config, positive, sliding_windows
from tailcut.export.spec import DecoderSpec


def describe(config: Config) -> DecoderSpec:
    """Phi-3."""
    width, layers = shared.head_dim(config), positive(config, "num_hidden_layers")
    turn = rotary(config, width)
    windows = sliding_windows(config, layers, window=shared.window(config), every=shared.always)
    blocks = [
        shared.block(
            index,
            shared.attention(index, turn, width**-0.5, fused=True, window=window),
            str(config.get("hidden_act", "silu")),
            fused=True,
        )
        for index, window in enumerate(windows)
    ]
    return shared.decoder(config, "phi3", blocks)
