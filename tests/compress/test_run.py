"""compress(): every family with every pruner, loaded back by transformers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tailcut import manifest as manifests
from tailcut.allocation import NM, Allocation, Dense, Unstructured
from tailcut.checkpoint import Checkpoint, float32
from tailcut.compress.calibration import Calibration
from tailcut.compress.discovery import find_linears, read_weight
from tailcut.compress.run import compress
from tailcut.errors import InputError, MissingEnvironmentError

TinyModel = Callable[..., Path]
Allocate = Callable[..., Allocation]
PRUNERS = ("magnitude", "wanda", "sparsegpt")


def zeros_of(directory: Path) -> dict[str, float]:
    checkpoint = Checkpoint(directory)
    return {
        linear.name: float((float32(read_weight(checkpoint, linear)) == 0).mean())
        for linear in find_linears(checkpoint)
    }


def zero_masks(directory: Path) -> list[np.ndarray[Any, Any]]:
    checkpoint = Checkpoint(directory)
    return [float32(read_weight(checkpoint, linear)) == 0 for linear in find_linears(checkpoint)]


@pytest.mark.parametrize("pruner", PRUNERS)
def test_every_family_with_every_pruner(
    family: str, pruner: str, tiny_model: TinyModel, allocate: Allocate, calibration: Calibration, tmp_path: Path
) -> None:
    source, out = tiny_model(family), tmp_path / "out"
    blocks = [linear.name for linear in find_linears(Checkpoint(source))]
    first, last = blocks[0], blocks[-1]
    allocation = allocate(source, Unstructured(0.5), {first: Dense(), last: NM(2, 4)})
    manifest = compress(source, allocation, out, pruner=pruner, calibration=calibration)
    model = AutoModelForCausalLM.from_pretrained(out)
    ids = AutoTokenizer.from_pretrained(out)("hello", return_tensors="pt").input_ids
    assert torch.isfinite(model(ids).logits).all()
    for name, share in zeros_of(out).items():
        # all tiny widths are even, so that half of every row is a whole number of weights
        assert share == allocation.plans[name].pattern.sparsity
        assert manifest.layers[name].sparsity == share
        weight = model.get_submodule(name).weight
        assert float((weight == 0).float().mean()) == share
    assert not list(tmp_path.glob("*.work"))
    assert manifests.verify(out) == manifest


def test_the_rest_of_the_model_is_untouched(
    tiny_model: TinyModel, allocate: Allocate, calibration: Calibration, half: Unstructured, tmp_path: Path
) -> None:
    source = tiny_model("gpt2", "bfloat16")
    compress(source, allocate(source, half), tmp_path / "out", pruner="sparsegpt", calibration=calibration)
    before, after = Checkpoint(source), Checkpoint(tmp_path / "out")
    cut = {linear.tensor for linear in find_linears(before)}
    assert before.names == after.names
    for name in before.names:
        assert before.dtype(name) == after.dtype(name)
        if name not in cut:
            assert before.read(name).tobytes() == after.read(name).tobytes()
    for name in ("config.json", "tokenizer.json"):
        assert (source / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_wanda_keeps_weights_as_they_were(
    tiny_model: TinyModel, allocate: Allocate, calibration: Calibration, half: Unstructured, tmp_path: Path
) -> None:
    source = tiny_model("llama", "float16")
    compress(source, allocate(source, half), tmp_path / "out", pruner="wanda", calibration=calibration)
    before, after = Checkpoint(source), Checkpoint(tmp_path / "out")
    for linear in find_linears(before):
        old, new = read_weight(before, linear), read_weight(after, linear)
        assert np.array_equal(new[new != 0], old[new != 0])


def test_blocks_see_what_pruned_blocks_before_them_produce(
    tiny_model: TinyModel, allocate: Allocate, calibration: Calibration, half: Unstructured, tmp_path: Path
) -> None:
    """Cutting block 0 harder must change which weights of block 1 go, and never those of block 0's successor-free self."""
    source = tiny_model("llama")
    for name, first in (("a", Unstructured(0.5)), ("b", Unstructured(0.9))):
        allocation = allocate(source, half, {"layers.0.": first})
        compress(source, allocation, tmp_path / name, pruner="wanda", calibration=calibration)
    a, b = Checkpoint(tmp_path / "a"), Checkpoint(tmp_path / "b")
    name = "model.layers.1.mlp.up_proj.weight"
    assert not np.array_equal(a.read(name) == 0, b.read(name) == 0)


