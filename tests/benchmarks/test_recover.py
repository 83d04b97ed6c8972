"""The recovery benchmark on a tiny model: rows, resuming, and the table."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tailcut import codec
from tailcut.allocation import NM, Allocation, LayerPlan, Unstructured
from tailcut.checkpoint import Checkpoint
from tailcut.compress.discovery import find_linears
from tailcut.manifest import Manifest

TinyModel = Callable[..., Path]


def test_rows_are_measured_once_and_shown(
    load_script: Callable[[str], Any],
    small_run: Callable[[str], list[str]],
    tiny_model: TinyModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = load_script("recover")
    words = small_run(str(tiny_model("llama")))
    train = words[words.index("--text") + 1]
    words += ["--train", train, "--sample-tokens", "500", "--sample-batch", "4", "--steps", "4", "--rate", "0.003"]
    words += ["--train-seqlen", "24", "--train-batch", "4", "--train-samples", "4"]
    script.main([*words, "--targets", "0.5"])
    script.main([*words, "--targets", "0.5", "2:4+int8"])
    content = json.loads((tmp_path / "out.json").read_bytes())
    assert list(content["rows"]) == ["dense", "0.5", "2:4+int8"]
    row = content["rows"]["0.5"]
    assert row["steps"] == 4
    assert row["tokens_learnt"] == 4 * 4 * 24
    assert row["ppl_recovered"] != row["ppl_cut"]
    assert row["recovery"]["mask_sha256_before"] == row["recovery"]["mask_sha256_after"]
    assert content["sampled"]["tokens"] >= 500
    assert (tmp_path / "work" / "2-4+int8" / "recovered" / "manifest.json").is_file()
    capsys.readouterr()
    script.main(["table", str(tmp_path / "out.json")])
    shown = capsys.readouterr().out
    assert f"{row['ppl_recovered']:.2f}" in shown
    assert "same (" in shown
    assert "that the dense model wrote" in shown


def test_a_target_may_be_an_allocation_of_ones_own(
    load_script: Callable[[str], Any], small_run: Callable[[str], list[str]], tiny_model: TinyModel, tmp_path: Path
) -> None:
    script, model = load_script("recover"), tiny_model("llama")
    plans = {
        linear.name: LayerPlan(Unstructured(0.2 + 0.3 * linear.block)) for linear in find_linears(Checkpoint(model))
    }
    codec.save(Allocation(plans, {"allocator": "mine"}), tmp_path / "mine.json")
    words = small_run(str(model))
    words += ["--train", words[words.index("--text") + 1], "--steps", "2", "--train-seqlen", "24", "--train-batch", "4"]
    script.main([*words, "--plan", f"mine={tmp_path / 'mine.json'}", "--targets", "mine", "--train-samples", "4"])
    made = codec.load(Manifest, tmp_path / "work" / "mine" / "recovered" / "manifest.json")
    assert {name: layer.plan for name, layer in made.layers.items()} == plans


def test_targets_are_plans(load_script: Callable[[str], Any]) -> None:
    script = load_script("recover")
    assert script.plan_of("0.6") == LayerPlan(Unstructured(0.6))
    assert script.plan_of("2:4+int4") == LayerPlan(NM(2, 4), 4)
