"""The benchmark of bits runs in workers, resumes and renders (on a tiny model: no quality is judged)."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tailcut.allocation import LayerPlan, Unstructured
from tailcut.errors import InputError
from tailcut.manifest import Manifest, RealisedLayer


@pytest.fixture
def script(load_script: Callable[[str], Any]) -> Any:
    return load_script("alloc_bits")


def test_rows_are_measured_once_and_shown(
    script: Any,
    small_run: Callable[[str], list[str]],
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words, out = small_run(str(tiny_model("llama"))), tmp_path / "out.json"
    script.main([*words, "--only", "^rtn 3.5", "--search-evaluations", "2"])
    first = json.loads(out.read_bytes())
    assert list(first["rows"]) == ["dense", "rtn 3.5", "rtn 3.5 alpha", "rtn 3.5 auto"]
    assert all(len(row["nll"]) == 4 for row in first["rows"].values())
    row = first["rows"]["rtn 3.5 alpha"]
    assert row["bits_tight"] < row["bits_stored"]
    assert "x" in row["bit_counts"]
    searched = first["rows"]["rtn 3.5 auto"]
    assert "uniform " in searched["finals"]
    assert float(searched["bits_planned"]) <= 3.5
    script.main([*words, "--minutes", "0"])
    assert json.loads(out.read_bytes())["rows"] == first["rows"]  # nothing measured again, and no time for more
    shown = capsys.readouterr().out
    assert "| 3.5 | rtn |" in shown
    assert "rows are left for another run" in shown
    with pytest.raises(InputError, match="another setup"):
        script.main([*words, "--seed", "1"])


def test_a_search_is_not_begun_without_the_time_for_it(script: Any) -> None:
    options = argparse.Namespace(search_minutes=3.0, search_evaluations=None)
    auto, plain = (script.Variant(4.0, share=share) for share in ("auto", "uniform"))
    soon, late = time.monotonic() + 60.0, time.monotonic() + 600.0
    assert script._next(options, [auto, plain], late) is auto
    assert script._next(options, [auto, plain], soon) is plain
    assert script._next(options, [auto], soon) is None


def test_names_are_unique_and_say_what_was_done(script: Any) -> None:
    keys = [variant.key for variant in script.VARIANTS]
    assert len(set(keys)) == len(keys)
    assert {"gptq 4", "rtn 3 alpha", "sparsegpt 0.5 + joint 4", "sparsegpt 0.5", "rtn 4 unclipped"} <= set(keys)
    assert script.Variant(1, "gptq", plan="auto 3=a.json").key == "auto 3 gptq"


def test_sizes_count_values_mask_and_scales(script: Any) -> None:
    """A matrix of 4 x 256: by hand, the smaller of all values and of kept values with a mask, and float32 scales."""

    def sizes(bits: Any, zeros: int) -> dict[str, float]:
        layer = RealisedLayer(LayerPlan(Unstructured(0.5), bits), (4, 256), zeros)
        manifest = Manifest("model", "", {}, {"m": layer}, 1024, {})
        return {name: value * 1024 for name, value in script.sizes(manifest).items()}

    assert sizes(None, 0) == {"bits_stored": 16 * 1024, "bits_tight": 16 * 1024}
    assert sizes(None, 512) == dict.fromkeys(("bits_stored", "bits_tight"), 16 * 512 + 1024)
    assert sizes(8, 512) == dict.fromkeys(("bits_stored", "bits_tight"), 8 * 512 + 1024 + 4 * 32)
    assert sizes(4, 512) == dict.fromkeys(("bits_stored", "bits_tight"), 4 * 512 + 1024 + 8 * 32)
    # 100 zeros do not pay for a mask; 3 bits take the place of 4 in a package
    assert sizes(3, 100) == {"bits_stored": 4 * 1024 + 8 * 32, "bits_tight": 3 * 1024 + 8 * 32}


def test_the_front_is_what_no_smaller_model_beats(script: Any) -> None:
    row = {"zeros": 0.0, "nll": [100.0, 110.0]}
    rows = {
        "dense": {"ppl": 10.0, "nll": [90.0, 100.0]},
        "gptq 4": row | {"bits_stored": 4.2, "bits_tight": 4.2, "ppl": 12.0},
        "gptq 3": row | {"bits_stored": 4.2, "bits_tight": 3.2, "ppl": 15.0},
        "sparsegpt 0.5 + joint 4": row | {"bits_stored": 3.3, "bits_tight": 3.3, "ppl": 14.0},
    }
    lines = script.shown.per_byte(rows, {"context": 11}).splitlines()
    ends = {line.split(" | ")[0].strip("| "): line.rsplit("|", 2)[1].strip() for line in lines[2:]}
    assert ends == {"gptq 4": "stored, tight", "gptq 3": "tight", "sparsegpt 0.5 + joint 4": "stored, tight"}
    assert "+1.000 (0.000)" in lines[2]