def test_deterministic_and_dependent_on_the_seed(
    tiny_model: TinyModel, allocate: Allocate, text: Path, half: Unstructured, tmp_path: Path, same_files: Any
) -> None:
    source = tiny_model("qwen3")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        chosen = Calibration(str(text), samples=3, seqlen=16, seed=seed)
        compress(source, allocate(source, half), tmp_path / name, pruner="sparsegpt", calibration=chosen)
    assert same_files(tmp_path / "a", tmp_path / "b")
    assert not same_files(tmp_path / "a", tmp_path / "c")


def test_notes_of_the_source_are_carried(
    tiny_model: TinyModel, allocate: Allocate, calibration: Calibration, half: Unstructured, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(tiny_model("llama"), tmp_path / "source"))
    note = manifests.Manifest(
        "model", "test", {"name": "x"}, {}, 1, manifests.file_entries(source), notes=("dequantised from 4 bits",)
    )
    manifests.write_manifest(note, source)
    made = compress(source, allocate(source, half), tmp_path / "out", pruner="magnitude", calibration=calibration)
    assert made.notes == ("dequantised from 4 bits",)
    assert made.source["name"] == "source"
    assert "calibration" not in made.details  # magnitude looked at none


def test_zero_plan_is_the_same_model(
    tiny_model: TinyModel, allocate: Allocate, calibration: Calibration, tmp_path: Path
) -> None:
    source = tiny_model("opt")
    compress(source, allocate(source, Dense()), tmp_path / "out", pruner="sparsegpt", calibration=calibration)
    before, after = Checkpoint(source), Checkpoint(tmp_path / "out")
    assert all(before.read(name).tobytes() == after.read(name).tobytes() for name in before.names)


# what is wrong with the input, and the sentence it must give


def edited(source: Path, tmp_path: Path, **tensors: np.ndarray[Any, Any]) -> Path:
    copy = Path(shutil.copytree(source, tmp_path / "edited"))
    path = copy / "model.safetensors"
    save_file(load_file(path) | tensors, path, {"format": "pt"})
    return copy


def refuse(source: Path, tmp_path: Path, plan: Allocation, calibration: Calibration, match: str) -> None:
    with pytest.raises(InputError, match=match):
        compress(source, plan, tmp_path / "out", calibration=calibration)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.work").exists()


def test_nan_anywhere_is_refused_before_work_starts(
    tiny_model: TinyModel, allocate: Allocate, calibration: Calibration, half: Unstructured, tmp_path: Path
) -> None:
    plan = allocate(tiny_model("llama"), half)
    norm = np.full(32, np.nan, np.float32)
    source = edited(tiny_model("llama"), tmp_path, **{"model.layers.2.input_layernorm.weight": norm})
    refuse(source, tmp_path, plan, calibration, r"model\.layers\.2\.input_layernorm\.weight: holds NaN")


def test_allocation_of_another_model(
    tiny_model: TinyModel, allocate: Allocate, calibration: Calibration, half: Unstructured, tmp_path: Path
) -> None:
    plan = allocate(tiny_model("gpt2"), half)
    refuse(tiny_model("llama"), tmp_path, plan, calibration, "no plan for it|no such linear")


