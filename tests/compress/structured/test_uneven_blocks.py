"""Blocks of different shapes: our loader builds them, packages hold them, and others are told."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tailcut.checkpoint import Checkpoint
from tailcut.compress.calibration import Calibration
from tailcut.compress.perplexity import directory_nll
from tailcut.compress.skeleton import build_skeleton
from tailcut.compress.structured_run import UNEVEN, Structuring, cut_structured
from tailcut.errors import InputError
from tailcut.manifest import read_manifest
from tailcut.shapes import KEY, overrides_of, require_equal, written

Uneven = Callable[..., Path]
LOSES_HEADS = ("llama", "qwen3", "gemma3_text", "phi3")


@pytest.mark.parametrize("name", [*LOSES_HEADS, "opt", "gpt2"])
def test_our_loader_computes_what_the_masked_model_does(
    name: str, uneven: Uneven, tiny_model: Callable[..., Path]
) -> None:
    """Against transformers' own whole model with the removed columns zero, by perplexity of the same windows."""
    directory = uneven(name)
    shapes = [tuple(p.shape) for p in build_skeleton(Checkpoint(directory)).blocks.parameters() if p.ndim == 2]
    assert len(set(shapes)) > 4  # they do differ
    whole, small = Checkpoint(tiny_model(name)), Checkpoint(directory)
    windows = np.arange(80).reshape(2, 40) * 3 % 250
    model: Any = AutoModelForCausalLM.from_pretrained(
        tiny_model(name), dtype=torch.float32, attn_implementation="eager"
    )
    zero_what_is_gone(model, whole, small)
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(windows), use_cache=False).logits.log_softmax(-1)
    want = [-float(row[range(39), ids[1:]].sum()) for row, ids in zip(logits, windows, strict=True)]
    # float32 sums in another order through three blocks
    np.testing.assert_allclose(directory_nll(directory, windows, device="cpu"), want, rtol=1e-4)


def zero_what_is_gone(model: Any, whole: Checkpoint, small: Checkpoint) -> None:
    """Columns of output and down projections that the smaller model no longer has."""
    for name, parameter in model.named_parameters():
        stored = name if name in small else name.removeprefix(f"{model.base_model_prefix}.")
        if stored not in small or small.shape(stored) == tuple(parameter.shape):
            continue
        left, every = np.asarray(small.read(stored), np.float32), parameter.data
        if left.shape[0] == every.shape[0] and not name.endswith("c_fc.weight"):  # columns went
            kept = [any(np.array_equal(column, one) for one in left.T) for column in every.T.numpy()]
            every[:, ~torch.tensor(kept)] = 0.0
        elif name.endswith("c_proj.weight"):  # Conv1D: inputs are rows
            kept = [any(np.array_equal(row, one) for one in left) for row in every.numpy()]
            every[~torch.tensor(kept)] = 0.0


def test_transformers_refuses_and_the_manifest_says_so(uneven: Uneven) -> None:
    directory = uneven("llama")
    assert UNEVEN in read_manifest(directory).notes
    with pytest.raises(Exception, match=r"intermediate_size|num_attention_heads|mismatch"):
        AutoModelForCausalLM.from_pretrained(directory)


def test_a_cut_uneven_model_can_be_cut_again(uneven: Uneven, calibration: Calibration, tmp_path: Path) -> None:
    """Per-layer settings are built upon, and a block may go from between others."""
    source = uneven("qwen3")
    narrower = cut_structured(source, tmp_path / "narrower", Structuring(0.2, multiple=8, calibration=calibration))
    assert 0.15 < float(narrower.details["ratio_removed"] or 0) < 0.25
    cut_structured(source, tmp_path / "fewer", Structuring(0.34, units=("blocks",), calibration=calibration))
    before, after = (overrides_of(Checkpoint(d).config, n) for d, n in ((source, 3), (tmp_path / "fewer", 2)))
    assert set(map(str, after)) <= set(map(str, before))
    assert np.isfinite(directory_nll(tmp_path / "fewer", np.arange(40).reshape(1, 40), device="cpu")).all()


def test_settings_of_single_blocks_are_checked() -> None:
    assert overrides_of({KEY: {"01": {"intermediate_size": 8}}}, 2) == ({}, {"intermediate_size": 8})
    assert list(written({3: {"intermediate_size": 8}, 12: {"intermediate_size": 8}, 4: {}})) == ["03", "12"]
    for wrong, words in (
        ([], None),
        ({"2": {}}, "entry '2'"),
        ({"x": {}}, "entry 'x'"),
        ({"0": {"hidden_size": 8}}, "hidden_size"),
        ({"0": {"intermediate_size": True}}, "positive integer"),
        ({"0": {"intermediate_size": 0}}, "positive integer"),
        ({"0": 3}, "entry '0'"),
        ([1], "must map"),
    ):
        if words is None:
            assert overrides_of({KEY: wrong}, 2) == ({}, {})
            continue
        with pytest.raises(InputError, match=words):
            overrides_of({KEY: wrong}, 2)
    with pytest.raises(InputError, match=r"llama\.cpp cannot load blocks of different shapes"):
        require_equal({KEY: {"0": {"intermediate_size": 8}}}, "llama.cpp")


def test_weights_of_another_shape_are_refused(uneven: Uneven, tmp_path: Path) -> None:
    shutil.copytree(uneven("llama"), tmp_path / "damaged")
    config = json.loads((tmp_path / "damaged" / "config.json").read_text())
    config[KEY] = {name: own | {"intermediate_size": 24} for name, own in config[KEY].items()}
    (tmp_path / "damaged" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="do not belong together"):
        directory_nll(tmp_path / "damaged", np.arange(8).reshape(1, 8), device="cpu")
