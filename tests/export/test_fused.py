"""fused.onnx: where families have one, that it agrees with torch, and that it stores no weight again."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.numpy import load_file, save_file

from tailcut.errors import InputError
from tailcut.export.convert import convert
from tailcut.export.fused import MAX_POSITIONS
from tailcut.export.fused_check import FusedRunner
from tailcut.export.run import export
from tailcut.kernels.package import FUSED_NAME

Model = Callable[..., Path]
WIDE = {"head_dim": 16}  # ONNX Runtime's GroupQueryAttention rotates heads of a multiple of 16 only
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 10000.0}
FUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama one kv head": ("llama", {"num_key_value_heads": 1}),
    "llama no groups": ("llama", {"num_key_value_heads": 4}),
    "llama yarn": ("llama", {"rope_parameters": YARN}),
    "llama odd sizes": ("llama", {"hidden_size": 36, "intermediate_size": 37}),
    "llama relu": ("llama", {"hidden_act": "relu"}),
    "mistral": ("mistral", {}),  # a window of 8 under prompts of 12
    "qwen2": ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen3": ("qwen3", {}),
    "phi3": ("phi3", {}),
    "phi3 partial rotary": ("phi3", {"head_dim": 32, "partial_rotary_factor": 0.5}),
    "gemma2": ("gemma2", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("gemma3_text", {}),
}
WITHOUT: dict[str, tuple[str, dict[str, Any], str]] = {
    "narrow heads": ("llama", {"head_dim": 8}, "head_dim 8 is no multiple of 16"),
    "longrope": (
        "phi3",
        {"rope_parameters": LONG, "original_max_position_embeddings": 4, "max_position_embeddings": 128},
        "LongRoPE switches its factors",
    ),
    "few rotated channels": ("phi3", {"partial_rotary_factor": 0.5, **WIDE}, "rotated channels are no multiple of 16"),
    "opt": ("opt", {}, "layer norms, not RMS norms"),
    "gpt2": ("gpt2", {}, "layer norms, not RMS norms"),
    "neox": ("gpt_neox", {}, "layer norms, not RMS norms"),
}


@pytest.mark.parametrize("name", FUSED)
def test_families_with_a_fused_graph_agree_with_torch(name: str, sparse_model: Model, tmp_path: Path) -> None:
    """Prefill of two rows of different length, cached decode, one row token by token."""
    family, overrides = FUSED[name]
    facts = export(sparse_model(family, **(WIDE | overrides)), tmp_path / "p").details
    assert facts["fused_graph"] == FUSED_NAME
    assert facts["fused_positions"] == 128
    slides = family in ("mistral", "qwen2", "gemma2", "gemma3_text")
    assert facts["fused_needs_onnxruntime"] == ("1.24" if slides else "1.20")
    assert facts["fused_parity_positions"] == 35
    assert float(facts["fused_parity_max_abs_error"] or 0) <= float(facts["fused_parity_tolerance"] or 0)
    assert facts["fused_parity_top1_agreement"] == 1.0


@pytest.mark.parametrize("name", WITHOUT)
def test_families_without_one_say_why(name: str, sparse_model: Model, tmp_path: Path) -> None:
    family, overrides, reason = WITHOUT[name]
    facts = export(sparse_model(family, **overrides), tmp_path / "p", check=False).details
    assert facts["fused_graph"] == reason
    assert not (tmp_path / "p" / FUSED_NAME).exists()


def test_the_dense_layout_has_none(sparse_model: Model, tmp_path: Path) -> None:
    facts = export(sparse_model("llama", **WIDE), tmp_path / "p", layout="dense", check=False).details
    assert facts["fused_graph"] == "the dense layout is for other runtimes"
    assert not (tmp_path / "p" / FUSED_NAME).exists()


@pytest.fixture(scope="session")
def package(sparse_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fused") / "p"
    export(sparse_model("llama", hidden_size=64, **WIDE), out, check=False)
    return out


def test_no_weight_is_stored_again(package: Path) -> None:
    """Every tensor outside fused.onnx is one of model.onnx, but for the rotary tables; and inside nothing big is left."""

    def outside(name: str) -> dict[tuple[str, ...], str]:
        model = onnx.load(package / name, load_external_data=False)
        assert all(len(t.raw_data) < 1024 for t in model.graph.initializer)
        return {tuple(e.value for e in t.external_data): t.name for t in model.graph.initializer if t.external_data}

    portable, fused = outside("model.onnx"), outside(FUSED_NAME)
    extra = {name for place, name in fused.items() if place not in portable}
    assert extra == {"rotary/0/cos", "rotary/0/sin"}
    assert all(portable[place] == name for place, name in fused.items() if place in portable)


def test_inputs_and_outputs_are_those_of_the_decoder(package: Path) -> None:
    session = onnxruntime.InferenceSession(str(package / FUSED_NAME))
    got = {v.name: (v.type, v.shape) for v in (*session.get_inputs(), *session.get_outputs())}
    cache = ("tensor(float)", ["batch", 2, "capacity", 16])
    layers = {f"{kind}.{layer}.{part}": cache for kind in ("past_key_values", "present") for layer in range(3)
              for part in ("key", "value")}  # fmt: skip
    assert got == layers | {
        "input_ids": ("tensor(int64)", ["batch", "sequence"]),
        "seqlens_k": ("tensor(int32)", ["batch"]),
        "total_sequence_length": ("tensor(int32)", []),
        "logits_from": ("tensor(int64)", [1]),
        "logits": ("tensor(float)", ["batch", "wanted", 258]),
    }


@pytest.mark.parametrize(("weights", "asked", "got"), [
    ("int8", None, "float16"), ("int8", "float32", "float32"), ("float32", None, "float32"), ("float32", "float16", "float16"),
])  # fmt: skip
def test_the_cache_is_of_the_type_asked_for(
    weights: Any, asked: Any, got: str, sparse_model: Model, tmp_path: Path
) -> None:
    """Checked against torch, on plain ONNX Runtime: with its cache rounded where the graph's is."""
    facts = export(sparse_model("llama", **WIDE), tmp_path / "p", weights=weights, kv_cache=asked).details
    assert facts["kv_cache"] == got
    assert ("fused_parity_cache_rounding" in facts) == (got == "float16")
    assert "parity_cache_rounding" not in facts  # model.onnx keeps float32
    session = onnxruntime.InferenceSession(str(tmp_path / "p" / FUSED_NAME))
    kinds = {v.type for v in (*session.get_inputs(), *session.get_outputs()) if "key" in v.name or "value" in v.name}
    assert kinds == {"tensor(float16)" if got == "float16" else "tensor(float)"}
    portable = onnxruntime.InferenceSession(str(tmp_path / "p" / "model.onnx"))
    assert {v.type for v in portable.get_inputs() if "past" in v.name} == {"tensor(float)"}


