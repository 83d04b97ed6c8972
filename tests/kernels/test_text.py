"""Sampling, streaming and `tailcut generate` on a tiny package."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tailcut.errors import InputError
from tailcut.kernels.decoder import Decoder
from tailcut.kernels.text import Sampling, chat_prompt, choose, end_tokens, generate, stream_text, tokenizer_of


def tailcut(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tailcut", *words], capture_output=True, text=True, timeout=120, check=False
    )


def test_greedy_takes_the_largest() -> None:
    assert choose(np.array([0.0, 3.0, 1.0], np.float32), Sampling(), np.random.default_rng(0)) == 1


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    rng = np.random.default_rng(0)
    for top_p, allowed in ((0.4, {0}), (0.5, {0}), (0.6, {0, 1}), (0.9, {0, 1, 2}), (1.0, {0, 1, 2, 3})):
        drawn = {choose(logits, Sampling(1.0, top_p), rng) for _ in range(400)}
        assert drawn == allowed  # 400 draws miss a token of probability 0.05 with chance 1e-9


def test_temperature_changes_the_shares() -> None:
    logits = np.log(np.array([0.8, 0.2], np.float32))
    rng = np.random.default_rng(0)
    share = np.mean([choose(logits, Sampling(0.5), rng) for _ in range(4000)])
    # p^2 / sum p^2 = 0.04 / 0.68; four standard deviations of 4000 draws are 0.015
    assert share == pytest.approx(0.04 / 0.68, abs=0.015)


@pytest.mark.parametrize("bad", [(-1.0, 1.0), (float("inf"), 1.0), (1.0, 0.0), (1.0, 1.5)])
def test_sampling_bounds(bad: tuple[float, float]) -> None:
    with pytest.raises(InputError, match=r"temperature|top-p"):
        Sampling(*bad)


def test_streamed_pieces_make_the_whole_text(package: Path) -> None:
    tokenizer = tokenizer_of(package)
    text = "naïve café – 東京 🙂 end"
    ids = tokenizer.encode(text).ids
    pieces = list(stream_text(tokenizer, iter(ids)))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(stream_text(tokenizer, iter(ids[:-5]))).startswith("naïve café")


def test_generation_is_greedy_decoding(package: Path) -> None:
    decoder = Decoder(package, threads=1)
    prompt = [1, 2, 3]
    got = list(generate(decoder, prompt, limit=5, sampling=Sampling()))
    for count, token in enumerate(got):
        whole = decoder.prefill(np.array([prompt + got[:count]]))
        assert int(whole[0, -1].argmax()) == token
    ends = frozenset({got[2]})
    assert list(generate(decoder, prompt, limit=5, ends=ends, sampling=Sampling())) == got[: got.index(got[2])]
    with pytest.raises(InputError, match="no tokens"):
        list(generate(decoder, [], limit=5, sampling=Sampling()))


def test_generate_command(package: Path) -> None:
    first = tailcut("generate", str(package), "Hello", "--max-new-tokens", "8", "--json", "--threads", "1")
    assert first.returncode == 0, first.stderr
    body = json.loads(first.stdout)
    assert body["prompt_tokens"] == 5
    assert 0 < len(body["tokens"]) <= 8
    streamed = tailcut("generate", str(package), "Hello", "--max-new-tokens", "8", "--threads", "1")
    assert streamed.stdout == body["text"] + "\n"
    assert "tok/s" in streamed.stderr or "tokens" in streamed.stderr
    sampled = [
        tailcut("generate", str(package), "Hi", "--temperature", "2", "--seed", "7", "--max-new-tokens", "6").stdout
        for _ in range(2)
    ]
    assert sampled[0] == sampled[1]


def test_generate_errors_are_sentences(package: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(package, bare)
    (bare / "tokenizer.json").unlink()
    for words, sentence in (
        (("generate", str(bare), "x"), "no tokenizer"),
        (("generate", str(package), "x", "--chat"), "no chat template"),
        (("generate", str(package), "x", "--max-new-tokens", "0"), "at least 1"),
        (("generate", str(package), ""), "no tokens"),
        (("generate", str(tmp_path / "none"), "x"), "no tokenizer"),
    ):
        done = tailcut(*words)
        assert done.returncode == 2, words
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr


def test_chat_template(package: Path, tmp_path: Path) -> None:
    shutil.copytree(package, tmp_path / "p")
    template = "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
    (tmp_path / "p" / "chat_template.jinja").write_text(template)
    assert chat_prompt(tmp_path / "p", "hi") == "<s><user>hi<assistant>"
    (tmp_path / "p" / "chat_template.jinja").write_text("{{ ''.__class__.__mro__ }}")
    with pytest.raises(InputError, match="chat template cannot be used"):
        chat_prompt(tmp_path / "p", "hi")


def test_end_tokens_come_from_generation_config_first(tmp_path: Path) -> None:
    assert end_tokens(tmp_path) == frozenset()
    (tmp_path / "config.json").write_text('{"eos_token_id": 2}')
    assert end_tokens(tmp_path) == frozenset({2})
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    assert end_tokens(tmp_path) == frozenset({3, 4})
