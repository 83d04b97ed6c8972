"""What the dense model's linears see, against the whole model run at once; metrics that need it, end to end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tailcut import codec
from tailcut.allocation import LayerScores
from tailcut.checkpoint import Checkpoint
from tailcut.compress.blocks import max_positions
from tailcut.compress.calibration import Calibration, draw
from tailcut.compress.discovery import Linear, linears_of_skeleton
from tailcut.compress.inputs import DenseInputs, RowSample, Seen
from tailcut.compress.measure import measure
from tailcut.compress.metrics import Options
from tailcut.compress.resident import Weights
from tailcut.compress.skeleton import build_skeleton
from tailcut.errors import InputError
from tailcut.windows import Tokens

TinyModel = Callable[..., Path]
WITH_TEXT = ("owl", "dlp", "dlp_median", "wanda", "als")


def through(directory: Path, tokens: Tokens, sampled: int) -> tuple[tuple[Linear, ...], list[Seen]]:
    checkpoint = Checkpoint(directory)
    skeleton = build_skeleton(checkpoint)
    linears = linears_of_skeleton(checkpoint, skeleton)
    inputs = DenseInputs(Weights(checkpoint, skeleton, "cpu", torch.float32), tokens, sampled, seed=0)
    blocks = range(len(skeleton.blocks))
    return linears, [inputs.advance(i, [linear for linear in linears if linear.block == i]) for i in blocks]


def whole_model_inputs(directory: Path, tokens: Tokens, names: list[str]) -> dict[str, torch.Tensor]:
    """Inputs [tokens, in] of each linear, noted while transformers runs the model on all windows at once."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    noted: dict[str, torch.Tensor] = {}

    def note(name: str) -> Any:
        return lambda _, inputs: noted.__setitem__(name, inputs[0].detach().flatten(0, -2))

    for name in names:
        model.get_submodule(name).register_forward_pre_hook(note(name))
    with torch.inference_mode():
        model(input_ids=torch.from_numpy(tokens), use_cache=False)
    return noted


@pytest.fixture
def tokens(calibration: Calibration, tiny_model: TinyModel) -> Tokens:
    return draw(calibration, tiny_model("llama"), 128).tokens


def test_energies_and_rows_equal_the_whole_model_s(family: str, tiny_model: TinyModel, tokens: Tokens) -> None:
    directory = tiny_model(family)
    linears, seen = through(directory, tokens, sampled=20)
    expected = whole_model_inputs(directory, tokens, [linear.name for linear in linears])
    for linear in linears:
        got = seen[linear.block]
        inputs = expected[linear.name].double()
        scale = float(inputs.abs().max())
        # float32 activations through up to three blocks in another batch size
        energy = inputs.square().sum(0).numpy() / len(tokens)
        np.testing.assert_allclose(got.energy[linear.name], energy, rtol=1e-3, atol=1e-6 * scale**2)
        distances = torch.cdist(torch.from_numpy(got.rows[linear.name]).double(), inputs).min(dim=1).values
        assert got.rows[linear.name].shape == (20, linear.shape[1])
        assert float(distances.max()) < 1e-4 * scale * linear.shape[1] ** 0.5


def test_a_sample_is_the_same_tokens_for_every_linear(tiny_model: TinyModel, tokens: Tokens) -> None:
    _, seen = through(tiny_model("llama"), tokens, sampled=10)
    for block in seen:
        rows = {name.rpartition(".")[2]: part for name, part in block.rows.items()}
        assert np.array_equal(rows["q_proj"], rows["k_proj"])
        assert np.array_equal(rows["gate_proj"], rows["up_proj"])
        assert block.block is not None
        # q's input is the block's input, normalised row by row: the same direction up to the norm's weights
        assert block.block.shape == rows["q_proj"].shape


def test_rows_are_taken_across_batches() -> None:
    sample = RowSample(np.array([0, 3, 4, 9]))
    everything = torch.arange(20.0).reshape(10, 2)
    for start, stop in ((0, 4), (4, 5), (5, 10)):
        sample.add(everything[start:stop].reshape(1, stop - start, 2))
    assert sample.rows().tolist() == everything[[0, 3, 4, 9]].tolist()


def test_no_tokens_are_kept_when_none_are_asked_for(tiny_model: TinyModel, tokens: Tokens) -> None:
    _, seen = through(tiny_model("llama"), tokens, sampled=0)
    assert all(not block.rows and block.block is None for block in seen)