def test_a_float16_cache_survives_convert(sparse_model: Model, tmp_path: Path) -> None:
    export(sparse_model("llama", **WIDE), tmp_path / "p", weights="int8", check=False)
    facts = convert(tmp_path / "p", tmp_path / "dense", "dense").details
    assert facts["kv_cache"] == "float16"
    tokens = np.random.default_rng(2).integers(0, 258, (2, 9))
    found = [FusedRunner(tmp_path / name / FUSED_NAME).prefill(tokens) for name in ("p", "dense")]
    np.testing.assert_allclose(*found, atol=1e-5, rtol=1e-4)  # the same weights, multiplied in another order


def test_values_beyond_float16_are_refused_with_the_way_out(sparse_model: Model, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(sparse_model("llama", **WIDE), model)
    tensors = load_file(model / "model.safetensors")
    for name in [name for name in tensors if name.endswith("v_proj.weight")]:
        tensors[name] *= np.float32(1e7)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"do not fit a float16 cache.*--kv-cache float32"):
        export(model, tmp_path / "p", kv_cache="float16")
    assert export(model, tmp_path / "p", kv_cache="float32", check=False).details["kv_cache"] == "float32"


def feeds(tokens: Any, total: int, wanted: int, cache: dict[str, Any]) -> dict[str, Any]:
    lengths = np.full(len(tokens), total - 1, np.int32)
    return {
        "input_ids": tokens,
        "seqlens_k": lengths,
        "total_sequence_length": np.asarray(total, np.int32),
        "logits_from": np.array([wanted]),
    } | cache


def test_only_wanted_logits_and_prompts_in_pieces(package: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 258, (1, 11))
    whole = FusedRunner(package / FUSED_NAME).prefill(tokens)
    session = onnxruntime.InferenceSession(str(package / FUSED_NAME))
    names = [value.name for value in session.get_outputs()]
    cache = {v.name: np.zeros((1, 2, 16, 16), np.float32) for v in session.get_inputs() if "past" in v.name}
    for begin, end, wanted in ((0, 6, 5), (6, 11, 2)):
        run = session.run(names, feeds(tokens[:, begin:end], end, wanted, cache))
        found = dict(zip(names, run, strict=True))
        cache = {name: found[name.replace("past_key_values", "present")] for name in cache}
        assert found["logits"].shape == (1, end - begin - wanted, 258)
        # float32 sums over another number of rows and cached positions
        np.testing.assert_allclose(found["logits"], whole[:, begin + wanted : end], atol=1e-5, rtol=1e-4)


def test_padding_on_the_right_changes_nothing(package: Path) -> None:
    """A row of 4 beside one of 9 gives the logits it gives alone, and goes on decoding from its own length."""
    rng = np.random.default_rng(1)
    tokens, mask = rng.integers(0, 258, (2, 9)), np.ones((2, 9), np.int64)
    mask[1, :5] = 0
    both, alone = FusedRunner(package / FUSED_NAME), FusedRunner(package / FUSED_NAME)
    together, single = both.prefill(tokens, mask), alone.prefill(tokens[1:, 5:])
    np.testing.assert_allclose(together[1, 5:], single[0], atol=1e-5, rtol=1e-4)
    for token in (7, 8, 9):
        step = both.step(np.array([token, token]))
        np.testing.assert_allclose(step[1:], alone.step(np.array([token])), atol=1e-5, rtol=1e-4)


def test_long_models_get_tables_of_bounded_length(sparse_model: Model, tmp_path: Path) -> None:
    model = sparse_model("llama", max_position_embeddings=1 << 20, **WIDE)
    facts = export(model, tmp_path / "p", check=False).details
    assert facts["fused_positions"] == MAX_POSITIONS == facts["fused_positions_bound"]


def test_a_wrong_fused_graph_is_not_published(
    sparse_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tailcut.export import fused

    right = fused._table

    def wrong(graph: Any, name: str, rotary: Any, rows: int) -> tuple[str, str]:
        cos, sin = right(graph, name, rotary, rows)
        return sin, cos

    monkeypatch.setattr(fused, "_table", wrong)
    with pytest.raises(InputError, match="differs from torch by"):
        export(sparse_model("llama", **WIDE), tmp_path / "p")
    assert list(tmp_path.iterdir()) == []
