"""The HTML page: what stands first, what a reader without colour, light or width sees, and that it is inert."""

import base64
import importlib
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tailcut.allocation import LayerPlan, LayerScore, LayerScores, Unstructured
from tailcut.bench.esd import block_panels
from tailcut.bench.gate import seeded_result
from tailcut.bench.load_values import LoadResult
from tailcut.bench.page import html_page
from tailcut.bench.plan_plots import of_plan
from tailcut.bench.plots import ENGINE_MARKS, of_latency
from tailcut.manifest import Manifest, RealisedLayer
from tailcut.results import (
    BenchResult,
    Check,
    Discarded,
    EngineResult,
    Outcome,
    Procedure,
    Quality,
    Ratio,
    Sentinel,
    Verdict,
)

TEMPLATE = Path(__file__).resolve().parents[2] / "bench" / "templates" / "report.html.j2"
EVIL = '"><img src=x onerror=alert(1)><script>alert(2)</script>{{ 7 * 7 }}\x1b[31m'
LONG = "a" * 300


def verdict(outcome: Outcome, text: str = "why") -> Verdict:
    return Verdict(outcome, "seeded", (Check(text, outcome, 1.5, 1.1, 1.0, 1.2, text, text),), text)


def result_with(text: str, speedup: float = 2.0) -> BenchResult:
    """A seeded result in which every free text is `text`, with a block discarded and quality measured."""
    made = seeded_result(speedup=speedup)
    sentinel = Sentinel(1.0, 1.0, (1.0,), (1.0,), ((1.0,),), ((1.0,),))
    gone = Discarded(0, text, (1.0,), (1.0,))
    procedure = Procedure("decode", (0,), 2, 2, 9, (gone,), False, text, 12.0, 0.99, sentinel)
    engine = replace(made.engines[0], version=text, byte_ratio=2.5, cautions=(text,), procedures=(procedure,))
    quality = Quality(
        text, "", "", 8, None, 7, 10.0, 12.0, Ratio(1.2, 1.1, 1.3, 0.95), (1.0,), (1.1,), "onnxruntime", (0.05, 0.07)
    )
    return replace(made, engines=(engine, EngineResult(text, "not measured", text)), quality=(quality,))


def manifest_of(text: str) -> Manifest:
    layers = {
        f"model.layers.{block}.{kind}": RealisedLayer(LayerPlan(Unstructured(0.5), bits), (8, 4), 16)
        for block in range(2)
        for kind, bits in (("mlp.up_proj", 4), (f"mlp.{text}", None))
    }
    return Manifest("model", "test", {"name": text}, layers, 100, {}, {text: text}, {"x": text}, (text,))


def scores_of(text: str) -> LayerScores:
    values = {"alpha_peak": 3.0, "alpha_peak.xmin": 1.0}
    layers = [LayerScore(f"model.layers.{block}.mlp.{text}", block, (64, 32), values) for block in range(3)]
    return LayerScores("fingerprint", tuple(layers), 10_000)


def load_with(text: str) -> LoadResult:
    made: LoadResult = importlib.import_module("tailcut.bench.checks._seeded_load").seeded_load(speedup=2.0)
    engine = replace(made.engines[0], licence=text, cautions=(text,))
    return replace(made, engines=(engine, replace(engine, engine="gone", streams=(), contexts=(), reason=text)))


def page_of(text: str, outcome: Outcome = "fail") -> str:
    scores = scores_of(text)
    spectra = {layer.name: np.sort(np.random.default_rng(0).pareto(2.0, 32) + 1) for layer in scores.layers}
    return html_page(
        result_with(text),
        verdict(outcome, text),
        scores=scores,
        spectra=spectra,
        manifest=manifest_of(text),
        load=load_with(text),
    )


def test_no_text_becomes_markup_or_a_template() -> None:
    page = page_of(EVIL)
    tags = set(re.findall(r"<\s*([a-z0-9]+)", page.lower()))
    assert not tags & {"script", "iframe", "object", "link", "form", "base"}
    assert not re.search(r"<[^>]*\son\w+=", page)
    assert "&lt;script&gt;" in page
    assert "49" not in re.sub(r"data:[^\"]*", "", page)
    assert "\x1b" not in page
    sources = re.findall(r"<img[^>]*\ssrc=\"([^\"]*)\"", page)
    assert len(sources) > 5
    assert page.count("<img") == len(sources)
    for source in sources:
        kind, data = source.split(",", 1)
        assert kind == "data:image/svg+xml;base64"
        svg = base64.b64decode(data, validate=True).decode()
        assert "<script" not in svg
        assert all(target.startswith(("#", "data:image/png;base64,")) for target in re.findall(r'href="([^"]*)', svg))


