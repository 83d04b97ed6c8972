"""The round trips of importers: what is written comes back, and a difference is counted and shown."""

import json
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tailcut.checkpoint import Checkpoint, write_shard
from tailcut.progress import silent


@pytest.fixture
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("import_round_trip")


def test_onnx_comes_back_bit_for_bit(script: ModuleType, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    found = script.row_of(Namespace(out=tmp_path, old=None), tiny_model("llama"), "onnx", "float32", silent)
    assert (found["tensors"], found["differ"]) == (30, [])
    assert found["importer"] == "onnx-sparseml"
    assert list(tmp_path.iterdir()) == []


def test_gguf_is_written_as_the_importer_reads_it(
    script: ModuleType, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("gguf", reason="the gguf package is not installed")
    source = tmp_path / "source"
    shutil.copytree(tiny_model("llama"), source)
    text = json.loads((source / "tokenizer.json").read_bytes())
    text["model"]["merges"] = [["a", "b"]]  # a GGUF file of byte-level BPE has some
    (source / "tokenizer.json").write_text(json.dumps(text))
    found = script.row_of(Namespace(out=tmp_path, old=None), source, "gguf", "float32", silent)
    assert (found["tensors"], found["differ"]) == (30, [])


@pytest.mark.parametrize(("change", "named"), [("sign", 1), ("lost", 1), ("type", 1)])
def test_every_kind_of_difference_counts(
    script: ModuleType, tiny_model: Callable[..., Path], tmp_path: Path, change: str, named: int
) -> None:
    source = tiny_model("llama")
    shutil.copytree(source, tmp_path / "back")
    checkpoint = Checkpoint(source)
    tensors = {name: np.array(checkpoint.read(name)) for name in checkpoint.names}
    name = "model.layers.1.mlp.up_proj.weight"
    if change == "sign":
        tensors[name].reshape(-1)[0] = -0.0
    elif change == "type":
        tensors[name] = tensors[name].astype(np.float16)
    else:
        del tensors[name]
    write_shard(tmp_path / "back" / "model.safetensors", tensors)
    found = script.compared(source, tmp_path / "back", "float32")
    assert found["differ"] == [name] * named
    row = found | {"form": "gguf", "model": "24", "dtype": "float32", "bytes": 1, "versions": {"gguf": "1"}}
    row |= {"importer": "gguf"}
    shown = script.render({"model": "tiny", "machine": {"commit": "abc"}, "rows": [row]})
    assert "| gguf | gguf 1 | 2:4 | float32 | 0 | gguf | 30 | 1 |" in shown
