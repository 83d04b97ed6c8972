"""The error-rate benchmark on small numbers: truths are known, trials are resumed, tables show what happened."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tailcut.bench.turns import Block, Timed
from tailcut.errors import InputError
from tailcut.results import Discarded

Load = Callable[[str], Any]
QUIET = {"level": 0.0, "visit": 0.02, "step": 0.02, "step_memory": 0.0, "spikes": 0.0, "spike": 0.1}


@pytest.fixture(autouse=True)
def _own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILCUT_BENCH_LOCK", str(tmp_path / "bench.lock"))


def test_the_noise_is_read_off_committed_sessions(load_script: Load) -> None:
    noise = load_script("gate_errors_simulate").measured_noise()
    assert 0.005 < noise.level < 0.2
    assert 0.005 < noise.visit < 0.2
    assert 0.01 < noise.step < 0.2
    assert 0 < noise.step_memory < 0.9
    assert 0 < noise.spikes < 0.2


def test_a_made_up_session_has_its_true_speedup(load_script: Load) -> None:
    script = load_script("gate_errors_simulate")
    dense, sparse, kept = script.session(np.random.default_rng(0), script.Noise(**QUIET), script.Bursts(), 1.5, 200)
    assert dense.shape == sparse.shape == (200, 16)
    assert np.median(dense) / np.median(sparse) == pytest.approx(1.5, rel=0.01)  # 2 % over 400 visits: 0.2 %
    assert sum(kept) > 180  # false alarms only: half a percent of the readings


def test_bursts_reach_the_times_and_the_sentinel(load_script: Load) -> None:
    script = load_script("gate_errors_simulate")
    noise, bursts = script.Noise(**QUIET), script.SCENES["bursts that slow the dense side more"]
    dense, sparse, kept = script.session(np.random.default_rng(1), noise, bursts, 1.0, 400)
    logs, good = np.log(np.median(dense, 1) / np.median(sparse, 1)), np.asarray(kept)
    assert 0.05 < 1 - good.mean() < 0.6
    assert logs[~good].mean() > 0.03
    assert abs(logs[good].mean()) < 0.01


def test_verdicts_skip_what_was_discarded_and_count_it(load_script: Load) -> None:
    script = load_script("gate_errors_simulate")
    rng = np.random.default_rng(2)
    sparse = np.exp(rng.normal(0, 0.01, (16, 8)))
    dense = 1.2 * np.exp(rng.normal(0, 0.01, (16, 8)))
    kept = [True] * 16
    dense[1], kept[1] = 9.0, False
    said = script.verdicts(dense, sparse, kept, False, seed=0)
    assert said["adaptive @1.03"][0] == "pass"
    assert said["adaptive @1.03"][4] == 5  # four blocks that count, and the lost one between them
    assert said["fixed @1"][4] == 9
    assert said["fixed, nothing discarded @1"][4] == 8
    assert script.verdicts(dense, sparse, kept, True, seed=0)["adaptive @1.03"][0] == "inconclusive"


def test_a_small_simulation_is_resumed_and_rendered(
    load_script: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, main = load_script("gate_errors_simulate"), load_script("gate_errors")
    monkeypatch.setattr(script, "SCENES", {"no bursts": script.Bursts(), "bursts": script.Bursts(0.2, 0.5, 0.5)})
    monkeypatch.setattr(script, "_TRUTHS", (0.94, 0.9, 1.0, 1.1))
    monkeypatch.setattr(script, "_COUNTS", (4,))
    monkeypatch.setattr(script, "BATCH", 3)
    monkeypatch.setattr(load_script("gate_errors_table"), "BATCH", 3)
    words = ["simulate", "--trials", "6", "-o", str(tmp_path / "out.json")]
    main.main(words)
    first = (tmp_path / "out.json").read_bytes()
    monkeypatch.setattr(script, "tally", None)  # would fail if a cell were measured again
    main.main(words)
    assert (tmp_path / "out.json").read_bytes() == first
    shown = capsys.readouterr().out
    assert "Student's reach on a bootstrap of blocks (in use)" in shown
    assert "Simulated, 6 sessions a row" in shown
    assert "| bursts | 0.9 | adaptive, nothing discarded |" in shown


def test_discarded_blocks_return_to_their_places(load_script: Load) -> None:
    main = load_script("gate_errors")
    blocks = tuple(Block({"dense": (float(n),), "sparse": (1.0,)}, {}, (), "") for n in (0, 2, 4))
    lost = tuple(Discarded(n, "loud", (float(n),), (2.0,)) for n in (1, 3))
    procedure: Any = SimpleNamespace(discarded=lost)
    dense, sparse = main.in_order(Timed(blocks, procedure))
    assert dense == ((0.0,), (1.0,), (2.0,), (3.0,), (4.0,))
    assert sparse == ((1.0,), (2.0,), (1.0,), (2.0,), (1.0,))


def test_a_slowed_decoder_takes_its_share_longer(load_script: Load) -> None:
    worker = load_script("slowed_worker")
    clock = [0.0]

    def tick() -> float:
        clock[0] += 0.001
        return clock[0]

    worker.time = SimpleNamespace(perf_counter=tick)  # a clock that the machine's load does not move

    def step(tokens: Any) -> Any:
        clock[0] += 1.0
        return tokens

    for share in (0.0, 0.05, 0.5):
        decoder = SimpleNamespace(step=step)
        worker.slow(decoder, share)
        began = clock[0]
        assert decoder.step("x") == "x"
        assert clock[0] - began == pytest.approx(1.0 + share, abs=0.006)  # a few ticks of reading the clock


def test_real_trials_in_fresh_processes_and_resumed(load_script: Load, tiny_model: Any, tmp_path: Path) -> None:
    from tailcut.export.run import export

    main, package, out = load_script("gate_errors"), tmp_path / "package", tmp_path / "out.json"
    export(tiny_model("llama"), package, check=False)
    words = [
        "run",
        str(package),
        "--work",
        str(tmp_path / "work"),
        "--label",
        "test",
        "--blocks",
        "4",
        "--new-tokens",
        "4",
    ]
    words += ["--context", "32", "-o", str(out)]
    main.main([*words, "--trials", "1"])
    first = json.loads(out.read_bytes())["sessions"]["test"]["trials"][0]
    main.main([*words, "--trials", "2"])
    session = json.loads(out.read_bytes())["sessions"]["test"]
    assert session["trials"][0] == first
    assert len(session["trials"]) == 2
    assert {trial["speedup"] for trial in session["trials"]} <= {1.0, 1.03, 1.06}
    assert len(first["dense_ms"]) == len(first["kept"]) == len(first["samples_dense_ms"])
    assert set(first["verdicts"]) >= {"adaptive @1", "fixed @1.03", "fixed, nothing discarded @1.03"}
    with pytest.raises(InputError, match="another --label"):
        main.main([*words, "--trials", "3", "--new-tokens", "8"])
    assert "Real runs, test: 2 trials" in main.gate_errors_table.render(main.read(out))
