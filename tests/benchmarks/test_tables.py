"""The numbers in the documents are those of the committed results; a table whose result is not there yet takes no room."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LATER = ("alloc_cost", "alloc_zero_shot", "recover", "recover_short", "structured", "structured_short")
MACHINE = {"accelerator": "some GPU", "cpu": "some cpu", "commit": "abc"}


@pytest.fixture
def tables(load_script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The script, with an empty folder of results."""
    module = load_script("tables")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def test_documents_show_what_the_results_say() -> None:
    words = [sys.executable, str(ROOT / "benchmarks" / "tables.py"), "--check"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_table_has_a_place_and_every_place_a_table(tables: Any) -> None:
    places = [name for path in tables.DOCUMENTS for _, name, _ in tables._SLOT.findall((ROOT / path).read_text())]
    assert set(places) == set(tables.TABLES)


@pytest.mark.parametrize("name", LATER)
def test_without_a_result_nothing_is_shown(name: str, tables: Any) -> None:
    place = f"before\n<!-- table:{name} -->\nold | numbers\n<!-- /table -->\nafter\n"
    empty = f"before\n<!-- table:{name} -->\n\n<!-- /table -->\nafter\n"
    assert tables.render(place) == empty
    assert tables.render(empty) == empty


def test_recovery_in_its_page_and_in_the_readme(tables: Any, tmp_path: Path) -> None:
    (tmp_path / "recover.json").write_text(json.dumps(recovery()))
    whole, short = (tables.TABLES[name]() for name in ("recover", "recover_short"))
    assert "| 0.5 | 40.00 (+100.0%) | 25.00 (+25.0%) | +0.2000 (0.1000) | 12.0 | 3.2 | same (aaaaaaaa) |" in whole
    assert "| 2:4 | 90.00 (+350.0%) | 30.00 (+50.0%) | +0.3000 (0.1000) | 12.0 | 3.2 | 5 more zeros" in whole
    assert "4.1 M tokens that the dense model wrote (9,000 tokens/s)" in whole
    assert "(some-model, dense 20.00 at context 11), every zero kept; some GPU." in short
    assert "| 0.5 | 40.00 (+100.0%) | 25.00 (+25.0%) | +0.2000 (0.1000) | 12.0 |" in short
    assert "dense |" not in short


def recovery() -> dict[str, Any]:
    """Two rows, one of which lost more weights to rounding."""

    def row(cut: float, recovered: float, nats: list[float], after: str) -> dict[str, Any]:
        result = {"mask_sha256_before": "a" * 64, "mask_sha256_after": after * 64, "new_zeros": 5, "train_tokens": 7000}
        stages = [{"method": "distill"}]
        return {
            "ppl_cut": cut, "ppl_recovered": recovered, "nll_recovered": nats, "training_minutes": 12.0,
            "tokens_learnt": 3.2e6, "recovery": result | {"stages": stages},
        }  # fmt: skip

    return {
        "machine": MACHINE,
        "model": {"name": "some-model"},
        "text": {"name": "wiki.test.raw"},
        "context": 11,
        "windows": 2,
        "calibration": {"file": "c4.jsonl", "samples": 8, "seqlen": 64, "seed": 0},
        "pruner": "sparsegpt",
        "train": ["c4.jsonl"],
        "sampled": {"tokens": 4.1e6, "tokens_per_second": 9000.0},
        "rows": {
            "dense": {"ppl": 20.0, "nll": [30.0, 30.0]},
            "0.5": row(40.0, 25.0, [31.0, 33.0], "a"),
            "2:4": row(90.0, 30.0, [32.0, 34.0], "b"),
        },
    }


def test_structured_pruning_in_its_page_and_in_the_readme(tables: Any, tmp_path: Path) -> None:
    content = structured()
    (tmp_path / "structured.json").write_text(json.dumps(content))
    whole, short = (tables.TABLES[name]() for name in ("structured", "structured_short"))
    assert "| dense |  |  | 100.0 M |  |  | 1.00 |  |" in whole
    assert "| LLM-Pruner first order | 20% | 19.6% | 84.0 M | 3 | 64 to 128 | 2.72 | 1.65 |" in whole
    assert "| magnitude | 30% | 29.0% | 70.0 M | 2 to 3 | 64 | 7.39 |  |" in whole  # a ratio that is no default
    assert "2 windows of 5 tokens of wiki.test.raw" in whole
    assert "a budget of 5m each. some GPU, commit abc." in whole
    assert "| 0.0% | 100.0 M | 1.00 |  |\n| 19.6% | 84.0 M | 2.72 | 1.65 |" in short
    del content["rows"]["LLM-Pruner first order at 0.2"]
    (tmp_path / "structured.json").write_text(json.dumps(content))
    assert tables.TABLES["structured_short"]() == ""


def structured() -> dict[str, Any]:
    first = {"name": "LLM-Pruner first order", "ratio": 0.2, "ratio_removed": 0.196, "parameters": 84e6}
    first |= {"kv_heads_kept": "3,3", "mlp_channels_kept": "128,64", "nll": [4.0, 4.0], "recovered_nll": [2.0, 2.0]}
    other = {"name": "magnitude", "ratio": 0.3, "ratio_removed": 0.29, "parameters": 70e6}
    other |= {"kv_heads_kept": "3,2", "mlp_channels_kept": 64, "nll": [8.0, 8.0]}
    settings = {"model": "some-model", "context": 5, "text": "wiki.test.raw", "samples": 8, "seqlen": 64}
    return {
        "machine": MACHINE,
        "settings": settings | {"calibration": "c4.jsonl", "multiple": 64, "budget": "5m"},
        "rows": {
            "dense": {"parameters": 100e6, "nll": [0.0, 0.0]},
            "LLM-Pruner first order at 0.2": first,
            "magnitude at 0.3": other,
        },
    }


def test_costs_of_allocators(tables: Any, tmp_path: Path) -> None:
    def sample(seconds: float, **more: Any) -> list[dict[str, Any]]:
        return [{"s": seconds, "before_bytes": 1e6, "peak_bytes": 5e6, "gpu_peak_bytes": 9e6} | more]

    text = {"text": "c4.jsonl", "samples": 8, "seqlen": 64, "seed": 0}
    search = sample(50.0, scores_s=3.0, winner="dlp", finals="dlp 0.1")
    rows = {"auto": search, "sparsegpt": sample(10.0), "alpha": sample(2.0, scores_s=1.9, allocate_s=[0.001])}
    model = {
        "machine": MACHINE,
        "parameters": 1e8,
        "calibration": text,
        "sparsity": 0.5,
        "device": "cuda",
        "rows": rows,
    }
    (tmp_path / "alloc_cost.json").write_text(json.dumps({"models": {"some-model": model}}))
    shown = tables.TABLES["alloc_cost"]()
    assert "| alpha | 1.9 | 1.0 | 2.0 | 0.20 | 4 | 9 |" in shown
    assert "| auto | 3.0 |  | 50.0 | 5.00 | 4 | 9 |" in shown
    assert "auto chose dlp (dlp 0.1)." in shown
