"""`bench-load` on tiny packages: what it measures, what it keeps, what it refuses, and how it goes on."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tailcut import codec
from tailcut.bench import load_sides, load_streams
from tailcut.bench.load_plots import load_svg
from tailcut.bench.load_run import bench_load, partial_path
from tailcut.bench.load_tables import load_notes, load_tables
from tailcut.bench.load_values import LoadPlan, LoadPoint, LoadResult, Visit
from tailcut.errors import InputError
from tailcut.export.run import export

PLAN = LoadPlan(streams=(1, 3), contexts=(40,), prompt_tokens=6, new_tokens=5, blocks=2, steps=4, threads=1)
Tailcut = Callable[..., tuple[int, str, str]]
Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def packages(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A dense package and one with 80 % zeros, both with a fused graph."""
    base = tmp_path_factory.mktemp("load")
    dense = tiny_model("llama", hidden_size=64)
    cut = base / "cut"
    cut.mkdir()
    for path in dense.iterdir():
        (cut / path.name).write_bytes(path.read_bytes())
    tensors = load_file(cut / "model.safetensors")
    for name, array in tensors.items():
        if ".layers." in name and array.ndim == 2:
            tensors[name] = np.where(np.abs(array) < np.quantile(np.abs(array), 0.8), np.float32(0), array)
    save_file(tensors, cut / "model.safetensors", {"format": "pt"})
    export(dense, base / "dense.pkg")
    export(cut, base / "sparse.pkg")
    return base / "dense.pkg", base / "sparse.pkg"


@pytest.fixture(scope="module")
def result(packages: Pair, tmp_path_factory: pytest.TempPathFactory) -> LoadResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TAILCUT_BENCH_LOCK", str(tmp_path_factory.mktemp("lock") / "lock"))
        return bench_load(*packages, engines=["tailcut", "onnxruntime", "deepsparse"], plan=PLAN)


def test_both_sides_do_the_same_work_in_a_closed_loop(result: LoadResult) -> None:
    for engine in result.engines[:2]:
        assert engine.status == "measured", engine.reason
        for point, count in zip(engine.streams, PLAN.streams, strict=True):
            assert point.dense is not None
            assert point.sparse is not None
            for dense, sparse in zip(sum(point.dense.visits, ()), sum(point.sparse.visits, ()), strict=True):
                assert (dense.requests, sparse.requests) == (count, count)
                assert (dense.tokens, len(dense.ttft_ms), len(dense.itl_ms)) == (
                    sparse.tokens,
                    len(sparse.ttft_ms),
                    len(sparse.itl_ms),
                )
                assert dense.tokens == len(dense.ttft_ms) + len(dense.itl_ms)
            assert len(point.dense.visits) == len(point.disturbed)
            assert PLAN.blocks <= len(point.disturbed) <= 2 * PLAN.blocks


def test_percentiles_and_rates_are_those_of_the_samples(result: LoadResult) -> None:
    side = result.engines[0].streams[1].sparse
    assert side is not None
    assert side.itl_ms is not None
    point = result.engines[0].streams[1]
    blocks = zip(side.visits, point.disturbed, strict=True)
    visits: tuple[Visit, ...] = sum((block for block, reason in blocks if point.loud or not reason), ())
    gaps = [gap for visit in visits for gap in visit.itl_ms]
    assert side.itl_ms.samples == len(gaps)
    np.testing.assert_allclose(
        (side.itl_ms.p50, side.itl_ms.p90, side.itl_ms.p95, side.itl_ms.p99),
        np.percentile(gaps, (50, 90, 95, 99)),
        rtol=1e-12,
    )
    assert side.tokens_per_second == pytest.approx(sum(v.tokens for v in visits) / sum(v.seconds for v in visits))


def test_how_streams_share_the_machine_is_said(result: LoadResult) -> None:
    tailcut, plain, absent = result.engines
    assert tailcut.engagement is not None
    assert tailcut.engagement.proven
    assert "continuous batching" in tailcut.streams[1].sharing
    assert "in turn" in plain.streams[1].sharing
    assert absent.status == "not measured"
    assert absent.reason
    assert any("deepsparse: not measured" in note for note in load_notes(result))


def test_the_series_of_contexts(result: LoadResult) -> None:
    (point,) = result.engines[0].contexts
    assert point.speedup is not None
    assert point.byte_ratio is not None
    assert np.shape(point.dense_ms) == np.shape(point.sparse_ms)
    assert np.shape(point.dense_ms)[1] == 2 * PLAN.steps
    assert point.byte_ratio > 1
    assert point.cache_share is not None
    assert 0 < point.cache_share < 1


