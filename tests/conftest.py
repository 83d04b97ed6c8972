"""Fixtures that every room uses: tiny random models of each family, as ordinary Hugging Face directories.

`tiny_model(family)` gives a directory (made once a session; copy it before changing it). A test that asks for
the argument `family` runs once for each family in FAMILIES. `tailcut(*arguments)` is the command line.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from tailcut.bench.gpu_device import gpu_problem

# Without a GPU the Triton kernels run in Triton's interpreter, which is chosen when Triton is imported: transformers does
# that too, so it is said here, before any test module is read
if gpu_problem() is not None:
    os.environ.setdefault("TRITON_INTERPRET", "1")

LLAMA_LIKE: Final[dict[str, Any]] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
PATTERN: Final[dict[str, Any]] = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": 8,
}
CONFIGS: Final[dict[str, dict[str, Any]]] = {
    "llama": LLAMA_LIKE,
    "mistral": LLAMA_LIKE | {"sliding_window": 8},
    "qwen2": LLAMA_LIKE,
    "qwen3": LLAMA_LIKE | {"head_dim": 16},
    "gemma2": LLAMA_LIKE | PATTERN | {"head_dim": 16, "query_pre_attn_scalar": 16},
    "gemma3_text": LLAMA_LIKE | PATTERN | {"head_dim": 16, "query_pre_attn_scalar": 16},
    "phi3": LLAMA_LIKE | {"pad_token_id": 0, "original_max_position_embeddings": 128},
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    },
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128},
    "gpt_neox": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "rotary_pct": 0.25,
    },
}
FAMILIES: Final = tuple(CONFIGS)
VOCABULARY: Final = 258  # 256 bytes, <s>, </s>
BOS, EOS = 256, 257

TinyModel = Callable[..., Path]
Tailcut = Callable[..., tuple[int, str, str]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", FAMILIES)


@pytest.fixture
def tailcut(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tailcut:
    """tailcut(*arguments) -> exit code, stdout, stderr, through the real `main`."""

    from tailcut import cli

    def call(*arguments: object) -> tuple[int, str, str]:
        if cli.app.registered_commands:
            monkeypatch.setattr(cli, "_register", lambda: None)
        monkeypatch.setattr(sys, "argv", ["tailcut", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        shown = capsys.readouterr()
        return int(exit_.value.code or 0), shown.out, shown.err

    return call


@pytest.fixture
def sweep_point() -> Callable[..., Any]:
    """sweep_point(allocator, sparsity, speed, perplexity, **more): speed and perplexity are (low, high) or None."""
    from tailcut.results import Machine, PackageFacts, Quality, Ratio, Workload
    from tailcut.sweep_points import SweepPoint

    def ratio(ends: tuple[float, float] | None) -> Ratio | None:
        return Ratio((ends[0] + ends[1]) / 2, *ends, 0.95) if ends else None

    def make(allocator: str | None, sparsity: float, speed: Any, perplexity: Any, **more: Any) -> SweepPoint:
        settings: dict[str, Any] = {"weights": "float32", "engine": "tailcut", "pattern": None} | more
        found = ratio(perplexity)
        text = ("text", "hash", "joined", 32, None, 310, 20.0, 21.0)
        return SweepPoint(
            key=f"{allocator} {sparsity} {settings}",
            model="tiny",
            model_sha256="0" * 64,
            allocator=allocator,
            sparsity=sparsity,
            machine=Machine("a cpu", ("avx2",), 1, 2, 1, 1, None, "Linux", {}, None, "0123456789abcdef"),
            workload=Workload(),
            facts=PackageFacts("hash", 1, sparsity, sparsity / 2, 1000),
            ms=((10.0, 11.0), (10.0, 12.0)) if speed else (),
            reference_ms=((20.0, 21.0), (20.0, 22.0)),
            speedup=ratio(speed),
            quality=Quality(*text, found, (1.0,), (1.1,)) if found else None,
            **settings,
        )

    return make


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """tiny_model(family, dtype="float32", **config overrides) -> directory with safetensors and tokenizer.json."""
    made: dict[str, Path] = {}

    def make(family: str, dtype: str = "float32", **overrides: Any) -> Path:
        key = json.dumps([family, dtype, overrides], sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp(f"{family}-{dtype}")
            write_tiny_model(made[key], family, dtype, overrides)
        return made[key]

    return make


def write_tiny_model(directory: Path, family: str, dtype: str, overrides: dict[str, Any]) -> None:
    """A seeded random model. Norms and biases get random values too, so that forgetting one shows."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    tokens = {"vocab_size": VOCABULARY, "bos_token_id": BOS, "eos_token_id": EOS}
    settings = CONFIGS[family] | tokens | overrides
    config = CONFIG_MAPPING[family](**settings)
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        noise = torch.randn_like(parameter) * (0.15 if parameter.ndim > 1 else 0.05)
        parameter.data.add_(noise)
    torch.random.set_rng_state(state)
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    write_tiny_tokenizer(directory)


def write_tiny_tokenizer(directory: Path) -> None:
    """Byte-level tokenizer without merges: one token a byte, adds nothing, so any text works."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
