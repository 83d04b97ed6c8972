"""The big table of allocators on a tiny model: order, workers, going on, deaths, and what is shown."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailcut.compress.allocators import Settings, allocate
from tailcut.errors import InputError


@pytest.fixture
def script(load_script: Callable[[str], Any]) -> Any:
    return load_script("alloc_table")


@pytest.fixture
def words(small_run: Callable[[str], list[str]], tiny_model: Callable[..., Path]) -> list[str]:
    return [*small_run(f"tiny={tiny_model('gemma3_text')}"), "--windows", "6"]


def test_the_most_important_cells_come_first(script: Any) -> None:
    order = script.cells(["small", "large"], {})
    assert [cell.key for cell in order[:3]] == [
        "small uniform sparsegpt 0.7 0",
        "small uniform wanda 0.7 0",
        "small uniform sparsegpt 0.6 0",
    ]
    main = [cell for cell in order if cell.seed == 0 and cell.variant in ("uniform", "alpha", "owl", "auto")]
    firsts = [cell for cell in main if cell.target in ("0.6", "0.7")]
    assert order[: len(firsts)] == firsts  # of both models, before anything else
    assert len({cell.key for cell in order}) == len(order) == 2 * 2 * 3 * (19 * 3 + 3 + 2 + 2)
    assert {cell.target for cell in order if cell.variant == "nm-mixed"} == {"4:8", "3:8"}


def test_every_variant_has_plans_and_erk_those_of_er(
    script: Any, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """From the two measurements, each with its own metrics, merged."""
    from tailcut.compress.calibration import Calibration
    from tailcut.compress.measure import measure

    cells = importlib.import_module("alloc_cells")
    (tmp_path / "text.txt").write_text("".join(f"line {number * 7919 % 1009} of many\n" for number in range(150)))
    text, model = Calibration(str(tmp_path / "text.txt"), 3, 24), tiny_model("llama")
    both = cells.merged(
        measure(model, metrics=cells.SPECTRA_METRICS, device="cpu").scores,
        measure(model, metrics=cells.TEXT_METRICS, device="cpu", calibration=text).scores,
    )
    parameters = {layer.name: layer.parameters for layer in both.layers}
    for cell in script.cells(["m"], {"pruners": ["wanda"], "seeds": [0]}):
        if not cell.searches:
            found = cell.plan(both).sparsity(parameters)
            # nm-mixed rounds to half of one weight of eight in one of three blocks
            assert found == pytest.approx(cell.budget.sparsity, abs=1e-6 if ":" not in cell.target else 1 / 48)
    budget = cells.cell_of("m er wanda 0.7 0").budget
    assert allocate("erk", both, budget, Settings()).plans == allocate("er", both, budget, Settings()).plans


def test_two_workers_measure_resume_and_agree_with_compress(
    script: Any, words: list[str], tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--variants", "uniform", "owl", "--pruners", "sparsegpt", "--targets", "0.6", "--workers-a-gpu", "2"]
    script.main([*words, *few, "--seeds", "0", "1"])
    first = json.loads((tmp_path / "out.json").read_bytes())
    assert set(first["rows"]) == {f"tiny {name} sparsegpt 0.6 {seed}" for name in ("uniform", "owl") for seed in (0, 1)}
    row = first["rows"]["tiny owl sparsegpt 0.6 1"]
    assert len(row["nll"]) == len(row["kls"]) == len(first["models"]["tiny"]["nll"]) == 6
    assert row["sparsity"] == pytest.approx(0.6, abs=0.02)  # rows of 32 weights: a step is 1 / 32, rounded down
    assert (row["commit"], row["device"]) == ("abc", "cpu")
    _agrees_with_compress(words, row, tiny_model("gemma3_text"), tmp_path)

    work = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "work").glob("*.json"))
    script.main([*words, *few, "--seeds", "0", "1"])  # nothing is measured again
    assert json.loads((tmp_path / "out.json").read_bytes())["rows"] == first["rows"]
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "work").glob("*.json")) == work
    (tmp_path / "out.json").unlink()  # as after a kill: the lines alone are left
    script.main([*words, *few, "--seeds", "0", "1", "--minutes", "0"])
    assert json.loads((tmp_path / "out.json").read_bytes())["rows"] == first["rows"]

    with pytest.raises(InputError, match="another setup"):
        script.main([*words, *few, "--seeds", "0", "--samples", "4"])
    capsys.readouterr()
    script.main(["table", str(tmp_path / "out.json")])
    shown = capsys.readouterr().out
    assert "**tiny, sparsegpt** (dense " in shown
    assert shown.count("\n| owl |") == 1
    assert "| erk |" not in shown
    assert "| tiny | sparsegpt | 0.6 | owl |" in shown


def test_quick_passes_give_nearly_the_same(script: Any, words: list[str], tmp_path: Path) -> None:
    """bfloat16 moves inputs by 2^-9 of themselves: few weights next to a threshold change sides."""
    few = ["--variants", "owl", "--pruners", "wanda", "--targets", "0.6", "--seeds", "0"]
    losses = []
    for forward in ("float32", "bfloat16"):
        out, work = tmp_path / f"{forward}.json", tmp_path / forward
        script.main([*words, *few, "--forward", forward, "-o", str(out), "--work", str(work)])
        row = json.loads(out.read_bytes())["rows"]["tiny owl wanda 0.6 0"]
        losses.append((row["sparsity"], row["ppl"]))
    assert losses[0][0] == losses[1][0]
    assert losses[0][1] != losses[1][1]  # it was another arithmetic
    assert losses[1][1] == pytest.approx(losses[0][1], rel=0.05)


def _agrees_with_compress(words: list[str], row: dict[str, Any], dense: Path, tmp_path: Path) -> None:
    """The cut in memory is the one that `tailcut compress` writes."""
    from tailcut.compress.calibration import Calibration
    from tailcut.compress.divergence import directory_kl
    from tailcut.compress.measure import measure
    from tailcut.compress.perplexity import directory_nll
    from tailcut.compress.run import compress
    from tailcut.windows import perplexity

    cells = importlib.import_module("alloc_cells")
    calibration = Calibration(words[words.index("--calibration") + 1], 3, 24, 1)
    scores = measure(dense, metrics=("owl",), device="cpu", calibration=calibration).scores
    plan = cells.cell_of("tiny owl sparsegpt 0.6 1").plan(scores)
    compress(dense, plan, tmp_path / "cut", pruner="sparsegpt", calibration=calibration, device="cpu")
    windows = np.load(tmp_path / "work" / "tiny.windows.npy")
    nll = directory_nll(tmp_path / "cut", windows, device="cpu")
    # a sum of 31 losses of about 6 nats agreed to 2e-3 when three decimals were stored; five digits leave 5e-5 of it
    assert row["ppl"] == pytest.approx(perplexity(nll, 31), rel=2e-3 / 31)
    np.testing.assert_allclose(row["nll"], nll, rtol=6e-5)
    kl = directory_kl(tmp_path / "cut", dense, windows, device="cpu")
    np.testing.assert_allclose(row["kls"], kl, rtol=6e-3)  # three digits
    assert row["kl"] == pytest.approx(kl.mean(), rel=1e-3)


def test_a_failing_cell_and_a_dying_worker_are_told_and_stay_open(
    script: Any, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = script.Hand.ask

    def murderous(hand: Any, task: dict[str, Any]) -> Any:
        if "alpha-hat" in task.get("key", ""):
            hand._process.kill()
        if "lamp" in task.get("key", ""):
            task = task | {"key": "no such cell"}
        return ask(hand, task)

    monkeypatch.setattr(script.Hand, "ask", murderous)
    few = ["--variants", "uniform", "alpha-hat", "lamp", "er", "--pruners", "wanda", "--targets", "0.5", "--seeds", "0"]
    script.main([*words, *few])
    shown = capsys.readouterr().out
    assert "FAILED tiny alpha-hat wanda 0.5 0: the worker died (exit code -9" in shown
    assert "FAILED tiny lamp wanda 0.5 0: ValueError" in shown
    assert "2 of 4 cells measured, 2 open" in shown
    assert set(json.loads((tmp_path / "out.json").read_bytes())["rows"]) == {
        "tiny uniform wanda 0.5 0",
        "tiny er wanda 0.5 0",
    }


def test_auto_is_searched_within_its_evaluations(script: Any, words: list[str], tmp_path: Path) -> None:
    few = ["--variants", "auto", "--pruners", "wanda", "--targets", "0.6", "4:8", "--seeds", "0"]
    script.main([*words, *few, "--search-evaluations", "2"])
    rows = json.loads((tmp_path / "out.json").read_bytes())["rows"]
    plain, patterns = (rows[f"tiny auto wanda {target} 0"] for target in ("0.6", "4:8"))
    assert plain["planned"] == pytest.approx(0.6, abs=1e-6)
    assert patterns["planned"] == pytest.approx(0.5, abs=1e-6)  # of matrices whose sizes divide each other
    assert "obey 2:4" in patterns["provenance"]["two_four"]
    assert plain["provenance"]["allocator"] == patterns["provenance"]["allocator"] == "auto"
    assert len(list((tmp_path / "work").glob("*.search.jsonl"))) == 2
    assert plain["search"] == 2
    script.main([*words, *few, "--search-evaluations", "2"])
    again = json.loads((tmp_path / "out.json").read_bytes())["rows"]
    assert again == rows  # nothing was measured twice
    script.main([*words, *few, "--targets", "0.6", "--search-evaluations", "3"])
    more = json.loads((tmp_path / "out.json").read_bytes())["rows"]
    assert {key: row["search"] for key, row in more.items()} == {"tiny auto wanda 0.6 0": 3, "tiny auto wanda 4:8 0": 2}


def test_other_seeds_cut_the_plan_that_seed_0_found(script: Any, words: list[str], tmp_path: Path) -> None:
    few = ["--variants", "auto", "--pruners", "wanda", "--targets", "0.6", "--search-evaluations", "2"]
    script.main([*words, *few, "--seeds", "1"])
    assert not json.loads((tmp_path / "out.json").read_bytes())["rows"]  # there is no plan yet
    script.main([*words, *few, "--seeds", "0", "1"])
    rows = json.loads((tmp_path / "out.json").read_bytes())["rows"]
    found, other = (rows[f"tiny auto wanda 0.6 {seed}"] for seed in (0, 1))
    assert other["planned"] == found["planned"]
    assert other["blocks"] == pytest.approx(found["blocks"], abs=0.01)  # rows of a matrix round alike, ties apart
    assert other["ppl"] != found["ppl"]  # other statistics
    assert "search" not in other


def test_cells_that_search_are_not_started_without_the_time_for_it(script: Any) -> None:
    import time

    cell = {"kind": "cell", "key": "m auto wanda 0.5 0", "needs": [], "searches": True}
    other = {"kind": "cell", "key": "m uniform wanda 0.5 0", "needs": [], "searches": False}
    queue = script.Queue([cell, other], time.monotonic() + 60, search_s=120)
    assert queue.next() is other
    queue.done(other, good=True)
    assert queue.next() is None


def test_ratios_intervals_and_outliers_of_known_numbers(script: Any) -> None:
    shown = importlib.import_module("alloc_table_render")
    rng = np.random.default_rng(0)
    base = rng.normal(6000.0, 500.0, 100)
    gain = np.where(np.arange(100) < 5, -0.5, -0.01) * 2047  # five windows of a hundred carry most
    rows = {
        f"m {name} wanda 0.7 {seed}": {
            "nll": list(base + seed * 7 + extra),
            "ppl": 20.0 + seed,
            "kl": 1.0,
            "device": "cpu",
            "commit": "abc",
        }
        for seed in (0, 1)
        for name, extra in (("uniform", 0.0), ("alpha", gain))
    }
    setup = {"context": 2048, "samples": 128, "seqlen": 2048, "forward": "float32"}
    content = {"models": {"m": {"ppl": 10.0, "windows": 100}}, "rows": rows, "setup": setup}
    content |= {"names": {"text": "wiki.test.raw", "calibration": "c4.jsonl"}}
    difference = shown.Rows(content).difference("m", "alpha", "wanda", "0.7")
    middle, low, high = shown.ratio_interval(difference)
    assert middle == pytest.approx(np.exp(-(5 * 0.5 + 95 * 0.01) / 100))
    assert high - middle == pytest.approx(middle - low, rel=0.05)
    assert np.log(high / middle) == pytest.approx(1.96 * np.std(gain / 2047, ddof=1) / 10, rel=1e-3)
    share, rest = shown.worst_share(difference)
    assert share == pytest.approx(2.5 / 3.45)
    assert rest == pytest.approx(np.exp(-0.01))
    table = shown.render(content)
    assert "| alpha | 20.5 (20.0–21.0) | 0.966 (0.946 to 0.987) | 1.000 |" in table
    assert "seeds 0, 1" in table
    assert "| m | wanda | 0.7 | alpha | 0.966 | 100% | 0.72 | 0.990 |" in shown.render_outliers(content)


def test_auto_is_shown_beside_the_best_other_searches_included(script: Any) -> None:
    shown = importlib.import_module("alloc_table_render")
    row = {"kl": 1.0, "device": "cpu", "commit": "abc", "search": 9.0}
    nats = {"uniform": 3.0, "alpha": 2.5, "auto": 2.2, "evo": 2.0}  # a token, of 7 that are scored
    rows = {
        f"m {name} wanda 0.7 0": row | {"nll": [7 * value, 7 * value + 1.0], "ppl": float(np.exp(value))}
        for name, value in nats.items()
    }
    content = {"models": {"m": {"ppl": 5.0, "windows": 2}}, "rows": rows, "setup": {"context": 8}}
    table = shown.render_auto(content)
    assert table.splitlines()[-1] == "| m | wanda | 0.7 | 20.1 | 7.4 (evo) | 9.0 | 1.221 (1.221 to 1.221) | 9 |"
    del rows["m evo wanda 0.7 0"]
    assert "12.2 (alpha) | 9.0 | 0.741 (0.741 to 0.741)" in shown.render_auto(content)


def test_scatter_of_cells_measured_twice(script: Any) -> None:
    shown = importlib.import_module("alloc_table_render")
    logs = [0.02, -0.02, 0.02, -0.02, 0.3]  # the median takes no notice of the last
    rows = {f"m alpha sparsegpt 0.7 {seed}": {"ppl": [10.0 * np.exp(log), 10.0]} for seed, log in enumerate(logs)}
    last = shown.render_again({"rows": rows}).splitlines()[-1]
    middle, low, high = shown.ratio_interval(np.array(logs))
    assert last == f"| m | 0.7 | 5 | {middle:.3f} ({low:.3f} to {high:.3f}) | 2.1% | 1.35 |"
    assert middle == pytest.approx(np.exp(0.06))


def test_the_picture_is_the_same_from_the_same_numbers(script: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    row = {"ppl": 20.0, "kl": 1.0, "device": "cpu", "commit": "abc"}
    nll = {"uniform": [10.0, 12.0, 14.0], "alpha": [9.0, 12.0, 13.0]}
    rows = {f"m {name} wanda 0.7 0": row | {"nll": values} for name, values in nll.items()}
    content = {"models": {"m": {"ppl": 10.0, "windows": 3}}, "rows": rows, "setup": {"context": 8}}
    (tmp_path / "in.json").write_text(json.dumps(content))
    for name in ("a.svg", "b.svg"):
        script.main(["plot", str(tmp_path / "in.json"), "-o", str(tmp_path / name)])
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "alpha" in (tmp_path / "a.svg").read_text() or (tmp_path / "a.svg").stat().st_size > 5000
