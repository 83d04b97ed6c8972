"""KL to a reference, window by window, against the whole models at once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tailcut.compress import divergence
from tailcut.compress.divergence import directory_kl
from tailcut.compress.perplexity import directory_nll
from tailcut.compress.run import compress
from tailcut.errors import InputError

WINDOWS = np.random.default_rng(5).integers(0, 256, (3, 24))


@pytest.fixture
def pair(
    family: str, tiny_model: Callable[..., Path], allocate: Callable[..., object], half: object, tmp_path: Path
) -> tuple[Path, Path]:
    dense, cut = tiny_model(family), tmp_path / "cut"
    compress(dense, allocate(dense, half), cut, pruner="magnitude", calibration=None, device="cpu")  # type: ignore[arg-type]
    return dense, cut


def test_equals_the_whole_models_at_once(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(divergence._LOGITS, "cpu", 258 * 2 * 5)  # five positions at a time, which does not divide 23
    found = directory_kl(pair[1], pair[0], WINDOWS, device="cpu", batch=2)
    ids = torch.from_numpy(WINDOWS)
    with torch.no_grad():
        p, q = (
            AutoModelForCausalLM.from_pretrained(path)(ids).logits[:, :-1].double().log_softmax(-1) for path in pair
        )
    expected = (p.exp() * (p - q)).sum(-1).mean(1).numpy()
    assert (expected > 1e-4).all()
    # float32 logits of order 1 in another order of summation: 1e-6 a logit; the divergence is a mean of them
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-6)


def test_a_model_is_no_distance_from_itself_and_its_losses_are_those_of_perplexity(
    tiny_model: Callable[..., Path],
) -> None:
    model = tiny_model("gemma3_text")
    assert directory_kl(model, model, WINDOWS, device="cpu", batch=2).tolist() == [0.0, 0.0, 0.0]
    one = divergence._run(model, WINDOWS, "cpu", 2, lambda *_: None)
    nats, _ = divergence.window_losses(one, one, WINDOWS)
    # the same float32 sums over chunks of other sizes
    np.testing.assert_allclose(nats, directory_nll(model, WINDOWS, device="cpu", batch=2), rtol=1e-6)


def test_other_vocabularies_are_refused(tiny_model: Callable[..., Path]) -> None:
    other = tiny_model("llama", vocab_size=300)
    with pytest.raises(InputError, match="a vocabulary of 300, the reference has 258"):
        directory_kl(other, tiny_model("llama"), WINDOWS, device="cpu")
