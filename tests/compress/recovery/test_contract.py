"""Every file of compress/recovery keeps the same contract."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tailcut import plugins
from tailcut.checkpoint import Checkpoint, float32
from tailcut.compress.discovery import find_linears, read_weight
from tailcut.compress.recover import recover
from tailcut.manifest import verify
from tailcut.recovering import METHODS, Recovering, try_recovery
from tailcut.sidecar import open_sidecars

TinyModel = Callable[..., Path]
Settings = Callable[..., Recovering]
NAMES = plugins.names(METHODS)


def matrices(directory: Path) -> dict[str, np.ndarray]:
    checkpoint = Checkpoint(directory)
    return {linear.name: float32(read_weight(checkpoint, linear)) for linear in find_linears(checkpoint)}


def test_the_methods_are_there() -> None:
    assert set(NAMES) == {"least-squares", "blockwise", "distill", "lora"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pattern", ["half", "2:4"])
def test_the_mask_stays_and_the_teacher_is_nearer(
    name: str, pattern: str, cut: Callable[..., Path], tiny_model: TinyModel, settings: Settings, tmp_path: Path
) -> None:
    student, out = cut("llama", pattern), tmp_path / "out"
    result = recover(student, tiny_model("llama"), out, settings(name))
    assert result.heldout_kl_after < result.heldout_kl_before
    before, after = matrices(student), matrices(out)
    assert all(np.array_equal(before[linear] == 0, after[linear] == 0) for linear in before)
    assert any(not np.array_equal(before[linear], after[linear]) for linear in before)
    assert (result.mask_sha256_before, result.new_zeros) == (result.mask_sha256_after, 0)
    manifest, source = verify(out), verify(student)
    assert manifest.sparsity == source.sparsity == pytest.approx(0.5)
    assert {name: layer.plan for name, layer in manifest.layers.items()} == {
        name: layer.plan for name, layer in source.layers.items()
    }
    assert manifest.details["mask_sha256"] == result.mask_sha256_after
    assert (manifest.details["recovery"], manifest.details["pruner"]) == (name, "wanda")
    assert try_recovery(out) == result
    assert not (tmp_path / "out.work").exists()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bits", [8, 4])
def test_integers_stay_on_a_grid_and_zeros_stay_zero(
    name: str, bits: int, cut: Callable[..., Path], tiny_model: TinyModel, settings: Settings, tmp_path: Path
) -> None:
    student, out = cut("llama", "half", bits), tmp_path / "out"
    result = recover(student, tiny_model("llama"), out, settings(name))
    before, after = (open_sidecars(path, verify(path)) for path in (student, out))
    stored, filled = matrices(out), 0
    for linear in before:
        old, new = before.read(linear), after.read(linear)
        assert new.bits == bits
        assert not new.q[old.q == 0].any()
        filled += int(((old.q != 0) & (new.q == 0)).sum())
        assert np.array_equal(stored[linear], new.dense())  # a float32 directory holds the products exactly
        if name != "least-squares":  # which rounds anew; the others learn on the grid that was there
            assert np.array_equal(old.scales, new.scales)
    assert filled == result.new_zeros
    assert result.heldout_kl_after <= result.heldout_kl_before * 1.001  # float32 against the learning's own looks


@pytest.mark.parametrize("name", NAMES)
def test_all_families(
    name: str, family: str, cut: Callable[..., Path], tiny_model: TinyModel, settings: Settings, tmp_path: Path
) -> None:
    result = recover(cut(family), tiny_model(family), tmp_path / "out", settings(name))
    assert result.heldout_kl_after < result.heldout_kl_before
    assert result.mask_sha256_before == result.mask_sha256_after
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.inference_mode():
        assert torch.isfinite(model(torch.zeros(1, 4, dtype=torch.long)).logits).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_settings_give_the_same_bytes_and_only_what_learns_changes(
    name: str, cut: Callable[..., Path], tiny_model: TinyModel, settings: Settings, tmp_path: Path
) -> None:
    student = cut("gpt2", dtype="bfloat16")
    for out in ("a", "b"):
        recover(student, tiny_model("gpt2", "bfloat16"), tmp_path / out, settings(name, seed=5))
    files = {path.name for path in (tmp_path / "a").iterdir()} - {"recovery.json"}
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    before, after = Checkpoint(student), Checkpoint(tmp_path / "a")
    assert set(before.names) == set(after.names)
    assert all(before.dtype(item) == after.dtype(item) for item in before.names)
    assert all(before.shape(item) == after.shape(item) for item in before.names)
    changed = {item for item in before.names if not np.array_equal(before.read(item), after.read(item))}
    cuts = {linear.tensor for linear in find_linears(before)}
    if name in ("least-squares", "lora"):
        assert changed <= cuts
    else:
        assert changed > cuts  # norms and biases too; the embeddings, which are the head's as well, only by distill
        assert any("wte" in item for item in changed) == (name == "distill")


def test_methods_work_one_after_another(
    cut: Callable[..., Path], tiny_model: TinyModel, settings: Settings, tmp_path: Path
) -> None:
    student, teacher = cut("llama"), tiny_model("llama")
    recover(student, teacher, tmp_path / "first", settings("least-squares"))
    recover(tmp_path / "first", teacher, tmp_path / "second", settings("distill"))
    both = recover(student, teacher, tmp_path / "both", settings("least-squares", "distill"))
    assert [stage.method for stage in both.stages] == ["least-squares", "distill"]
    assert all(
        np.array_equal(a, b)
        for a, b in zip(matrices(tmp_path / "both").values(), matrices(tmp_path / "second").values(), strict=True)
    )
    assert both.heldout_kl_after < both.stages[1].curve[0].heldout
