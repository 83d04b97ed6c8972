"""Measuring whole (tiny) models, and the spectra file."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tailcut import codec
from tailcut.allocation import LayerScores
from tailcut.checkpoint import Checkpoint
from tailcut.compress.discovery import find_linears, read_weight
from tailcut.compress.measure import load_spectra, measure, save_spectra
from tailcut.errors import InputError

TinyModel = Callable[..., Path]


def test_every_family_is_measured(family: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    directory = tiny_model(family)
    measured = measure(directory, metrics=["alpha_mid"], device="cpu", cache=tmp_path)
    checkpoint = Checkpoint(directory)
    linears = find_linears(checkpoint)
    assert [layer.name for layer in measured.scores.layers] == [linear.name for linear in linears]
    for linear, layer in zip(linears, measured.scores.layers, strict=True):
        expected = np.sort(np.linalg.svd(read_weight(checkpoint, linear).astype(np.float64), compute_uv=False)) ** 2
        spectrum = measured.spectra[linear.name]
        assert (layer.block, layer.shape) == (linear.block, linear.shape)
        # the Gram matrix of a 64-wide matrix: absolute error of some m eps l_max
        np.testing.assert_allclose(spectrum, expected[-spectrum.size :], rtol=0, atol=1e-12 * expected[-1])
        assert layer.values["alpha_mid.xmin"] == spectrum[spectrum.size // 2]


def test_scores_carry_model_metrics_and_totals(tiny_model: TinyModel, tmp_path: Path) -> None:
    directory = tiny_model("llama")
    scores = measure(directory, metrics=["alpha-peak", "alpha"], device="cpu", cache=tmp_path).scores
    assert scores.model == Checkpoint(directory).fingerprint()
    assert scores.total_parameters == Checkpoint(directory).total_parameters()
    assert scores.measured["metrics"] == "alpha_peak,alpha"
    keys = {"alpha_peak", "alpha_peak.xmin", "alpha_peak.ks", "alpha", "alpha.xmin", "alpha.ks"}
    assert all(set(layer.values) == keys for layer in scores.layers)
    assert codec.from_json(LayerScores, codec.to_json(scores)) == scores


def test_cached_measurement_is_identical_and_reports_each_matrix(tiny_model: TinyModel, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []

    def report(stage: str, done: int, total: int, note: str = "") -> None:
        assert stage == "measure"
        seen.append((done, total, note))

    directory = tiny_model("llama")
    first = measure(directory, device="cpu", cache=tmp_path)
    again = measure(directory, device="cpu", cache=tmp_path, report=report)
    assert codec.to_json(first.scores) == codec.to_json(again.scores)
    names = [layer.name for layer in first.scores.layers]
    assert seen == [*((i, len(names), name) for i, name in enumerate(names)), (len(names), len(names), "")]


def test_half_precision_weights_are_measured_as_stored(tiny_model: TinyModel, tmp_path: Path) -> None:
    scores = measure(tiny_model("llama", "bfloat16"), device="cpu", cache=tmp_path).scores
    assert all(1.0 < layer.values["alpha_peak"] < np.inf for layer in scores.layers)


def with_weight(directory: Path, out: Path, tensor: str, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    shutil.copytree(directory, out)
    tensors = load_file(out / "model.safetensors")
    tensors[tensor] = change(tensors[tensor]).astype(tensors[tensor].dtype)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


UP = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (np.zeros_like, f"{UP}: .*at least 3 eigenvalues.*got 0.*zero or of very low rank"),
        (lambda w: np.outer(np.ones(w.shape[0]), np.ones(w.shape[1])), f"{UP}: .*got [12];"),
        (lambda w: np.eye(*w.shape), f"{UP}: alpha_peak: no power-law tail.*uniform"),
        (lambda w: np.where(w == w.max(), np.nan, w), "up_proj.*NaN"),
    ],
)
def test_a_matrix_that_cannot_be_measured_is_named(
    tiny_model: TinyModel, tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], sentence: str
) -> None:
    directory = with_weight(tiny_model("llama"), tmp_path / "model", f"{UP}.weight", change)
    with pytest.raises(InputError, match=sentence):
        measure(directory, device="cpu", cache=tmp_path / "cache")


@pytest.mark.parametrize(("metrics", "sentence"), [(["nope"], "unknown metric 'nope'.*alpha-peak"), ([], "no metric")])
def test_metrics_are_checked_first(metrics: list[str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=sentence):
        measure(tmp_path / "absent", metrics=metrics)


def test_spectra_file_round_trip(tmp_path: Path) -> None:
    spectra = {"model.layers.0.q": np.array([1.0, 2.5]), "model.layers.1.q": np.array([0.1])}
    save_spectra(spectra, tmp_path / "a.npz")
    save_spectra(spectra, tmp_path / "b.npz")
    loaded = load_spectra(tmp_path / "a.npz")
    assert list(loaded) == list(spectra)
    assert all(np.array_equal(loaded[name], spectra[name]) for name in spectra)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_damaged_spectra_file_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    spectra = {"model.layers.0.q": np.linspace(1, 2, 20)}
    save_spectra(spectra, path)
    content = path.read_bytes()
    sentences: list[str] = []
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 0x55
        path.write_bytes(damaged)
        try:
            loaded = load_spectra(path)
        except InputError as error:
            sentences.append(str(error))
        else:  # a byte that carries nothing, or a name in one of the two headers
            assert all(np.array_equal(values, spectra["model.layers.0.q"]) for values in loaded.values())
    assert len(sentences) > 20 * 8  # every byte of the values is covered by the checksum
    assert all(str(path) in sentence for sentence in sentences)
    for text in (b"", b"nonsense", content[:100]):
        path.write_bytes(text)
        with pytest.raises(InputError, match="spectra file"):
            load_spectra(path)


def test_spectra_file_with_pickles_or_wrong_arrays_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    np.savez(path, q=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="not a spectra file"):
        load_spectra(path)
    np.savez(path, q=np.zeros((2, 2)))
    with pytest.raises(InputError, match="q is float64"):
        load_spectra(path)
    with pytest.raises(InputError, match=r"absent\.npz"):
        load_spectra(tmp_path / "absent.npz")
