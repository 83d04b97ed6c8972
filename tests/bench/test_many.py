"""Many engines in one session: turns, reasons, resting workers, and what stays in the result."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailcut import codec
from tailcut.bench import many
from tailcut.bench.many import Plan, Row, Session, measure
from tailcut.errors import InputError
from tailcut.manifest import Manifest, write_manifest
from tailcut.results import Workload

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")
WORK = Workload(prompt_tokens=8, new_tokens=4, context=32, threads=1)
PLAN = Plan(WORK, "decode", rounds=3, steps=4)
MakePackage = Callable[..., Path]


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, fake: Any) -> dict[str, Any]:
    found = {
        "onnxruntime": fake(),
        "fast": fake({"s50": {"ms": 5.0, "zeros": 400_000}}),
        "slow": fake({"s50": {"ms": 20.0}}),
    }
    monkeypatch.setattr(many.engines, "load", found.__getitem__)
    monkeypatch.setattr(many, "Stream", lambda threads: type("Quiet", (), {"gb_per_s": lambda self: 20.0})())
    return found


@pytest.fixture
def package(make_package: MakePackage) -> Path:
    return make_package("s50", 0.5)


def rows(package: Path, *names: str) -> list[Row]:
    return [Row(name, package, "float32") for name in names]


def test_every_row_has_a_sample_a_round_and_proof(fakes: dict[str, Any], package: Path) -> None:
    session = measure("s50", rows(package, "fast", "slow"), PLAN)
    fast, slow = session.rows
    assert [len(block) for block in fast.ms] == [4, 4, 4]
    assert np.median(fast.ms) == pytest.approx(5, rel=0.1)  # the fake's noise is 2 % a sample
    assert np.median(slow.ms) == pytest.approx(20, rel=0.1)
    assert (fast.sparse_kernel, slow.sparse_kernel) == (True, False)
    assert session.stream_gb_per_s == (20.0, 20.0, 20.0)
    assert fast.peak_rss_bytes > 1_000_000
    assert fast.facts is not None
    assert fast.facts.sparsity == pytest.approx(0.5)
    assert fast.logits_gap == 0.0
    assert codec.from_json(Session, codec.to_json(session), "session") == session


def test_a_prefill_session_takes_one_sample_a_round(fakes: dict[str, Any], package: Path) -> None:
    session = measure("s50", rows(package, "fast"), replace(PLAN, phase="prefill", steps=1))
    assert [len(block) for block in session.rows[0].ms] == [1, 1, 1]


def test_rows_that_cannot_run_stay_with_their_reason(fakes: dict[str, Any], fake: Any, package: Path) -> None:
    fakes |= {
        "absent": fake(reason="its environment is not installed"),
        "dying": fake({"s50": {"die": "open"}}),
        "wrong": fake({"s50": {"offset": 0.5}}),
        "blind": fake({"s50": {"nan": True}}),
    }
    session = measure("s50", rows(package, "absent", "dying", "wrong", "blind", "fast"), PLAN)
    reasons = [row.reason for row in session.rows]
    assert "not installed" in reasons[0]
    assert "Assertion" in reasons[1]
    assert "something else than the model" in reasons[2]
    assert "no usable decode times" in reasons[3]
    assert [bool(row.ms) for row in session.rows] == [False] * 4 + [True]


def test_a_row_that_dies_between_rounds_does_not_end_the_session(
    fakes: dict[str, Any], package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = many.Seat.visit

    def visit(seat: many.Seat) -> None:
        if seat.row.engine == "slow" and len(seat.samples) == 1 and seat.worker is not None:
            os.kill(seat.worker.pid, 9)
        plain(seat)

    monkeypatch.setattr(many.Seat, "visit", visit)
    session = measure("s50", rows(package, "fast", "slow"), PLAN)
    assert len(session.rows[0].ms) == 3
    assert session.rows[1].ms == ()
    assert "SIGKILL" in session.rows[1].reason


def test_workers_that_wait_are_stopped(fakes: dict[str, Any], package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    plain = many.Seat._ask

    def ask(seat: many.Seat) -> tuple[float, ...]:
        others = [other for other in alive if other is not seat and other.worker is not None]
        time.sleep(0.02)  # a stop takes a moment to show
        seen.extend(state(other.worker.pid) for other in others if other.worker)
        return plain(seat)

    alive: list[many.Seat] = []
    opened = many.Seat.__init__

    def init(seat: many.Seat, *arguments: Any) -> None:
        opened(seat, *arguments)
        alive.append(seat)

    monkeypatch.setattr(many.Seat, "__init__", init)
    monkeypatch.setattr(many.Seat, "_ask", ask)
    measure("s50", rows(package, "fast", "slow"), PLAN)
    assert set(seen) == {"T"}
    assert len(seen) == 1 + 2 * 3


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_a_session_without_rows_is_an_error() -> None:
    with pytest.raises(InputError, match="no rows"):
        measure("s50", [], PLAN)


def test_a_head_in_fewer_bits_sets_the_limit(tmp_path: Path) -> None:
    row = many.Row("tailcut", tmp_path, "float32")
    assert many.limit_of(row) == many.LIMITS["float32"]  # without a manifest
    manifest = Manifest("package", "test", {"name": "x"}, {}, 1000, {}, details={"head_precision": "int8"})
    write_manifest(manifest, tmp_path)
    assert many.limit_of(row) == many.LIMITS["int8"]
    assert many.limit_of(many.Row("tailcut", tmp_path, "int4")) == many.LIMITS["int4"]
