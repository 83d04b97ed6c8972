"""Seeded random Llama directories: shapes, determinism, and that every tool can open them."""

import json
from pathlib import Path

import numpy as np
import pytest

from tailcut.checkpoint import Checkpoint
from tailcut.compress.make_model import make_model, settings_of, summaries
from tailcut.compress.models import synthetic_llama
from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.manifest import verify


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "tiny"
    make_model("synthetic-llama", out, settings_of(like="tiny", dtype="float32", seed=3))
    return out


def test_manifest_verifies_and_says_that_quality_means_nothing(tiny: Path) -> None:
    manifest = verify(tiny)
    assert manifest.kind == "model"
    assert "quality does not" in manifest.notes[0]
    assert manifest.total_parameters == Checkpoint(tiny).total_parameters()


def test_same_seed_gives_the_same_bytes_another_seed_does_not(tiny: Path, tmp_path: Path) -> None:
    again = make_model("synthetic-llama", tmp_path / "b", settings_of(like="tiny", dtype="float32", seed=3))
    other = make_model("synthetic-llama", tmp_path / "c", settings_of(like="tiny", dtype="float32", seed=4))
    assert again.files == verify(tiny).files
    assert other.files != again.files


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtype_is_stored(dtype: str, tmp_path: Path) -> None:
    make_model("synthetic-llama", tmp_path / "m", settings_of(like="tiny", dtype=dtype))
    checkpoint = Checkpoint(tmp_path / "m")
    assert str(checkpoint.dtype("model.layers.0.mlp.up_proj.weight")) == dtype
    assert checkpoint.config["dtype"] == dtype


# 1,100,048,384 and 6,738,415,616 are the published sizes of TinyLlama-1.1B and LLaMA-7B
@pytest.mark.parametrize(("like", "parameters"), [("1.1b", 1_100_048_384), ("7b", 6_738_415_616)])
def test_shapes_have_the_published_parameter_counts(like: str, parameters: int) -> None:
    assert synthetic_llama.SHAPES[like].parameters == parameters


def test_formula_counts_what_is_written(tiny: Path) -> None:
    assert Checkpoint(tiny).total_parameters() == synthetic_llama.SHAPES["tiny"].parameters


def test_weights_have_the_stated_spread(tiny: Path) -> None:
    weight = Checkpoint(tiny).read("model.layers.1.mlp.up_proj.weight").astype(np.float64)
    # n = 10,240 normal values: the standard error of the deviation is 0.02 / sqrt(2 n) = 0.00014; six of them
    assert abs(weight.std() - 0.02) < 6 * 0.02 / np.sqrt(2 * weight.size)


def test_transformers_loads_it_and_logits_are_finite(tiny: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    text = "naïve 12  \n\t雪"
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert tokenizer.decode(ids[0]) == text
    with torch.no_grad():
        assert torch.isfinite(model(ids).logits).all()


def test_unknown_words_are_refused_with_the_choices(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"70b.*tiny, 1\.1b, 7b"):
        make_model("synthetic-llama", tmp_path / "m", settings_of(like="70b"))
    with pytest.raises(InputError, match=r"int8.*float16, bfloat16, float32"):
        settings_of(dtype="int8")
    with pytest.raises(InputError, match=r"unknown model 'gpt5'.*smollm2-135m"):
        make_model("gpt5", tmp_path / "m", settings_of())
    assert list(tmp_path.iterdir()) == []


def test_no_room_on_the_disk_is_said_before_writing(tmp_path: Path) -> None:
    with pytest.raises(MissingEnvironmentError, match=r"needs 1000000000\.0 GB"):
        synthetic_llama.require_space(tmp_path, 10**18)


def test_existing_directory_is_not_overwritten(tiny: Path) -> None:
    before = (tiny / "manifest.json").read_bytes()
    with pytest.raises(InputError, match="already exists"):
        make_model("synthetic-llama", tiny, settings_of(like="tiny"))
    assert (tiny / "manifest.json").read_bytes() == before


def test_every_model_has_a_summary() -> None:
    assert {"smollm2-135m", "synthetic-llama"} <= set(summaries())
    assert all(summaries().values())


def test_tokenizer_file_is_plain_bytes(tiny: Path) -> None:
    vocabulary = json.loads((tiny / "tokenizer.json").read_bytes())["model"]["vocab"]
    assert len(vocabulary) == 3 + 256
