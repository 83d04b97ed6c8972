"""compress, perplexity, inspect, pack and unpack as a user types them: output, sentences, exit codes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tailcut import codec
from tailcut.allocation import Allocation, LayerPlan, Unstructured
from tailcut.checkpoint import Checkpoint
from tailcut.manifest import Manifest

TinyModel = Callable[..., Path]
Allocate = Callable[..., Allocation]
Tailcut = Callable[..., tuple[int, str, str]]


@pytest.fixture
def copy(tiny_model: TinyModel, tmp_path: Path) -> Path:
    """A tiny Llama that may be damaged."""
    return Path(shutil.copytree(tiny_model("llama"), tmp_path / "copy"))


@pytest.fixture
def plan(tiny_model: TinyModel, allocate: Allocate, tmp_path: Path) -> Path:
    codec.save(allocate(tiny_model("llama"), Unstructured(0.5)), tmp_path / "allocation.json")
    return tmp_path / "allocation.json"


@pytest.fixture
def pruned(tailcut: Tailcut, tiny_model: TinyModel, plan: Path, text: Path, tmp_path: Path) -> Path:
    common = ("--allocation", plan, "--calibration", text, "--samples", 4, "--seqlen", 16)
    code, out, err = tailcut("compress", tiny_model("llama"), "-o", tmp_path / "pruned", *common)
    assert code == 0, err
    assert "0.5000 of the block linears are zero" in out
    return tmp_path / "pruned"


def test_compress_prints_its_manifest(tailcut: Tailcut, tiny_model: TinyModel, plan: Path, tmp_path: Path) -> None:
    arguments = ("--allocation", plan, "--pruner", "magnitude", "--json")
    code, out, _ = tailcut("compress", tiny_model("llama"), "-o", tmp_path / "out", *arguments)
    assert code == 0
    assert codec.from_json(Manifest, out).sparsity == 0.5


def test_demo_calibration(tailcut: Tailcut, tiny_model: TinyModel, plan: Path, tmp_path: Path) -> None:
    arguments = ("--allocation", plan, "--samples", 2, "--seqlen", 16, "--json")
    code, out, _ = tailcut("compress", tiny_model("llama"), "-o", tmp_path / "out", *arguments)
    assert code == 0
    assert codec.from_json(Manifest, out).details["calibration"] == "calibration.txt"


def test_inspect(tailcut: Tailcut, pruned: Path) -> None:
    code, out, _ = tailcut("inspect", pruned)
    assert code == 0
    assert "block linears: 0.5000 zeros of 27,648 weights" in out
    assert "pruner: wanda" in out
    code, out, _ = tailcut("inspect", pruned, "--json")
    assert json.loads(out)["layers"]["model.layers.0.mlp.up_proj"]["zeros"] == 1024


def test_inspect_of_a_plain_model(tailcut: Tailcut, tiny_model: TinyModel) -> None:
    code, out, _ = tailcut("inspect", tiny_model("llama"))
    assert code == 0
    assert "not made by tailcut" in out


def test_pack_and_unpack(tailcut: Tailcut, pruned: Path, tmp_path: Path) -> None:
    assert tailcut("pack", pruned, "-o", tmp_path / "packed")[0] == 0
    assert tailcut("unpack", tmp_path / "packed", "-o", tmp_path / "back")[0] == 0
    a, b = Checkpoint(pruned), Checkpoint(tmp_path / "back")
    assert all(a.read(name).tobytes() == b.read(name).tobytes() for name in a.names)


def test_perplexity_alone_and_against_dense(tailcut: Tailcut, pruned: Path, tiny_model: TinyModel, text: Path) -> None:
    common = ("--text", text, "--context", 16, "--windows", 8, "--device", "cpu")
    code, out, _ = tailcut("perplexity", pruned, *common, "--json")
    assert code == 0
    alone = json.loads(out)
    assert alone["tokens_scored"] == 8 * 15
    assert alone["perplexity"] == pytest.approx(np.exp(np.sum(alone["nll"]) / (8 * 15)))
    code, out, _ = tailcut("perplexity", pruned, *common, "--against", tiny_model("llama"), "--json")
    assert code == 0
    pair = json.loads(out)
    assert pair["sparse_perplexity"] == pytest.approx(alone["perplexity"])
    assert pair["ratio"]["value"] == pytest.approx(pair["sparse_perplexity"] / pair["dense_perplexity"])
    assert "dense" in tailcut("perplexity", pruned, *common, "--against", tiny_model("llama"))[1]


# bad input: one sentence on stderr, the right code, nothing left behind


def refused(tailcut: Tailcut, model: Path, plan: Path, tmp_path: Path, *more: object) -> str:
    code, out, err = tailcut("compress", model, "-o", tmp_path / "out", "--allocation", plan, *more)
    assert code == 2
    assert out == ""
    message = [line for line in err.splitlines() if line.startswith("tailcut: ")]
    assert len(message) == 1
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.work").exists()
    return message[0]


def test_truncated_weights(tailcut: Tailcut, copy: Path, plan: Path, tmp_path: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "damaged or truncated" in refused(tailcut, copy, plan, tmp_path)


def test_nan_weights(tailcut: Tailcut, copy: Path, plan: Path, tmp_path: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = np.full((64, 32), np.nan, np.float32)
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    sentence = refused(tailcut, copy, plan, tmp_path)
    assert "model.layers.0.mlp.up_proj.weight: holds NaN" in sentence


def test_wrong_shapes(tailcut: Tailcut, copy: Path, plan: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text()) | {"hidden_size": 48}
    (copy / "config.json").write_text(json.dumps(config))
    assert "weights and config do not belong together" in refused(tailcut, copy, plan, tmp_path)


def test_unknown_family(tailcut: Tailcut, copy: Path, plan: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text()) | {"model_type": "martian"}
    (copy / "config.json").write_text(json.dumps(config))
    assert "unknown model family 'martian'" in refused(tailcut, copy, plan, tmp_path)


def test_missing_tokenizer(tailcut: Tailcut, copy: Path, plan: Path, tmp_path: Path) -> None:
    (copy / "tokenizer.json").unlink()
    assert "no tokenizer" in refused(tailcut, copy, plan, tmp_path)


def test_empty_calibration(tailcut: Tailcut, copy: Path, plan: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    assert "the text is empty" in refused(tailcut, copy, plan, tmp_path, "--calibration", tmp_path / "empty.txt")


def test_no_such_model(tailcut: Tailcut, plan: Path, tmp_path: Path) -> None:
    assert "no such directory" in refused(tailcut, tmp_path / "nowhere", plan, tmp_path)


def test_sparsity_beyond_one(tailcut: Tailcut, copy: Path, plan: Path, tmp_path: Path) -> None:
    plan.write_text(plan.read_text().replace('"sparsity": 0.5', '"sparsity": 1.2', 1))
    assert "1.2" in refused(tailcut, copy, plan, tmp_path)


def test_unknown_pruner(tailcut: Tailcut, copy: Path, plan: Path, tmp_path: Path) -> None:
    assert ", magnitude, ria, sparsegpt, wanda" in refused(tailcut, copy, plan, tmp_path, "--pruner", "luck")


def test_no_gpu_is_an_environment_error(tailcut: Tailcut, copy: Path, plan: Path, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    code, _, err = tailcut("compress", copy, "-o", tmp_path / "out", "--allocation", plan, "--device", "cuda")
    assert code == 4
    assert "no CUDA GPU" in err


def test_plans_survive_the_file(plan: Path) -> None:
    assert set(codec.load(Allocation, plan).plans.values()) == {LayerPlan(Unstructured(0.5))}
