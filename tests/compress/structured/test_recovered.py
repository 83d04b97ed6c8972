"""`tailcut recover` of structurally cut directories: smaller than their teacher, blocks of different shapes, through export."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailcut.allocation import Allocation, LayerPlan, Unstructured
from tailcut.checkpoint import Checkpoint, write_index, write_shard
from tailcut.compress.calibration import Calibration
from tailcut.compress.discovery import find_linears
from tailcut.compress.divergence import directory_kl
from tailcut.compress.recover import recover
from tailcut.compress.run import compress
from tailcut.compress.structured_run import Structuring, Units, cut_structured
from tailcut.errors import InputError
from tailcut.export.run import export
from tailcut.manifest import verify
from tailcut.recovering import Effort, Recovering

TinyModel = Callable[..., Path]
Uneven = Callable[..., Path]
Tailcut = Callable[..., tuple[int, str, str]]


def quick(text: Path, *methods: str, **more: Any) -> Recovering:
    """Twenty-four steps of four windows: what falls is told from what does not."""
    sizes: dict[str, Any] = {"seqlen": 24, "batch": 4, "samples": 4, "rank": 4, "rate": 3e-3, "device": "cpu"}
    return Recovering((str(text),), Effort(steps=24), methods, **(sizes | more))


def shapes_of(directory: Path) -> dict[str, tuple[int, ...]]:
    checkpoint = Checkpoint(directory)
    return {name: checkpoint.shape(name) for name in checkpoint.names}


@pytest.mark.parametrize("method", ["distill", "lora"])
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "phi3", "gpt2"])
def test_blocks_of_different_shapes_get_better_and_are_exported(
    name: str, method: str, uneven: Uneven, tiny_model: TinyModel, text: Path, tmp_path: Path
) -> None:
    student, teacher, out = uneven(name), tiny_model(name), tmp_path / "out"
    result = recover(student, teacher, out, quick(text, method))
    assert result.heldout_kl_after < result.heldout_kl_before
    assert shapes_of(out) == shapes_of(student)
    before, after = verify(student), verify(out)
    assert (out / "config.json").read_bytes() == (student / "config.json").read_bytes()
    assert after.notes == before.notes
    assert after.details["equal_blocks"] is False
    assert after.details["mlp_channels_kept"] == before.details["mlp_channels_kept"]
    assert after.total_parameters == before.total_parameters
    # another text than was learnt from, by the loader that everyone else uses
    windows = np.arange(48).reshape(2, 24) * 5 % 250
    kl = [directory_kl(directory, teacher, windows, device="cpu").mean() for directory in (student, out)]
    assert kl[1] != kl[0]
    export(out, tmp_path / "package")  # which compares the package with the directory in torch
    verify(tmp_path / "package")


@pytest.mark.parametrize("units", [("heads", "mlp"), ("blocks",)])
def test_one_shape_for_all_and_fewer_blocks(
    units: Sequence[Units], tiny_model: TinyModel, calibration: Calibration, text: Path, tmp_path: Path
) -> None:
    asked = Structuring(0.4, units=tuple(units), multiple=8, calibration=calibration, device="cpu")
    small, teacher = tmp_path / "small", tiny_model("llama")
    cut_structured(teacher, small, asked)
    result = recover(small, teacher, tmp_path / "out", quick(text, "distill"))
    assert result.heldout_kl_after < result.heldout_kl_before
    assert shapes_of(tmp_path / "out") == shapes_of(small)
    export(tmp_path / "out", tmp_path / "package")


def test_zeros_cut_into_a_smaller_model_are_kept(
    uneven: Uneven, tiny_model: TinyModel, calibration: Calibration, text: Path, tmp_path: Path
) -> None:
    small = uneven("llama")
    plans = {linear.name: LayerPlan(Unstructured(0.5)) for linear in find_linears(Checkpoint(small))}
    compress(small, Allocation(plans, {}), tmp_path / "cut", calibration=calibration, device="cpu")
    result = recover(tmp_path / "cut", tiny_model("llama"), tmp_path / "out", quick(text, "distill"))
    assert result.mask_sha256_before == result.mask_sha256_after
    assert result.sparsity == pytest.approx(0.5, abs=0.01)
    assert result.heldout_kl_after < result.heldout_kl_before
    # the model that the zeros were cut into teaches, too, and its matrices pair
    both = recover(tmp_path / "cut", small, tmp_path / "paired", quick(text, "least-squares", "blockwise", "distill"))
    assert both.mask_sha256_before == both.mask_sha256_after
    export(tmp_path / "paired", tmp_path / "package")


def test_a_few_zeros_of_the_dense_model_are_no_mask_of_another(
    uneven: Uneven, tiny_model: TinyModel, text: Path, tmp_path: Path
) -> None:
    """Dequantised checkpoints have zeros before anything is cut, and some of them are left."""
    small, out = uneven("llama"), tmp_path / "zeros"
    checkpoint, name = Checkpoint(small), "model.layers.1.self_attn.q_proj.weight"
    tensors = {key: np.array(checkpoint.read(key)) for key in checkpoint.names}
    tensors[name][0, :3] = 0.0
    out.mkdir()
    for companion in ("config.json", "tokenizer.json"):
        (out / companion).write_bytes((small / companion).read_bytes())
    write_shard(out / "model-00001-of-00001.safetensors", tensors)
    write_index(out, [out / "model-00001-of-00001.safetensors"])
    recover(out, tiny_model("llama"), tmp_path / "out", quick(text, "distill"))
    assert (np.asarray(Checkpoint(tmp_path / "out").read(name))[0, :3] == 0.0).all()


def test_block_losses_where_blocks_are_and_a_sentence_where_they_are_not(
    uneven: Uneven, tiny_model: TinyModel, text: Path, tmp_path: Path
) -> None:
    teacher = tiny_model("llama")
    recover(uneven("llama"), teacher, tmp_path / "wide", quick(text, "distill", features=0.5))
    fewer = tmp_path / "fewer"
    cut_structured(teacher, fewer, Structuring(0.34, units=("blocks",), importance="magnitude", device="cpu"))
    with pytest.raises(InputError, match=r"the feature loss pairs blocks, the teacher has 3 and the student 2"):
        recover(fewer, teacher, tmp_path / "out", quick(text, "distill", features=0.5))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.work").exists()


@pytest.mark.parametrize("method", ["least-squares,distill", "blockwise"])
def test_methods_that_pair_matrices_say_what_to_use(
    method: str, uneven: Uneven, tiny_model: TinyModel, text: Path, tmp_path: Path, tailcut: Tailcut
) -> None:
    words = ("--teacher", tiny_model("llama"), "--text", text, "--method", method, "-o", tmp_path / "out")
    code, shown, said = tailcut("recover", uneven("llama"), *words)
    assert (code, shown) == (2, "")
    assert "use --method distill" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out.work").exists()
