"""The report renders from any result, is self-contained, and shows untrusted names as text."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tailcut import cli, codec
from tailcut.allocation import LayerPlan, LayerScore, LayerScores, Unstructured
from tailcut.bench.esd import panel, tail_metric
from tailcut.bench.gate import judge, seeded_result
from tailcut.bench.policy import Policy
from tailcut.bench.report import summary, write_report
from tailcut.bench.spectra import read_spectra
from tailcut.errors import InputError
from tailcut.manifest import Manifest, RealisedLayer
from tailcut.results import BenchResult, EngineResult, Quality, Ratio

EVIL = '<script>alert("x")</script> $\\frac$ | `a` *b*'


@pytest.fixture
def result() -> BenchResult:
    measured = seeded_result(speedup=2.0)
    engine = replace(measured.engines[0], engine=EVIL, version="1", byte_ratio=2.5, licence=EVIL, cautions=(EVIL,))
    quality = Quality(EVIL, "", EVIL, 8, None, 7, 10.0, 12.0, Ratio(1.2, 1.1, 1.3, 0.95), (1.0,), (1.1,), notes=(EVIL,))
    absent = EngineResult("gone", "not measured", EVIL)
    return replace(measured, engines=(engine, absent), quality=(quality,))


@pytest.fixture
def scores() -> LayerScores:
    layers = [
        LayerScore(f"model.layers.{block}.{name}", block, (64, 32), {"alpha_peak": 3.0, "alpha_peak.xmin": 1.0})
        for block in range(2)
        for name in ("self_attn.q_proj", f"mlp.{EVIL}")
    ]
    return LayerScores("fingerprint", tuple(layers), 10_000)


@pytest.fixture
def manifest(scores: LayerScores) -> Manifest:
    layers = {layer.name: RealisedLayer(LayerPlan(Unstructured(0.5)), layer.shape, 1024) for layer in scores.layers}
    return Manifest("model", "test", {"name": EVIL}, layers, 10_000, {}, {"allocator": EVIL}, {"x": EVIL}, (EVIL,))


def spectra(scores: LayerScores) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {layer.name: np.sort(rng.pareto(2.0, 32) + 1) for layer in scores.layers}


def test_everything_untrusted_is_escaped(
    result: BenchResult, scores: LayerScores, manifest: Manifest, tmp_path: Path
) -> None:
    verdict = judge(result, Policy({"min_speedup": 1.5, "max_ppl_ratio": 1.3}))
    markdown, html = write_report(
        tmp_path, result=result, verdict=verdict, scores=scores, spectra=spectra(scores), manifest=manifest
    )
    page, text = html.read_text(), markdown.read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<script" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows
    for line in rows:  # a name with a bar does not add a column
        bars = len(re.findall(r"(?<!\\)\|", line))
        assert bars in (3, 4, 5, 6, 8, 9)


def test_the_page_loads_nothing_from_anywhere(
    result: BenchResult, scores: LayerScores, manifest: Manifest, tmp_path: Path
) -> None:
    _, html = write_report(tmp_path, result=result, scores=scores, spectra=spectra(scores), manifest=manifest)
    page = html.read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert "http" not in re.sub(r"data:[^\"]*", "", page).replace('http-equiv="', "")
    for title in ("Decode latency", "Latency against sparsity", "Quality against speed", "Block 1", "Tail exponent"):
        assert title in page
    assert 'name="viewport"' in page


def test_the_same_input_gives_the_same_bytes(result: BenchResult, scores: LayerScores, tmp_path: Path) -> None:
    pages = []
    for name in ("a", "b"):
        _, html = write_report(tmp_path / name, result=result, scores=scores, spectra=spectra(scores))
        pages.append(html.read_bytes())
    assert pages[0] == pages[1]


def test_a_result_without_any_measurement_still_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = replace(seeded_result(speedup=2.0), engines=(EngineResult("deepsparse", "not measured", "not installed"),))
    markdown, _ = write_report(tmp_path, result=result, verdict=judge(result, Policy({"min_speedup": 1.5})))
    assert "not measured" in markdown.read_text()
    assert "inconclusive" in markdown.read_text()
    summary(result, None)
    assert "not installed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "values", [np.zeros(5), np.ones(5), np.array([]), np.array([np.nan, 1.0]), np.array([1e-300, 1.0])]
)
def test_a_spectrum_without_spread_does_not_break_its_panel(values: np.ndarray) -> None:
    assert panel("model.x", values, None).startswith("<text")


def test_the_metric_with_a_fit_is_drawn() -> None:
    layer = LayerScore("a", 0, (2, 2), {"alpha_mid": 2.0, "alpha_mid.xmin": 1.0, "stable_rank": 3.0})
    assert tail_metric(LayerScores("x", (layer,), 4)) == "alpha_mid"
    assert tail_metric(LayerScores("x", (replace(layer, values={"stable_rank": 3.0}),), 4)) is None
    assert tail_metric(LayerScores("x", (), 4)) is None


def test_spectra_are_read_without_pickles(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", **{"model.a": np.arange(3.0)})
    assert read_spectra(tmp_path / "s.npz")["model.a"].tolist() == [0, 1, 2]
    np.savez(tmp_path / "bad.npz", x=np.array([{}], dtype=object))
    with pytest.raises(InputError):
        read_spectra(tmp_path / "bad.npz")
    (tmp_path / "torn.npz").write_bytes((tmp_path / "s.npz").read_bytes()[:40])
    with pytest.raises(InputError):
        read_spectra(tmp_path / "torn.npz")


def test_the_command_reads_a_run_directory(result: BenchResult, scores: LayerScores, tmp_path: Path) -> None:
    if not cli.app.registered_commands:
        cli._register()
    codec.save(result, tmp_path / "result.json")
    codec.save(scores, tmp_path / "scores.json")
    done = CliRunner().invoke(cli.app, ["report", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "report.html").is_file()
    missing = CliRunner().invoke(cli.app, ["report", str(tmp_path / "none")])
    assert isinstance(missing.exception, InputError)
