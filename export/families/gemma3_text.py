"""Gemma 3 (text): Gemma 2 with head norms, five sliding blocks to one full, and a rotary base for each kind."""

from tailcut.errors import InputError
from tailcut.export.families import _llama_like as shared
from tailcut.export.rotary import rotary
from tailcut.export.settings import Config, number, optional_number, positive, sliding_windows
from tailcut.export.spec import AttentionSpec, DecoderSpec, Rotary


def describe(config: Config) -> DecoderSpec:
    """Gemma 3 text models. Without `layer_types` every `sliding_window_pattern`-th block is full."""
    if config.get("use_bidirectional_attention"):
        raise InputError(
            "config.json: use_bidirectional_attention makes an encoder of Gemma 3; only decoders are exported"
        )
    width, layers = positive(config, "head_dim", 256), positive(config, "num_hidden_layers")
    pattern = positive(config, "sliding_window_pattern", positive(config, "_sliding_window_pattern", 6))
    windows = sliding_windows(
        config, layers, window=shared.window(config), every=lambda index: bool((index + 1) % pattern)
    )
    scale = number(config, "query_pre_attn_scalar", 256.0) ** -0.5
    softcap = optional_number(config, "attn_logit_softcapping")
    full, local = rotary(config, width, "full_attention"), _local(config, width)

    def attention(index: int, window: int | None) -> AttentionSpec:
        turn = full if window is None else local
        return shared.attention(index, turn, scale, head_norms=True, window=window, softcap=softcap)

    activation = str(config.get("hidden_activation") or "gelu_pytorch_tanh")
    blocks = [
        shared.block(index, attention(index, window), activation, four=True) for index, window in enumerate(windows)
    ]
    return shared.decoder(
        config,
        "gemma3_text",
        blocks,
        width=width,
        offset=1.0,
        tied=True,
        embedding_scale=positive(config, "hidden_size") ** 0.5,
        final_softcap=optional_number(config, "final_logit_softcapping"),
    )


def _local(config: Config, width: int) -> Rotary:
    """Sliding blocks: their own entry in new configs, `rope_local_base_freq` and no scaling in old ones."""
    if isinstance(config.get("rope_parameters"), dict):
        return rotary(config, width, "sliding_attention")
    return rotary({"rope_theta": number(config, "rope_local_base_freq", 10000.0)}, width)