def test_every_family_is_measured_with_text(
    family: str, tiny_model: TinyModel, calibration: Calibration, tmp_path: Path
) -> None:
    directory = tiny_model(family)
    measured = measure(directory, metrics=WITH_TEXT, device="cpu", cache=tmp_path, calibration=calibration)
    scores = measured.scores
    assert measured.spectra == {}
    assert set(scores.pairs) == {"als", "als.block"}
    for layer in scores.layers:
        assert set(layer.values) == set(WITH_TEXT)
        assert set(layer.curves) == {"wanda"}
        assert 0.0 <= layer.values["owl"] < 20.0  # at most 1 / M of the weights can pass M times their mean
        assert 0.0 < layer.values["als"] < 1.0
    for name in ("owl", "dlp", "dlp_median"):
        assert len({(layer.block, layer.values[name]) for layer in scores.layers}) == 3  # a block, a value
    assert codec.from_json(LayerScores, codec.to_json(scores)) == scores


def owl_of_a_whole_block(directory: Path, tokens: Tokens, linears: list[Linear], multiple: float) -> float:
    """The published computation, with everything of a block in one float64 array."""
    inputs = whole_model_inputs(directory, tokens, [linear.name for linear in linears])
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    parts = []
    for linear in linears:
        weight = model.get_submodule(linear.name).weight.detach().double()
        norms = (inputs[linear.name].double().square().sum(0) / len(tokens)).sqrt()
        parts.append((weight.abs() * norms).flatten())
    importance = torch.cat(parts)
    return float(100.0 * (importance > multiple * importance.mean()).double().mean())


@pytest.mark.parametrize("multiple", [3.0, 5.0])
def test_owl_equals_the_whole_block_at_once(
    tiny_model: TinyModel, calibration: Calibration, tokens: Tokens, multiple: float
) -> None:
    directory = tiny_model("llama")
    scores = measure(
        directory, metrics=["owl"], device="cpu", calibration=calibration, options=Options(outlier=multiple)
    ).scores
    checkpoint = Checkpoint(directory)
    linears = linears_of_skeleton(checkpoint, build_skeleton(checkpoint))
    for block in range(3):
        members = [linear for linear in linears if linear.block == block]
        expected = owl_of_a_whole_block(directory, tokens, members, multiple)
        got = next(layer.values["owl"] for layer in scores.layers if layer.block == block)
        # one weight of the block's more or less, where float32 falls on the other side of the limit
        assert got == pytest.approx(expected, abs=100.0 / sum(linear.parameters for linear in members))


def test_shared_inputs_are_fully_redundant(tiny_model: TinyModel, calibration: Calibration) -> None:
    scores = measure(tiny_model("llama"), metrics=["als"], device="cpu", calibration=calibration).scores
    place = {layer.name: index for index, layer in enumerate(scores.layers)}
    within, block = scores.pairs["als"], scores.pairs["als.block"]
    for number in range(3):
        q, k, o, gate, up = (
            place[f"model.layers.{number}.{name}"]
            for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj")
        )
        assert within[q][k] == within[gate][up] == 1.0
        assert within[q][o] < 1.0
        assert block[q][up] == 1.0
    rows = np.array(within)
    means = (rows.sum(axis=1) - 1.0) / (len(rows) - 1)
    # the value is computed before the pairs are rounded to seven decimals
    np.testing.assert_allclose([layer.values["als"] for layer in scores.layers], means, atol=1e-7)


def test_how_it_was_measured_is_recorded_and_repeats(
    tiny_model: TinyModel, calibration: Calibration, tmp_path: Path
) -> None:
    directory = tiny_model("llama")
    drawn = draw(calibration, directory, max_positions(build_skeleton(Checkpoint(directory)).model))

    def once(metrics: list[str], text: Calibration = calibration) -> LayerScores:
        return measure(directory, metrics=metrics, device="cpu", cache=tmp_path, calibration=text).scores

    scores = once(["owl", "als", "alpha_mid"])
    assert scores.measured["metrics"] == "owl,als,alpha_mid"
    assert scores.measured["calibration_tokens_sha256"] == drawn.sha256
    assert scores.measured["calibration_samples"] == "6"
    assert (scores.measured["outlier"], scores.measured["tokens"]) == ("5.0", "144")  # 6 windows of 24
    assert codec.to_json(once(["owl", "als", "alpha_mid"])) == codec.to_json(scores)
    other = once(["owl", "als"], Calibration(calibration.source, 6, 24, seed=2))
    assert [layer.values["owl"] for layer in other.layers] != [layer.values["owl"] for layer in scores.layers]
    assert "calibration" not in once(["alpha_mid"]).measured


def test_text_is_not_read_by_metrics_that_do_not_need_it(tiny_model: TinyModel, tmp_path: Path) -> None:
    absent = Calibration(str(tmp_path / "absent.txt"))
    directory = tiny_model("llama")
    assert measure(directory, metrics=["magnitude"], device="cpu", calibration=absent).scores.layers
    with pytest.raises(InputError, match=r"absent\.txt"):
        measure(directory, metrics=["owl"], device="cpu", calibration=absent)
