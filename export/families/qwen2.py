"""Qwen2 and Qwen2.5: Llama with biases on q, k and v; later blocks may see a sliding window."""

from tailcut.export.families import _llama_like as shared
from tailcut.export.rotary import rotary
from tailcut.export.settings import Config
from tailcut.export.spec import DecoderSpec


def describe(config: Config) -> DecoderSpec:
    """Qwen2. Biases are taken from the checkpoint."""
    width = shared.head_dim(config)
    turn = rotary(config, width)
    blocks = [
        shared.block(
            index,
            shared.attention(index, turn, width**-0.5, window=window),
            str(config.get("hidden_act", "silu")),
        )
        for index, window in enumerate(shared.qwen_windows(config))
    ]
    return shared.decoder(config, "qwen2", blocks)
