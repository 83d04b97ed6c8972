"""Structurally cut models through the exporter: its own parity check with torch passes, for equal and unequal blocks."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tailcut.allocation import Allocation, LayerPlan, Unstructured
from tailcut.checkpoint import Checkpoint
from tailcut.compress.discovery import find_linears
from tailcut.compress.structured_run import Structuring, cut_structured
from tailcut.errors import InputError
from tailcut.export.run import describe, export
from tailcut.export.static import export_deepsparse
from tailcut.kernels.decoder import Decoder
from tailcut.kernels.package import FUSED_NAME

TinyModel = Callable[..., Path]
WIDE = {"head_dim": 16}  # fused.onnx takes heads of multiples of 16


def unevenly(source: Path, out: Path) -> Path:
    linears = find_linears(Checkpoint(source))
    plans = {one.name: LayerPlan(Unstructured(0.1 + 0.25 * one.block)) for one in linears}
    asked = Structuring(allocation=Allocation(plans, {}), importance="magnitude", multiple=16, refit=False)
    cut_structured(source, out, asked)
    return out


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "mistral"])
def test_unequal_blocks_export_with_parity(name: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    source = unevenly(tiny_model(name, **WIDE), tmp_path / "cut")
    manifest = export(source, tmp_path / "package")
    assert manifest.details["parity_max_abs_error"] <= manifest.details["parity_tolerance"]  # type: ignore[operator]
    assert (tmp_path / "package" / FUSED_NAME).is_file()
    shapes = {layer.shape for module, layer in manifest.layers.items() if "down_proj" in module}
    assert len(shapes) > 1


@pytest.mark.parametrize("name", ["opt", "gpt2", "gpt_neox"])
def test_families_that_keep_their_heads_export_with_parity(name: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    export(unevenly(tiny_model(name), tmp_path / "uneven"), tmp_path / "uneven-package")
    cut_structured(
        tiny_model(name), tmp_path / "even", Structuring(0.3, importance="magnitude", multiple=8, refit=False)
    )
    export(tmp_path / "even", tmp_path / "even-package")


def test_fewer_equal_heads_export_and_decode(tiny_model: TinyModel, tmp_path: Path) -> None:
    asked = Structuring(0.5, importance="magnitude", multiple=16, refit=False)
    cut_structured(tiny_model("llama", **WIDE), tmp_path / "cut", asked)
    export(tmp_path / "cut", tmp_path / "package")
    export_deepsparse(tmp_path / "cut", tmp_path / "static", context=16, prompt=4)
    config = json.loads((tmp_path / "package" / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (2, 1, 16)


def test_the_engine_decodes_unequal_blocks(tiny_model: TinyModel, tmp_path: Path) -> None:
    """Caches of different widths side by side: steps give what a prefill of the same tokens gives."""
    import numpy as np

    source = unevenly(tiny_model("llama", **WIDE), tmp_path / "cut")
    export(source, tmp_path / "package")
    tokens = np.arange(12)[None] * 7 % 250
    whole = Decoder(tmp_path / "package").prefill(tokens)
    stepping = Decoder(tmp_path / "package")
    stepping.prefill(tokens[:, :6])
    for place in range(6, 12):
        got = stepping.step(tokens[:, place])
        # float32 attention over the same cache, in runs of one token and of twelve
        np.testing.assert_allclose(got, whole[:, place], rtol=1e-3, atol=1e-3)


def test_static_graphs_take_unequal_blocks(tiny_model: TinyModel, tmp_path: Path) -> None:
    source = unevenly(tiny_model("llama", **WIDE), tmp_path / "cut")
    export_deepsparse(source, tmp_path / "static", context=16, prompt=4)


def test_queries_that_do_not_share_as_elsewhere_are_refused(tiny_model: TinyModel) -> None:
    config = dict(Checkpoint(tiny_model("llama")).config)
    config["per_layer_config"] = {"1": {"num_attention_heads": 3, "num_key_value_heads": 1}}
    with pytest.raises(InputError, match="block 1 has 3 heads on 1 key/value heads"):
        describe(config, Path("model"))
