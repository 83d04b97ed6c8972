"""`tailcut structured`: what it prints, what it refuses, and going on after an interruption."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from tailcut import codec, plugins
from tailcut.allocation import Allocation, LayerPlan, Unstructured
from tailcut.checkpoint import Checkpoint
from tailcut.compress import structured_run
from tailcut.compress.calibration import Calibration
from tailcut.compress.discovery import find_linears
from tailcut.compress.journal import Journal
from tailcut.compress.structured import PACKAGE
from tailcut.compress.structured_run import Structuring, cut_structured

TinyModel = Callable[..., Path]
Tailcut = Callable[..., tuple[int, str, str]]


def test_a_newcomer_cuts_and_loads(tailcut: Tailcut, tiny_model: TinyModel, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    options = ("--calibration", text, "--samples", 4, "--seqlen", 24, "--multiple", 8, "--device", "cpu")
    code, shown, progress = tailcut("structured", tiny_model("llama"), "--ratio", 0.4, "-o", out, *options)
    assert code == 0, progress
    assert "any from_pretrained loads this directory" in shown
    assert "MLP channels kept: " in shown
    assert "importance" in progress
    model: Any = AutoModelForCausalLM.from_pretrained(out)
    dense: Any = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    assert model.num_parameters() < 0.8 * dense.num_parameters()
    code, shown, _ = tailcut("inspect", out)
    assert code == 0
    assert "importance: taylor" in shown


def test_json_and_blocks_that_differ(tailcut: Tailcut, tiny_model: TinyModel, tmp_path: Path) -> None:
    source = tiny_model("llama")
    plans = {one.name: LayerPlan(Unstructured(0.2 + 0.2 * one.block)) for one in find_linears(Checkpoint(source))}
    codec.save(Allocation(plans, {"allocator": "by hand"}), tmp_path / "allocation.json")
    options = ("--allocation", tmp_path / "allocation.json", "--importance", "magnitude", "--no-refit", "--multiple", 8)
    code, shown, _ = tailcut("structured", source, "-o", tmp_path / "out", *options, "--json")
    assert code == 0
    manifest = json.loads(shown)
    assert manifest["provenance"] == {"allocator": "by hand"}
    assert manifest["details"]["equal_blocks"] is False
    assert "cannot load the directory itself" in manifest["notes"][0]
    widths = [int(width) for width in manifest["details"]["mlp_channels_kept"].split(",")]
    assert widths == sorted(widths, reverse=True)


def test_list_explains_every_importance(tailcut: Tailcut) -> None:
    code, shown, _ = tailcut("structured", "--list")
    assert code == 0
    for name in plugins.names(PACKAGE):
        assert f"{name}  (reads: " in shown
    assert "reconstructed" in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--ratio", "0"), "between 0 and 1"),
        (("--ratio", "1"), "between 0 and 1"),
        (("--ratio", "nan"), "between 0 and 1"),
        (("--ratio", "20"), "not percent"),
        ((), "say how much"),
        (("--ratio", "0.97", "--importance", "magnitude"), "smaller ratio"),
        (("--ratio", "0.2", "--importance", "random"), "unknown importance"),
        (("--ratio", "0.2", "--blend", "2", "--importance", "hywia"), "blend must be in [0, 1]"),
        (("--ratio", "0.2", "--blend", "0.5"), "does not read blend"),
        (("--ratio", "0.2", "--aggregate", "median"), "aggregate must be"),
        (("--ratio", "0.2", "--units", "layers"), "units are heads"),
        (("--ratio", "0.2", "--units", "blocks,mlp"), "by themselves"),
        (("--ratio", "0.05", "--units", "blocks"), "is 0 of 3 blocks"),
        (("--ratio", "0.2", "--protect-first", "2", "--protect-last", "1"), "none of 3 blocks"),
        (("--ratio", "0.2", "--multiple", "0"), "multiple must be at least 1"),
    ],
)
def test_bad_input_is_one_sentence(
    options: tuple[str, ...], words: str, tailcut: Tailcut, tiny_model: TinyModel, tmp_path: Path
) -> None:
    more = () if "--multiple" in options else ("--multiple", 8)
    code, shown, said = tailcut("structured", tiny_model("llama"), "-o", tmp_path / "out", *options, *more)
    assert code == 2
    assert shown == ""
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.work").exists()


def test_heads_that_cannot_go_and_outputs_that_exist(tailcut: Tailcut, tiny_model: TinyModel, tmp_path: Path) -> None:
    cannot = ("--ratio", 0.2, "--units", "heads")
    code, _, said = tailcut("structured", tiny_model("gpt2"), "-o", tmp_path / "out", *cannot)
    assert code == 2
    assert "no heads can be cut" in said
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    code, _, said = tailcut("structured", tiny_model("llama"), "-o", tmp_path / "full", "--ratio", 0.2)
    assert code == 2
    assert "already exists" in said


class Stopped(Exception):  # noqa: N818  (an interruption, not an error of the program)
    """Stands for the power cut."""


@pytest.mark.parametrize("shards", [0, 1, 2])
@pytest.mark.parametrize("units", [("heads", "mlp"), ("blocks",)])
def test_an_interrupted_run_ends_in_the_same_bytes(
    shards: int,
    units: Any,
    tiny_model: TinyModel,
    calibration: Calibration,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    same_files: Callable[[Path, Path], bool],
) -> None:
    source = tiny_model("gemma2")
    asked = Structuring(0.4, units=units, multiple=8, calibration=calibration, device="cpu")
    cut_structured(source, tmp_path / "whole", asked)
    store, written = Journal.store, []

    def stopping(journal: Journal, shard: str, tensors: Any) -> Path:
        if len(written) == shards:
            raise Stopped
        written.append(shard)
        return store(journal, shard, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "store", stopping)
        with pytest.raises(Stopped):
            cut_structured(source, tmp_path / "out", asked)
    assert not (tmp_path / "out").exists()
    # what is scored is kept: going on must not score again
    monkeypatch.setattr(structured_run, "score_units", lambda *a: pytest.fail("scored twice"))
    cut_structured(source, tmp_path / "out", asked)
    assert same_files(tmp_path / "whole", tmp_path / "out")
    assert not (tmp_path / "out.work").exists()