def test_allocation_that_misses_a_layer(
    tiny_model: TinyModel, allocate: Allocate, calibration: Calibration, half: Unstructured, tmp_path: Path
) -> None:
    plans = dict(allocate(tiny_model("llama"), half).plans)
    del plans["model.layers.1.mlp.down_proj"]
    refuse(
        tiny_model("llama"),
        tmp_path,
        Allocation(plans, {}),
        calibration,
        r"layers\.1\.mlp\.down_proj: .* no plan for it",
    )


def test_nm_that_does_not_divide_names_the_layer(
    tiny_model: TinyModel, allocate: Allocate, calibration: Calibration, half: Unstructured, tmp_path: Path
) -> None:
    plan = allocate(tiny_model("llama"), half, {"layers.1.self_attn.o_proj": NM(2, 5)})
    refuse(tiny_model("llama"), tmp_path, plan, calibration, r"layers\.1\.self_attn\.o_proj: 2:5 needs .* got 32")


def test_passes_in_bfloat16_move_few_choices(
    family: str, tiny_model: TinyModel, allocate: Allocate, calibration: Calibration, half: Unstructured, tmp_path: Path
) -> None:
    source = tiny_model(family)
    plan = allocate(source, half)
    made = [
        compress(source, plan, tmp_path / forward, pruner="wanda", calibration=calibration, forward=forward)
        for forward in ("float32", "bfloat16")
    ]
    assert [manifest.details["forward"] for manifest in made] == ["float32", "bfloat16"]
    assert [manifest.sparsity for manifest in made] == [0.5, 0.5]
    masks = [np.concatenate([mask.ravel() for mask in zero_masks(tmp_path / name)]) for name in ("float32", "bfloat16")]
    # inputs differ by 2^-9 of themselves a layer, so that only scores next to a row's threshold change sides
    assert np.mean(masks[0] != masks[1]) < 0.05


def test_passes_in_other_arithmetic_are_refused(
    tiny_model: TinyModel, allocate: Allocate, calibration: Calibration, half: Unstructured, tmp_path: Path
) -> None:
    source = tiny_model("llama")
    wrong: Any = "int8"
    with pytest.raises(InputError, match="computed in float32 or bfloat16, got 'int8'"):
        compress(source, allocate(source, half), tmp_path / "out", calibration=calibration, forward=wrong)


def test_unknown_pruner_lists_the_choices(
    tiny_model: TinyModel, allocate: Allocate, calibration: Calibration, half: Unstructured, tmp_path: Path
) -> None:
    plan = allocate(tiny_model("llama"), half)
    with pytest.raises(InputError, match=r"unknown pruner 'luck'; choose one of .*magnitude.*, sparsegpt, wanda"):
        compress(tiny_model("llama"), plan, tmp_path / "out", pruner="luck", calibration=calibration)


def test_an_existing_output_is_not_overwritten(
    tiny_model: TinyModel, allocate: Allocate, calibration: Calibration, half: Unstructured, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(InputError, match="already exists"):
        compress(tiny_model("llama"), allocate(tiny_model("llama"), half), tmp_path / "out", calibration=calibration)
    assert (tmp_path / "out" / "precious").read_text() == "x"


def test_a_disk_that_is_too_small_is_known_beforehand(
    tiny_model: TinyModel,
    allocate: Allocate,
    calibration: Calibration,
    half: Unstructured,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = allocate(tiny_model("llama"), half)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 100, 100))
    with pytest.raises(MissingEnvironmentError, match=r"needs 0 MB, the disk has 0 MB free|needs .* MB free"):
        compress(tiny_model("llama"), plan, tmp_path / "out", calibration=calibration)
    assert not (tmp_path / "out.work").exists()


def test_written_index_is_complete(
    tiny_model: TinyModel, allocate: Allocate, calibration: Calibration, half: Unstructured, tmp_path: Path
) -> None:
    source = tiny_model("llama")
    compress(source, allocate(source, half), tmp_path / "out", pruner="magnitude", calibration=calibration)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(Checkpoint(source).names)
    assert sorted(set(index["weight_map"].values())) == [f"model-{i:05d}-of-00004.safetensors" for i in range(1, 5)]
