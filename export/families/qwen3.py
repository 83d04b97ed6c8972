"""Qwen3 (dense): RMS norms on each query and key head, no biases, a head width of its own."""

from tailcut.export.families import _llama_like as shared
from tailcut.export.rotary import rotary
from tailcut.export.settings import Config, positive
from tailcut.export.spec import DecoderSpec


def describe(config: Config) -> DecoderSpec:
    """Qwen3."""
    width = positive(config, "head_dim", 128)
    turn = rotary(config, width)
    blocks = [
        shared.block(
            index,
            shared.attention(index, turn, width**-0.5, head_norms=True, window=window),
            str(config.get("hidden_act", "silu")),
        )
        for index, window in enumerate(shared.qwen_windows(config))
    ]
    return shared.decoder(config, "qwen3", blocks, width=width)