@pytest.mark.parametrize("outcome", ["pass", "fail", "inconclusive"])
def test_the_verdict_comes_first_in_words_and_with_a_shape_of_its_own(outcome: Outcome) -> None:
    page = page_of("fine", outcome)
    body = page.split("<body>", 1)[1]
    order = [body.index(word) for word in (f"<strong>{outcome}", "decode speed", "Checks", "Decode latency", "Machine")]
    assert order == sorted(order)
    marks = {"pass": "✓", "fail": "✗", "inconclusive": "?"}
    assert body.count(f'aria-hidden="true">{marks[outcome]}<') == 2  # the verdict's and the check's
    assert f"{outcome}</title>" in page


def test_what_was_discarded_and_why_the_session_ended_is_shown() -> None:
    page = page_of("nothing-else-moved")
    assert "How it was measured" in page
    assert "2 visits, then 2 steps" in page
    assert "0.0600 nats" in page


def test_a_page_without_any_measurement_verdict_or_plan_still_stands() -> None:
    bare = replace(seeded_result(speedup=2.0), engines=(EngineResult("gone", "not measured", "absent"),))
    page = html_page(bare)
    assert "not judged" in page
    assert "absent" in page
    assert "<img" not in page


def contrast(first: str, second: str) -> float:
    """WCAG 2.1's contrast ratio of two colours."""

    def light(colour: str) -> float:
        full = colour.lstrip("#")
        full = "".join(c * 2 for c in full) if len(full) == 3 else full
        parts = [int(full[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    brighter, darker = sorted((light(first), light(second)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("place", [0, 1], ids=["light", "dark"])
def test_every_text_colour_is_readable_by_day_and_by_night(place: int) -> None:
    palettes = [
        dict(re.findall(r"--([a-z]+): (#[0-9a-f]+)", block))
        for block in re.findall(r":root \{(.*?)\}", TEMPLATE.read_text(), re.DOTALL)
    ]
    assert len(palettes) == 2
    colours = palettes[place]
    for name in ("text", "dim", "pass", "fail", "inconclusive", "none"):
        for ground in ("page", "soft"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)  # WCAG's AA for text


def test_engines_and_sides_differ_by_shape_and_not_by_colour_alone() -> None:
    colours, marks = zip(*ENGINE_MARKS, strict=True)
    assert len(set(colours)) == len(set(marks)) == len(ENGINE_MARKS)


def test_one_stall_does_not_hide_a_distribution_and_is_mentioned() -> None:
    made = seeded_result(speedup=2.0)
    dense = made.engines[0].dense
    assert dense is not None
    stalled = replace(dense, decode_ms=((*dense.decode_ms[0][:-1], 60_000.0), *dense.decode_ms[1:]))
    drawn = of_latency(replace(made, engines=(replace(made.engines[0], dense=stalled),)))
    assert "1 of 512 steps were slower than the right edge" in drawn[0].caption
    assert "slower than" not in of_latency(made)[0].caption or "0 of" not in of_latency(made)[0].caption


def test_a_plan_is_a_map_and_hostile_names_do_not_make_it_huge() -> None:
    layers = {
        f"model.layers.{block}.{kind}": RealisedLayer(LayerPlan(Unstructured(0.5)), (8, 4), 16)
        for block in (0, 1, 99999999999)
        for kind in (f"k{number}" for number in range(40))
    }
    plain = manifest_of("x")
    assert [one.title for one in of_plan(plain)] == ["Sparsity of every matrix", "Bits of every matrix"]
    (drawn,) = of_plan(replace(plain, layers=layers))
    assert len(drawn.images[0]) < 200_000
    assert of_plan(replace(plain, layers={"lm_head": next(iter(plain.layers.values()))})) == []


def test_a_block_has_one_panel_for_each_matrix_with_a_spectrum() -> None:
    scores = scores_of("up_proj")
    spectra = {layer.name: np.arange(1.0, 9.0) for layer in scores.layers[:2]}
    assert [(block, len(panels)) for block, panels in block_panels(scores, spectra)] == [(0, 1), (1, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_needs_no_sideways_scrolling(width: int, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here to lay the page out")
    # a window has a least width, a frame has not; the page itself forbids scripts, so that its line has to go
    tell = "<script>parent.postMessage(document.documentElement.scrollWidth, '*')</script></body>"
    page = re.sub(r"<meta http-equiv[^>]*>", "", page_of(LONG)).replace("</body>", tell)
    (tmp_path / "page.html").write_text(page)
    listen = "<script>onmessage = said => { document.title = said.data + ' wide' }</script>"
    (tmp_path / "frame.html").write_text(f'{listen}<iframe src="page.html" width="{width}" height="900"></iframe>')
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path}/browser"]
    command = [browser, *flags, "--virtual-time-budget=5000", "--dump-dom", f"file://{tmp_path}/frame.html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r"<title>(\d+) wide</title>", done.stdout)
    assert found, done.stderr[-500:]
    assert int(found[1]) <= width
