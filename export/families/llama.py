"""Llama 1 to 3 and models with its architecture (TinyLlama, SmolLM2, …)."""

from tailcut.export.families import _llama_like as shared
from tailcut.export.rotary import rotary
from tailcut.export.settings import Config, positive
from tailcut.export.spec import DecoderSpec


def describe(config: Config) -> DecoderSpec:
    """Llama: RMS norms, rotary embedding, grouped queries, gated SiLU."""
    width = shared.head_dim(config)
    turn = rotary(config, width)
    blocks = [
        shared.block(index, shared.attention(index, turn, width**-0.5), str(config.get("hidden_act", "silu")))
        for index in range(positive(config, "num_hidden_layers"))
    ]
    return shared.decoder(config, "llama", blocks)
