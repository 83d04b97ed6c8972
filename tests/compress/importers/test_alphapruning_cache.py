"""AlphaPruning's caches become scores that `tailcut allocate` reads; nothing in them is run."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tailcut import codec
from tailcut.allocation import LayerScores
from tailcut.checkpoint import Checkpoint
from tailcut.compress.adopting import bring, detect
from tailcut.compress.discovery import find_linears

TinyModel = Callable[..., Path]
Tailcut = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("stem", ["alpha_peak", "alpha_mid", "alpha_weighted", "stable_rank"])
def test_a_cache_becomes_scores(stem: str, tiny_model: TinyModel, tmp_path: Path, tailcut: Tailcut) -> None:
    """The published files are float64, one value a linear, block after block in module order."""
    values = np.random.default_rng(0).uniform(1.3, 5, 21)
    np.save(tmp_path / f"{stem}.npy", values)
    assert detect(tmp_path / f"{stem}.npy") is not None
    model, out = tiny_model("llama"), tmp_path / "scores.json"
    code, shown, errors = tailcut("import", tmp_path / f"{stem}.npy", "--config", model, "-o", out)
    assert code == 0, errors
    assert "scores of 21 matrices" in shown
    scores = codec.load(LayerScores, out)
    metric = {"alpha_peak": "alpha_peak_compat", "alpha_weighted": "alpha_hat"}.get(stem, stem)
    linears = find_linears(Checkpoint(model))
    assert [layer.name for layer in scores.layers] == [linear.name for linear in linears]
    assert [layer.values[metric] for layer in scores.layers] == values.tolist()
    assert scores.model == Checkpoint(model).fingerprint()
    spelt = metric.replace("_", "-")
    code, _, errors = tailcut("allocate", out, "--sparsity", "0.5", "--metric", spelt, "-o", tmp_path / "a.json")
    assert code == 0, errors
    assert tailcut("import", tmp_path / f"{stem}.npy", "--config", model, "-o", out)[0] == 2  # it exists


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return (open, ("ran", "w"))


def test_hostile_caches_are_refused(
    tiny_model: TinyModel, tmp_path: Path, tailcut: Tailcut, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, model = tmp_path / "alpha_peak.npy", tiny_model("llama")

    def refused(sentence: str, *more: object) -> None:
        code, shown, errors = tailcut(
            "import", path, "--format", "alphapruning-cache", "-o", tmp_path / "s.json", *more
        )
        assert code == 2
        assert sentence in errors, errors
        assert "Traceback" not in shown + errors
        assert not (tmp_path / "s.json").exists()

    config = ("--config", model)
    np.save(path, np.ones(21))
    refused("give its Hugging Face directory with --config")
    np.save(path, np.ones(20))
    refused("20 values, ", *config)
    np.save(path, np.array([Bomb()] * 21, dtype=object), allow_pickle=True)
    refused("pickles are never opened", *config)
    path.write_bytes(pickle.dumps(Bomb()))
    refused("pickles are never opened", *config)
    np.save(path, np.append(np.ones(20), np.nan))
    refused("holds nan", *config)
    np.save(path, np.ones((3, 7)))
    refused("one row of numbers", *config)
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (1152921504606846976,), }"
    path.write_bytes(header.ljust(127) + b"\n" + b"\0" * 80)
    refused("not a plain .npy file", *config)
    path.write_bytes(header.replace(b"(1152921504606846976,)", b"__import__('os')").ljust(127) + b"\n")
    refused("not a plain .npy file", *config)
    np.save(tmp_path / "norm.npy", np.ones(21))
    path = tmp_path / "norm.npy"
    refused("the metric is the file's name, 'norm' is none of", *config)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(Exception, match="not a model directory"):
        bring(path, tmp_path / "m", "alphapruning-cache")
