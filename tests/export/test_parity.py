"""Every family's graph gives torch's logits: prefill, cached decode, batch 2, left padding, one token at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailcut.errors import InputError
from tailcut.export.check import Parity, check_parity, load_torch, torch_logits
from tailcut.export.run import export
from tailcut.kernels.decoder import Decoder
from tailcut.manifest import verify

Model = Callable[..., Path]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.5, 2.0, 3.0, 4.0],
    "rope_theta": 10000.0,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama one kv head": ("llama", {"num_key_value_heads": 1}),
    "llama no groups": ("llama", {"num_key_value_heads": 4}),
    "llama linear rope": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
    "llama llama3 rope": ("llama", {"rope_parameters": LLAMA3}),
    "llama yarn rope": ("llama", {"rope_parameters": YARN}),
    "llama odd sizes": ("llama", {"hidden_size": 36, "head_dim": 6, "intermediate_size": 37}),
    "qwen2 window": ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "mistral no window": ("mistral", {"sliding_window": None}),
    "gemma2 softcaps": ("gemma2", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "phi3 partial rotary": ("phi3", {"partial_rotary_factor": 0.5}),
    "phi3 longrope switches": (
        "phi3",
        {"rope_parameters": LONG, "original_max_position_embeddings": 4, "max_position_embeddings": 128},
    ),
    "phi3 window": ("phi3", {"sliding_window": 5}),
    "gpt2 inverse layer scale": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2 unscaled": ("gpt2", {"scale_attn_weights": False}),
    "neox sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "neox full rotary": ("gpt_neox", {"rotary_pct": 1.0}),
    "opt 350m": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "opt no biases": ("opt", {"enable_bias": False, "layer_norm_elementwise_affine": False}),
}


def test_every_family_agrees_with_torch(family: str, tiny_model: Model, tmp_path: Path) -> None:
    manifest = export(tiny_model(family), tmp_path / "p", layout="dense")
    assert manifest.details["parity_positions"] == 35  # 12 + 7 prefill, 4 x 2 cached, 8 single
    assert float(manifest.details["parity_max_abs_error"] or 0) <= float(manifest.details["parity_tolerance"] or 0)
    assert manifest.details["parity_top1_agreement"] == 1.0
    assert verify(tmp_path / "p") == manifest


def test_sparse_family_agrees_with_torch_in_bitmask(family: str, sparse_model: Model, tmp_path: Path) -> None:
    manifest = export(sparse_model(family), tmp_path / "p")
    assert manifest.details["layout"] == "bitmask"
    assert manifest.sparsity == pytest.approx(0.7, abs=0.01)  # rounding of the share in matrices of 1024 weights


@pytest.mark.parametrize("variant", VARIANTS)
def test_settings_of_a_family_agree_with_torch(variant: str, tiny_model: Model, tmp_path: Path) -> None:
    family, overrides = VARIANTS[variant]
    export(tiny_model(family, **overrides), tmp_path / "p", layout="dense")


def test_half_precision_checkpoints_are_upcast(tiny_model: Model, tmp_path: Path) -> None:
    export(tiny_model("llama", dtype="bfloat16"), tmp_path / "p", layout="dense")


def test_checkpoints_without_the_base_prefix(tiny_model: Model, tmp_path: Path) -> None:
    import shutil

    from safetensors.numpy import load_file, save_file

    shutil.copytree(tiny_model("gpt2"), tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    save_file(
        {name.removeprefix("transformer."): value for name, value in load_file(file).items()}, file, {"format": "pt"}
    )
    export(tmp_path / "m", tmp_path / "p", layout="dense")


def test_continuing_from_the_cache_with_several_tokens(tiny_model: Model, tmp_path: Path) -> None:
    """Past 6, sequence 5 in one run, which neither prefill nor single steps cover."""
    model_dir = tiny_model("gemma2")
    export(model_dir, tmp_path / "p", layout="dense", check=False)
    tokens = np.random.default_rng(1).integers(0, 258, (2, 11))
    want, _ = torch_logits(load_torch(model_dir), tokens, np.ones_like(tokens), None)
    session = Decoder(tmp_path / "p", threads=1).session
    feeds: dict[str, Any] = {
        value.name: np.zeros((2, 2, 0, 16), np.float32) for value in session.get_inputs() if "past" in value.name
    }
    names = [value.name for value in session.get_outputs()]
    for begin, end in ((0, 6), (6, 11)):
        feeds |= {
            "input_ids": tokens[:, begin:end],
            "attention_mask": np.ones((2, end), np.int64),
            "position_ids": np.tile(np.arange(begin, end), (2, 1)),
        }
        found = dict(zip(names, session.run(names, feeds), strict=True))
        feeds |= {name.replace("present", "past_key_values"): found[name] for name in names if name != "logits"}
        # float32 sums of width 32 in another order: measured 1e-6 at logits of order 10
        np.testing.assert_allclose(found["logits"], want[:, begin:end], atol=1e-4, rtol=1e-4)


def test_a_wrong_graph_fails_and_leaves_nothing(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tailcut.export.families import llama

    right = llama.describe

    def wrong(config: Any) -> Any:
        from dataclasses import replace

        return replace(right(config), embedding_scale=1.01)

    monkeypatch.setattr(llama, "describe", wrong)
    with pytest.raises(InputError, match="differs from torch by"):
        export(tiny_model("llama"), tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_parity_counts_not_a_number_as_failure() -> None:
    from tailcut.export.check import summary

    broken = summary([(np.full((1, 4), np.nan, np.float32), np.zeros((1, 4), np.float32))])
    assert not broken.passed
    assert Parity(1e-6, 1.0, 1.0, 1).passed


def test_packed_directory_is_refused_with_what_to_do(tiny_model: Model, tmp_path: Path) -> None:
    import shutil

    from safetensors.numpy import load_file, save_file

    from tailcut.checkpoint import packed_tensors

    shutil.copytree(tiny_model("llama"), tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors |= packed_tensors(name, tensors.pop(name))
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(InputError, match="no-check"):
        export(tmp_path / "m", tmp_path / "p")
    export(tmp_path / "m", tmp_path / "p", layout="dense", check=False)
    # the same graph as from the unpacked directory
    check_parity(tiny_model("llama"), tmp_path / "p" / "model.onnx")
