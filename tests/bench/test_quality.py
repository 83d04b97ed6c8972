"""Perplexity of a pair: the definition, the pairing, the tokenizer's own rule, packages against torch."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tailcut.bench import engines as registry
from tailcut.bench.quality import (
    begin_of_text,
    compare,
    package_nll,
    package_quality,
    read_nll,
    read_tokenizer,
    tokenise,
)
from tailcut.errors import InputError
from tailcut.results import Workload
from tailcut.windows import EvalText

TEXT = EvalText("the cat sat on the mat\n" * 40, "cats", "00", "rows")


def words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "b": 2, "[UNK]": 3}, unk_token="[UNK]"))  # noqa: S106 not a password
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_perplexities_and_ratio_follow_from_the_nats() -> None:
    rng = np.random.default_rng(0)
    dense = rng.uniform(20, 40, 30)
    sparse = dense + rng.normal(2.0, 0.2, 30)
    quality = compare(dense, sparse, text=TEXT, context=11, bos=None, notes=("4-bit GGUF, dequantised",))
    assert quality.tokens_scored == 300
    assert quality.dense_perplexity == pytest.approx(np.exp(dense.sum() / 300))
    assert quality.ratio.value == pytest.approx(quality.sparse_perplexity / quality.dense_perplexity)
    # windows differ by a factor of two in nats, yet the paired interval only sees the gap's 0.2 nats
    assert quality.ratio.high - quality.ratio.low < 0.05
    assert quality.ratio.low < np.exp(0.2) < quality.ratio.high
    assert quality.notes == ("4-bit GGUF, dequantised",)


@pytest.mark.parametrize(
    ("dense", "sparse"), [([1.0, 2.0], [1.0]), ([], []), ([1.0, np.nan], [1.0, 2.0]), ([[1.0]], [[1.0]])]
)
def test_unequal_or_broken_windows_are_refused(dense: list[Any], sparse: list[Any]) -> None:
    with pytest.raises(InputError):
        compare(np.asarray(dense), np.asarray(sparse), text=TEXT, context=8, bos=None)


def test_the_tokenizer_itself_says_whether_a_text_begins_with_a_token() -> None:
    tokenizer = words()
    assert begin_of_text(tokenizer) is None
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    assert begin_of_text(tokenizer) == 0
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <s>", special_tokens=[("<s>", 0)])
    assert begin_of_text(tokenizer) is None  # an end token is not a begin token


def test_windows_begin_with_the_bos_token(tmp_path: Path) -> None:
    tokenizer = words()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    windows, bos = tokenise(tmp_path, EvalText("a b " * 10, "t", "", ""), 5, None)
    assert bos == 0
    assert windows.shape == (5, 5)
    assert windows[0].tolist() == [0, 1, 2, 1, 2]


def test_a_missing_or_damaged_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no tokenizer"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="not a tokenizer file"):
        read_tokenizer(tmp_path)


def test_precomputed_nats_are_read_from_json_and_npy(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([1.5, 2.5]))
    np.save(tmp_path / "a.npy", np.array([1.5, 2.5]))
    assert read_nll(tmp_path / "a.json").tolist() == read_nll(tmp_path / "a.npy").tolist() == [1.5, 2.5]
    np.save(tmp_path / "p.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="not a list"):
        read_nll(tmp_path / "p.npy")


def test_a_package_scores_as_torch_does(tiny_model: Any, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from tailcut.export.run import export

    export(tiny_model("llama"), tmp_path / "dense", check=False)
    text = EvalText("some text to score, " * 20, "t", "", "")
    quality = package_quality(
        tmp_path / "dense", tmp_path / "dense", text, context=32, limit=3, workload=Workload(threads=1)
    )
    windows, _ = tokenise(tmp_path / "dense", text, 32, 3)
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.float32)
    with torch.no_grad():
        scores = model(torch.from_numpy(windows)).logits[:, :-1].double().log_softmax(-1)
    want = -scores.gather(2, torch.from_numpy(windows)[:, 1:, None]).sum(dim=(1, 2)).numpy()
    # float32 logits of absolute size below 10: each token's nats agree to about 1e-5
    np.testing.assert_allclose(quality.dense_nll, want, atol=31 * 1e-4)
    assert quality.ratio.value == 1.0
    assert quality.measured_with == "onnxruntime"


def test_kl_of_packages_is_that_of_torch_on_their_directories(tiny_model: Any, tmp_path: Path, tailcut: Any) -> None:
    from safetensors.numpy import load_file, save_file

    from tailcut.export.run import export

    other = tmp_path / "other"
    shutil.copytree(tiny_model("llama"), other)
    rng = np.random.default_rng(0)
    weights = load_file(other / "model.safetensors")
    noisy = {name: array + 0.02 * rng.standard_normal(array.shape, np.float32) for name, array in weights.items()}
    save_file(noisy, other / "model.safetensors", {"format": "pt"})
    text = tmp_path / "t.txt"
    text.write_text("some text to score, " * 20)
    for source, name in ((tiny_model("llama"), "a"), (other, "b")):
        export(source, tmp_path / name, check=False)
    found = []
    for pair in ((tmp_path / "b", tmp_path / "a"), (other, tiny_model("llama"))):
        flags = ("--text", text, "--context", "32", "--windows", "3", "--kl", "--json")
        code, out, err = tailcut("perplexity", pair[0], "--against", pair[1], *flags)
        assert code == 0, err
        found.append(json.loads(out)["kl_nats"])
    assert min(found[0]) > 1e-3
    np.testing.assert_allclose(
        found[0], found[1], rtol=1e-3
    )  # float32 logits by two programs; a KL is a small difference of them
    assert tailcut("perplexity", tmp_path / "a", "--kl")[0] == 2


def test_the_kernels_score_the_same_weights(tiny_model: Any, tmp_path: Path) -> None:
    """Through the kernels: float32 as ONNX Runtime does; int8 a little apart, because activations are rounded too."""
    if registry.load("tailcut").available():
        pytest.skip(str(registry.load("tailcut").available()))
    from tailcut.export.run import export

    windows = np.random.default_rng(0).integers(0, 50, (3, 32))
    for weights, apart in (("float32", 1e-5), ("int8", 1e-2)):  # measured 4e-4 for int8; other weights differ by nats
        package = tmp_path / weights
        export(tiny_model("llama"), package, weights=weights, check=False)
        plain, kernels = (
            package_nll(package, windows, Workload(threads=1), engine_name=name) for name in ("onnxruntime", "tailcut")
        )
        np.testing.assert_allclose(kernels, plain, rtol=apart)


def test_an_engine_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no_such_engine"):
        package_nll(tmp_path, np.zeros((1, 8), np.int64), Workload(threads=1), engine_name="no_such_engine")
