"""Mistral: Llama whose every block sees a sliding window (unless the config says null)."""

from tailcut.export.families import _llama_like as shared
from tailcut.export.rotary import rotary
from tailcut.export.settings import Config, positive, sliding_windows
from tailcut.export.spec import DecoderSpec


def describe(config: Config) -> DecoderSpec:
    """Mistral 7B and its kin."""
    width, layers = shared.head_dim(config), positive(config, "num_hidden_layers")
    turn = rotary(config, width)
    windows = sliding_windows(config, layers, window=shared.window(config), every=shared.always)
    blocks = [
        shared.block(
            index,
            shared.attention(index, turn, width**-0.5, window=window),
            str(config.get("hidden_act", "silu")),
        )
        for index, window in enumerate(windows)
    ]
    return shared.decoder(config, "mistral", blocks)