def test_a_result_survives_its_file_and_is_drawn(result: LoadResult) -> None:
    again = codec.from_json(LoadResult, codec.to_json(result), "result")
    assert again == result
    assert load_svg(again).lstrip().startswith(b"<?xml")
    titles = [table.title for table in load_tables(result)]
    assert sum("streams (" in title for title in titles) == 2
    for table in load_tables(result):
        assert all(len(row) == len(table.header) for row in table.rows)


def test_open_arrivals_that_outrun_the_machine_are_said(packages: Pair) -> None:
    plan = replace(PLAN, streams=(2,), contexts=(), rate=2e3, blocks=1, requests=4)
    result = bench_load(*packages, engines=["tailcut"], plan=plan)
    (engine,) = result.engines
    assert any("more than the dense side serves" in caution for caution in engine.cautions)
    side = engine.streams[0].sparse
    assert side is not None
    assert side.visits[-1][-1].waiting > 0
    assert side.ttft_ms is not None
    assert side.ttft_ms.p50 > 0


def test_a_run_that_was_broken_off_goes_on(packages: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at the second point: the first is not measured again, and nothing but it is believed."""
    partial = partial_path(tmp_path / "load.json")
    plan = replace(PLAN, contexts=())
    asked: list[int] = []

    def broken_off(sides: Any, count: int) -> LoadPoint:
        asked.append(count)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return LoadPoint(count, sharing=f"measured as number {len(asked)}")

    def measured(plan: LoadPlan) -> list[str]:
        result = bench_load(*packages, engines=["onnxruntime"], plan=plan, partial=partial)
        return [point.sharing[-1] for point in result.engines[0].streams]

    monkeypatch.setattr(load_streams, "measure", broken_off)
    with pytest.raises(KeyboardInterrupt):
        measured(plan)
    assert [point.streams for point in codec.load(LoadResult, partial).engines[0].streams] == [1]
    assert measured(plan) == ["1", "3"]
    assert measured(replace(plan, seed=1)) == ["4", "5"]  # another plan: everything anew
    partial.write_text("{")
    assert measured(replace(plan, streams=(1,))) == ["6"]


def test_what_does_not_fit_is_a_reason_not_a_number(packages: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(PLAN, streams=(1,), contexts=(40, 500))
    result = bench_load(*packages, engines=["onnxruntime"], plan=plan)
    assert result.engines[0].contexts[1].reason == "the model was made for 128 positions"
    asked = load_sides.Sides.lacking
    monkeypatch.setattr(load_sides.Sides, "lacking", lambda self, needed, what: asked(self, needed + (1 << 60), what))
    result = bench_load(*packages, engines=["onnxruntime"], plan=plan)
    assert "GB are free" in result.engines[0].streams[0].reason
    assert "GB are free" in result.engines[0].contexts[0].reason
    with pytest.raises(InputError, match="128 positions"):
        bench_load(*packages, engines=["onnxruntime"], plan=replace(PLAN, prompt_tokens=127, new_tokens=2))
    with pytest.raises(InputError, match="no engine was named"):
        bench_load(*packages, engines=[], plan=PLAN)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"streams": (0,)}, "stream counts must be at least 1"),
        ({"streams": (), "contexts": ()}, "nothing to measure"),
        ({"contexts": (8,)}, "context 8 is too short"),
        ({"rate": float("nan")}, "rate must be above 0"),
        ({"rate": 0.0}, "rate must be above 0"),
        ({"rate": 1e6}, "at most 10000"),
        ({"blocks": 0}, "blocks must be at least 1"),
    ],
)
def test_a_plan_that_means_nothing(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        replace(PLAN, **change)


def test_the_command(packages: Pair, tmp_path: Path, tailcut: Tailcut) -> None:
    out, drawn = tmp_path / "load.json", tmp_path / "load.svg"
    small = ["--prompt", 6, "--new-tokens", 4, "--blocks", 1, "--threads", 1, "--streams", "2", "-o", out]
    code, shown, said = tailcut("bench-load", *packages, *small, "--plot", drawn, "--json")
    assert code == 0, said
    assert json.loads(shown) == json.loads(out.read_text())
    assert b"<svg" in drawn.read_bytes()
    assert not partial_path(out).exists()
    code, _, said = tailcut("bench-load", *packages, *small)
    assert code == 2
    assert "already exists" in said
    code, shown, said = tailcut("bench-load", *packages, *small, "--overwrite")
    assert code == 0, said
    assert "continuous batching" in shown
    code, _, said = tailcut("bench-load", *packages, "-o", tmp_path / "x.json", "--streams", "1,two")
    assert code == 2
    assert "whole numbers" in said
    code, shown, _ = tailcut("bench-load", *packages, *small[:-1], tmp_path / "none.json", "--engine", "deepsparse")
    assert code == 4
    assert "deepsparse: not measured" in shown
