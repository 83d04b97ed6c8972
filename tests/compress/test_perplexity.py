"""directory_nll against transformers' own loss."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tailcut.compress import perplexity as module
from tailcut.compress.perplexity import directory_nll, tokenise
from tailcut.errors import InputError
from tailcut.windows import read_text

TinyModel = Callable[..., Path]
WINDOWS = np.random.default_rng(1).integers(0, 256, (5, 20))


def reference(directory: Path) -> np.ndarray:
    """-log softmax of every next token, float64, from the whole model."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ids = torch.from_numpy(WINDOWS)
    with torch.inference_mode():
        scores = model(ids).logits[:, :-1].double().log_softmax(-1)
    return -scores.gather(-1, ids[:, 1:, None]).sum((1, 2)).numpy()


def test_equals_transformers(family: str, tiny_model: TinyModel) -> None:
    got = directory_nll(tiny_model(family), WINDOWS, device="cpu", batch=2)
    # 19 terms of order 10 in float32, through 3 blocks: well inside 1e-4 relative
    assert np.allclose(got, reference(tiny_model(family)), rtol=1e-4)


def test_chunks_and_sweeps_change_nothing(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits a few positions at a time, windows in several sweeps through the blocks."""
    whole = directory_nll(tiny_model("gemma2"), WINDOWS, device="cpu", batch=1)
    monkeypatch.setattr(module, "_LOGITS", 258 * 7)
    monkeypatch.setattr(module, "_ACTIVATIONS", 32 * 20 * 2)
    parts = directory_nll(tiny_model("gemma2"), WINDOWS, device="cpu", batch=1)
    assert np.allclose(whole, parts, rtol=1e-5)  # the same float32 rows, multiplied in other groupings


def test_bfloat16_is_near(tiny_model: TinyModel) -> None:
    got = directory_nll(tiny_model("llama"), WINDOWS, device="cpu", precision="bfloat16")
    assert np.allclose(got, reference(tiny_model("llama")), rtol=0.05)  # 8-bit mantissa through 3 blocks
    assert not np.array_equal(got, directory_nll(tiny_model("llama"), WINDOWS, device="cpu"))


def test_tokenise_uses_the_models_tokenizer(tiny_model: TinyModel, text: Path) -> None:
    windows, bos = tokenise(tiny_model("llama"), read_text(text), 16, 3)
    assert windows.shape == (3, 16)
    assert bos is None


def test_windows_beyond_the_model_are_refused(tiny_model: TinyModel) -> None:
    with pytest.raises(InputError, match="longer than the model's 128 positions"):
        directory_nll(tiny_model("gpt2"), np.zeros((1, 200), np.int64), device="cpu")
