"""Plans with bits carried out: stored as the integers say, resumed to the same bytes, refused with a reason."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tailcut import codec
from tailcut import manifest as manifests
from tailcut.allocation import NM, Allocation, Bits, Dense, LayerPlan, Pattern, Unstructured
from tailcut.checkpoint import Checkpoint, float32
from tailcut.compress.calibration import Calibration
from tailcut.compress.discovery import find_linears, read_weight
from tailcut.compress.journal import Journal
from tailcut.compress.packing import pack, unpack
from tailcut.compress.run import compress
from tailcut.errors import InputError
from tailcut.manifest import RealisedLayer
from tailcut.sidecar import open_sidecars

TinyModel = Callable[..., Path]


def plan(
    directory: Path, pattern: Pattern, bits: Bits | None, others: dict[str, LayerPlan] | None = None
) -> Allocation:
    """The same for every linear, but for those whose name has a part of `others`."""
    plans = {}
    for linear in find_linears(Checkpoint(directory)):
        chosen = [value for part, value in (others or {}).items() if part in linear.name]
        plans[linear.name] = chosen[0] if chosen else LayerPlan(pattern, bits)
    return Allocation(plans, {"allocator": "test"})


def stored_weights(directory: Path) -> dict[str, Any]:
    checkpoint = Checkpoint(directory)
    return {linear.name: read_weight(checkpoint, linear) for linear in find_linears(checkpoint)}


def test_every_family_is_stored_as_its_integers_say(
    family: str, tiny_model: TinyModel, calibration: Calibration, tmp_path: Path
) -> None:
    check_stored(tiny_model(family), "gptq", calibration, tmp_path / "out")


@pytest.mark.parametrize("quantiser", ["rtn", "joint"])
def test_every_quantiser_is_stored_as_its_integers_say(
    quantiser: str, tiny_model: TinyModel, calibration: Calibration, tmp_path: Path
) -> None:
    check_stored(tiny_model("gpt2"), quantiser, calibration, tmp_path / "out")


def check_stored(source: Path, quantiser: str, calibration: Calibration, out: Path) -> None:
    """Plans of every kind; weights, integers, counts and errors of the result agree, and transformers loads it."""
    allocation = plan(source, Unstructured(0.5), 4)
    first, *_, last = allocation.plans
    plans = dict(allocation.plans) | {first: LayerPlan(Dense(), 8), last: LayerPlan(NM(2, 4))}
    made = compress(
        source, Allocation(plans, {}), out, pruner="sparsegpt", quantiser=quantiser, calibration=calibration
    )
    assert manifests.verify(out) == made
    sidecars, weights = open_sidecars(out, made), stored_weights(out)
    assert set(sidecars) == set(plans) - {last}
    for name in sidecars:
        assert np.array_equal(sidecars.read(name).dense(), weights[name])  # a float32 model: exactly
        layer = made.layers[name]
        assert layer.plan == plans[name]
        assert layer.zeros == int((weights[name] == 0).sum()) >= int(layer.plan.pattern.sparsity * weights[name].size)
        assert 0 < layer.error < 1
        if quantiser != "rtn" or plans[name].pattern != Dense():  # else no Hessian was collected
            assert 0 < (layer.output_error or 0) < 1
    model = AutoModelForCausalLM.from_pretrained(out)
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()


def test_round_to_nearest_needs_no_calibration(tiny_model: TinyModel, tmp_path: Path) -> None:
    source = tiny_model("llama", "bfloat16")
    nowhere = Calibration("/nowhere.txt")
    made = compress(source, plan(source, Dense(), 8), tmp_path / "out", quantiser="rtn", calibration=nowhere)
    assert (made.details["quantiser"], made.details["mean_bits"]) == ("rtn", 8.0)
    assert all(layer.output_error is None for layer in made.layers.values())
    before, after = stored_weights(source), stored_weights(tmp_path / "out")
    for name, integral in ((name, open_sidecars(tmp_path / "out", made).read(name)) for name in before):
        assert after[name].dtype == before[name].dtype
        assert np.array_equal(after[name], integral.stored(before[name].dtype))
        # half a step of 127 to the largest of the row, and half a unit of bfloat16's 8 bits
        largest = np.abs(float32(before[name])).max(1, keepdims=True)
        assert (np.abs(float32(after[name]) - float32(before[name])) <= largest * (0.51 / 127 + 2**-8)).all()


def test_masks_of_any_pruner_are_kept(tiny_model: TinyModel, calibration: Calibration, tmp_path: Path) -> None:
    source = tiny_model("llama")
    for pruner in ("magnitude", "wanda"):
        pruned, both = tmp_path / f"{pruner}-p", tmp_path / f"{pruner}-q"
        first = [name for name in plan(source, Dense(), None).plans if ".layers.0." in name]  # later blocks see others
        compress(source, plan(source, NM(2, 4), None), pruned, pruner=pruner, calibration=calibration)
        compress(source, plan(source, NM(2, 4), 3), both, pruner=pruner, quantiser="gptq", calibration=calibration)
        a, b = stored_weights(pruned), stored_weights(both)
        for name in first:
            assert (b[name][a[name] == 0] == 0).all()


def test_an_earlier_runs_zeros_survive_rounding(
    tiny_model: TinyModel, calibration: Calibration, tmp_path: Path
) -> None:
    source = tiny_model("llama")
    compress(source, plan(source, Unstructured(0.5), None), tmp_path / "p", pruner="magnitude", calibration=calibration)
    compress(tmp_path / "p", plan(source, Dense(), 4), tmp_path / "q", quantiser="gptq", calibration=calibration)
    a, b = stored_weights(tmp_path / "p"), stored_weights(tmp_path / "q")
    assert all((b[name][a[name] == 0] == 0).all() for name in a)


@pytest.mark.parametrize("pruner", ["sparsegpt"])
@pytest.mark.parametrize("quantiser", ["gptq", "joint"])
def test_interrupted_runs_end_in_the_same_bytes(
    quantiser: str,
    pruner: str,
    tiny_model: TinyModel,
    calibration: Calibration,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = tiny_model("llama")
    chosen = plan(source, Unstructured(0.5), 4, {"layers.1.": LayerPlan(Unstructured(0.5))})  # block 1 has no sidecar

    def run(out: Path) -> dict[str, bytes]:
        compress(source, chosen, out, pruner=pruner, quantiser=quantiser, calibration=calibration)
        return {path.name: path.read_bytes() for path in sorted(out.iterdir())}

    whole = run(tmp_path / "whole")
    assert sorted(name for name in whole if "quantised" in name) == [
        "quantised-00001-of-00003.safetensors",
        "quantised-00003-of-00003.safetensors",
    ]
    store, count = Journal.store, 0

    class Stopped(Exception):  # noqa: N818  (an interruption, not an error of the program)
        pass

    for stop in range(6):  # two sidecars, three blocks, the rest
        count = 0

        def stopping(journal: Journal, shard: str, tensors: Any, limit: int = stop) -> Path:
            nonlocal count
            count += 1
            if count > limit:
                raise Stopped
            return store(journal, shard, tensors)

        out = tmp_path / f"stopped-{stop}"
        monkeypatch.setattr(Journal, "store", stopping)
        with pytest.raises(Stopped):
            run(out)
        monkeypatch.setattr(Journal, "store", store)
        assert run(out) == whole


def test_another_quantiser_is_another_run(tiny_model: TinyModel, calibration: Calibration, tmp_path: Path) -> None:
    """The fingerprint knows the quantiser: integers of one are never finished by another."""
    source = tiny_model("llama")
    made = {}
    for quantiser, clip in (("rtn", True), ("gptq", True), ("gptq", False)):
        out = tmp_path / f"{quantiser}-{clip}"
        compress(source, plan(source, Dense(), 3), out, quantiser=quantiser, clip=clip, calibration=calibration)
        made[out.name] = (out / "quantised-00001-of-00003.safetensors").read_bytes()
    assert len(set(made.values())) == 3


def test_joint_is_sparsegpts(tiny_model: TinyModel, calibration: Calibration, tmp_path: Path) -> None:
    source = tiny_model("llama")
    for pruner, match in (
        ("wanda", "joint prunes in sparsegpt's own sweep, not as wanda does"),
        ("luck", "unknown pruner"),
    ):
        with pytest.raises(InputError, match=match):
            compress(
                source,
                plan(source, Unstructured(0.5), 4),
                tmp_path / "out",
                pruner=pruner,
                quantiser="joint",
                calibration=calibration,
            )
    with pytest.raises(InputError, match="unknown quantiser 'luck'; choose one of gptq, joint, rtn"):
        compress(source, plan(source, Dense(), 4), tmp_path / "out", quantiser="luck", calibration=calibration)
    assert not (tmp_path / "out.work").exists()


def test_packed_directories_keep_their_integers(tiny_model: TinyModel, tmp_path: Path) -> None:
    source = tiny_model("llama")
    made = compress(
        source, plan(source, Unstructured(0.5), 4), tmp_path / "q", pruner="magnitude", quantiser="rtn",
        calibration=Calibration(),
    )  # fmt: skip
    pack(tmp_path / "q", tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "unpacked")
    for name in ("packed", "unpacked"):
        sidecars = open_sidecars(tmp_path / name, manifests.verify(tmp_path / name))
        assert set(sidecars) == set(made.layers)


def test_manifest_layers_of_earlier_versions_are_read() -> None:
    """`output_error` is new: a layer without it has none."""
    old = {"plan": {"pattern": {"kind": "dense"}}, "shape": [2, 2], "zeros": 0}
    assert codec.parse(RealisedLayer, old, "x") == RealisedLayer(LayerPlan(Dense()), (2, 2), 0)
