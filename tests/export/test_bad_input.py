"""Models that cannot be exported: one sentence each, and nothing half-written."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tailcut import plugins
from tailcut.errors import InputError
from tailcut.export.run import FAMILIES, describe, export
from tailcut.export.spec import DecoderSpec

Model = Callable[..., Path]


@pytest.fixture
def model(tiny_model: Model, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model("llama"), tmp_path / "model"))


def set_config(model: Path, **changes: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def set_tensor(model: Path, name: str, array: np.ndarray | None) -> None:  # type: ignore[type-arg]
    tensors = load_file(model / "model.safetensors")
    if array is None:
        del tensors[name]
    else:
        tensors[name] = array
    save_file(tensors, model / "model.safetensors", {"format": "pt"})


def refused(model: Path, sentence: str) -> None:
    out = model.parent / "package"
    with pytest.raises(InputError, match=sentence):
        export(model, out, check=False)
    assert [path.name for path in model.parent.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "mamba"}, "model type 'mamba' is not exported; these are: gemma2"),
        ({"model_type": "../llama"}, "is not exported"),
        ({"model_type": None}, "model type 'None' is not exported"),
        ({"hidden_size": "32"}, "hidden_size must be a positive integer, got '32'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer, got 0"),
        ({"num_hidden_layers": 4}, r"no tensor named model\.layers\.3\..*does not fit its config"),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3 key/value heads"),
        ({"hidden_act": "mish"}, "activation 'mish' is not exported"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "rope_type 'dynamic' is not exported"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "factor must be a number, got None"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "longrope needs 4 numbers in short_factor"),
        ({"head_dim": 9, "hidden_size": 36}, "rotary embedding over 9 of 9 channels"),
        ({"vocab_size": 300}, r"lm_head\.weight: has shape \[258, 32\], the config asks for \[300, 32\]"),
    ],
)
def test_config(model: Path, changes: dict[str, Any], sentence: str) -> None:
    set_config(model, **changes)
    refused(model, sentence)


def test_not_a_number(model: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    broken = load_file(model / "model.safetensors")[name].copy()
    broken[3, 4] = np.nan
    set_tensor(model, name, broken)
    refused(model, r"layers\.1\.mlp\.up_proj\.weight: holds NaN or infinite weights")


def test_missing_tensor_and_wrong_shape(model: Path) -> None:
    name = "model.layers.2.self_attn.o_proj.weight"
    set_tensor(model, name, np.zeros((32, 31), np.float32))
    refused(model, r"o_proj\.weight: has shape \[32, 31\], the config asks for \[32, 32\]")
    set_tensor(model, name, None)
    refused(model, r"no tensor named model\.layers\.2\.self_attn\.o_proj\.weight")


def test_truncated_file(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(model, "damaged or truncated safetensors")


def test_existing_output_is_kept(model: Path) -> None:
    out = model.parent / "package"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="already exists"):
        export(model, out, check=False)
    export(model, out, check=False, overwrite=True)
    assert not (out / "mine.txt").exists()


def test_full_disk_is_one_sentence(model: Path) -> None:
    """A file size limit of 64 KiB stands for a full disk: the data file needs more."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "import sys; from tailcut.cli import main\n"
        f"sys.argv = ['tailcut', 'export', {str(model)!r}, '-o', {str(model.parent / 'p')!r}, '--no-check']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 4, done.stderr
    assert "disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_export_and_convert_commands(model: Path) -> None:
    base = model.parent

    def tailcut(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tailcut", *words], capture_output=True, text=True, timeout=120, check=False
        )

    made = tailcut("export", str(model), "-o", str(base / "p"), "--layout", "dense", "--json")
    assert made.returncode == 0, made.stderr
    body = json.loads(made.stdout)
    assert body["schema"] == "tailcut/Manifest"
    assert body["details"]["parity_max_abs_error"] <= body["details"]["parity_tolerance"]
    shown = tailcut("convert", str(base / "p"), "-o", str(base / "q"), "--layout", "bitmask")
    assert shown.returncode == 0, shown.stderr
    static = tailcut(
        "export", str(model), "-o", str(base / "s"), "--variant", "deepsparse", "--context", "16", "--prompt", "4"
    )
    assert static.returncode == 0, static.stderr
    assert "same top token at 100%" in static.stdout


def test_side_files_travel(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ messages }}")
    (model / "secret.txt").write_text("not part of a model")
    manifest = export(model, model.parent / "p", check=False)
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= manifest.files.keys()
    assert "secret.txt" not in manifest.files


def test_the_same_model_gives_the_same_bytes(model: Path) -> None:
    for name in ("p", "q"):
        export(model, model.parent / name, check=False)
    for file in ("model.onnx", "model.onnx.data", "manifest.json"):
        assert (model.parent / "p" / file).read_bytes() == (model.parent / "q" / file).read_bytes()


def test_every_family_file_meets_the_contract(family: str, tiny_model: Model) -> None:
    config = json.loads((tiny_model(family) / "config.json").read_text())
    spec = describe(config, tiny_model(family))
    assert isinstance(spec, DecoderSpec)
    assert spec.family == family
    assert len(set(spec.linears)) == len(spec.linears) > 0
    assert family.replace("_", "-") in plugins.names(FAMILIES)


def test_layer_names_are_those_of_compress(family: str, tiny_model: Model) -> None:
    from tailcut.checkpoint import Checkpoint
    from tailcut.compress.discovery import find_linears

    model_dir = tiny_model(family)
    config = json.loads((model_dir / "config.json").read_text())
    found = {linear.name for linear in find_linears(Checkpoint(model_dir))}
    assert found == set(describe(config, model_dir).linears)
