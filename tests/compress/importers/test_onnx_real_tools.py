"""What torch's exporter and ONNX Runtime's quantisers really write is read back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailcut.checkpoint import Checkpoint
from tailcut.compress.adopting import bring
from tailcut.compress.discovery import find_linears
from tailcut.compress.importers import ImportOptions

TinyModel = Callable[..., Path]


@pytest.fixture
def exported(tiny_model: TinyModel, tmp_path: Path) -> Path:
    """A tiny Llama through torch's TorchScript exporter, as SparseML's own export used it; transposes are folded."""
    import torch
    from transformers import AutoModelForCausalLM

    source: Any = AutoModelForCausalLM.from_pretrained(
        tiny_model("llama"), dtype=torch.float32, attn_implementation="eager"
    )

    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.lm_head = source.model, source.lm_head

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            mask = torch.full((5, 5), -1e9).triu(1)[None, None]
            embedded = self.model.embed_tokens(ids)
            hidden = self.model(
                inputs_embeds=embedded, attention_mask=mask, position_ids=torch.arange(5)[None], use_cache=False
            )
            return self.lm_head(hidden.last_hidden_state)

    path = tmp_path / "exported.onnx"
    torch.onnx.export(
        Named().eval(), (torch.arange(5)[None],), str(path), opset_version=17, dynamo=False, input_names=["ids"]
    )
    return path


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["float32", "int8", "uint8 rows", "qdq"])
def test_files_of_real_tools(weights: str, exported: Path, tiny_model: TinyModel, tmp_path: Path) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )

    class Texts(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [np.array([[1, 2, 3, 4, 5]]), np.array([[9, 8, 7, 6, 5]])]

        def get_next(self) -> dict[str, Any] | None:
            return {"ids": self.left.pop()} if self.left else None

    path = tmp_path / "m.onnx"
    if weights == "float32":
        path = exported
    elif weights == "qdq":
        quantize_static(
            exported, path, Texts(), quant_format=QuantFormat.QDQ, weight_type=QuantType.QInt8, per_channel=True
        )
    else:
        rows = weights == "uint8 rows"
        quantize_dynamic(exported, path, weight_type=QuantType.QUInt8 if rows else QuantType.QInt8, per_channel=rows)
    config = tmp_path / "config"
    config.mkdir()
    source = tiny_model("llama")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (config / name).write_bytes((source / name).read_bytes())
    manifest = bring(path, tmp_path / "out", "onnx-sparseml", ImportOptions(config))
    before, made = Checkpoint(source), Checkpoint(tmp_path / "out")
    for linear in find_linears(before):
        want, got = np.asarray(before.read(linear.tensor)), np.asarray(made.read(linear.tensor))
        if weights == "float32":
            assert np.array_equal(got, want)
        else:  # 8 bits of the largest weight: half a step
            assert float(np.abs(got - want).max()) <= float(np.abs(want).max()) / 127, linear.name
    exact = 0 if weights in ("float32", "uint8 rows") else 21
    assert manifest.details["exact_integers"] == exact
