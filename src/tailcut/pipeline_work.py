"""What the stages of `tailcut run` do: each reads and writes files of the run directory, through the rooms, which are imported
when it runs. Their order and what they depend on is in `pipeline`.
"""

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tailcut import codec
from tailcut.allocation import Allocation, LayerScores
from tailcut.cost import CostTable
from tailcut.errors import InputError
from tailcut.manifest import try_manifest
from tailcut.progress import Reporter, silent
from tailcut.recipe import SHAPING, Recipe
from tailcut.texts import demo_heldout

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from tailcut.bench.policy import Policy
    from tailcut.compress.allocators import Settings
    from tailcut.compress.calibration import Calibration
    from tailcut.results import Quality, Stopping, Workload
    from tailcut.windows import Tokens

STATIC_ENGINE = "deepsparse"  # the engine that needs the static-shape variant of a package


@dataclass(frozen=True, slots=True)
class Run:
    """A recipe, the directory it writes, and whom to tell."""

    recipe: Recipe
    out: Path
    report: Reporter = silent

    @property
    def model(self) -> Path:
        return Path(self.recipe.model)

    @property
    def base(self) -> Path:
        return self.model if self.recipe.structured is None else self.out / "structured"  # what is measured and cut

    @property
    def made(self) -> Path:
        return self.out / ("model" if self.recipe.recovering() is None else "recovered")  # what is exported and judged

    @property
    def text(self) -> Path:
        return demo_heldout() if self.recipe.text == "demo" else Path(self.recipe.text)


def require_plannable(recipe: Recipe) -> None:
    """InputError for a setting that the recipe's allocator or search would ignore."""
    from tailcut.compress.allocators import require_read
    from tailcut.compress.searches import require_searchable

    require = require_searchable if recipe.searches else require_read
    require(recipe.allocator, recipe.budget(), _shaping(recipe))


def calibration_of(recipe: Recipe) -> "Calibration":
    """What runs through the model."""
    from tailcut.compress.calibration import Calibration

    return Calibration(recipe.calibration, recipe.samples, recipe.seqlen, recipe.seed)


def do_structured(state: Run) -> None:
    from tailcut.compress.recipes import cut_units

    cut_units(state.recipe, calibration_of(state.recipe), state.base, state.report)


def do_measure(state: Run) -> None:
    from tailcut.compress.measure import measure, save_spectra
    from tailcut.compress.recipes import metrics_of

    recipe = state.recipe
    measured = measure(
        state.base,
        metrics=metrics_of(recipe),
        device=recipe.device,
        calibration=calibration_of(recipe),
        report=state.report,
    )
    save_spectra(measured.spectra, state.out / "spectra.npz")
    codec.save(measured.scores, state.out / "scores.json")


def do_allocate(state: Run) -> None:
    from tailcut.compress.allocators import allocate

    recipe = state.recipe
    scores = codec.load(LayerScores, state.out / "scores.json")
    if recipe.searches:
        allocation = _search(state, scores)
    else:
        allocation = allocate(recipe.allocator, scores, recipe.budget(), _shaping(recipe))
    codec.save(allocation, state.out / "allocation.json")


def _search(state: Run, scores: LayerScores) -> Allocation:
    """Goes on where it was: its measurements so far are in allocation.search.jsonl."""
    from tailcut.compress.searches import Effort, Task, search

    recipe = state.recipe
    task = Task(
        state.base,
        scores,
        recipe.budget(),
        recipe.pruner,
        calibration_of(recipe),
        Effort.asked(recipe.minutes, recipe.evaluations),
        recipe.device,
        state.out / "allocation.search.jsonl",
        recipe.quantiser,
        _shaping(recipe),
    )
    return search(recipe.allocator, task, state.report)


def _shaping(recipe: Recipe) -> "Settings":
    from tailcut.compress.allocators import Settings

    settings = Settings(**{name: getattr(recipe, name) for name in SHAPING})
    if recipe.cost is not None:
        settings = replace(settings, cost=codec.load(CostTable, Path(recipe.cost)), precision=recipe.weights)
    return settings


def do_compress(state: Run) -> None:
    from tailcut.compress.run import compress

    recipe = state.recipe
    allocation = codec.load(Allocation, state.out / "allocation.json")
    compress(
        state.base,
        allocation,
        state.out / "model",
        pruner=recipe.pruner,
        quantiser=recipe.quantiser,
        calibration=calibration_of(recipe),
        device=recipe.device,
        forward=recipe.forward,
        report=state.report,
    )


def do_recover(state: Run) -> None:
    from tailcut.compress.recover import recover

    if (settings := state.recipe.recovering()) is not None:
        recover(state.out / "model", state.model, state.made, settings, report=state.report)


def do_export(state: Run) -> None:
    from tailcut.export.run import export

    for source, name in ((state.model, "dense"), (state.made, "package")):
        recipe = state.recipe  # dense too: like is compared with like
        export(
            source,
            state.out / name,
            weights=recipe.weights,
            head=recipe.head,
            activation_bits=recipe.activation_bits,
            kv_cache=recipe.kv_cache,
            overwrite=True,
            report=state.report,
        )
        if static_reason(state.recipe) is None:
            export_static(state, source, state.out / f"{name}-{STATIC_ENGINE}")


def export_static(state: Run, source: Path, out: Path) -> None:
    """A model that the engine cannot take is not an error of the run: the bench will say "not measured"."""
    from tailcut.export.static import export_deepsparse

    recipe = state.recipe
    try:
        export_deepsparse(
            source, out, context=recipe.context, prompt=recipe.prompt_tokens, overwrite=True, report=state.report
        )
    except InputError as error:
        shutil.rmtree(out, ignore_errors=True)  # one of an earlier recipe would be another model
        state.report("export", 1, 1, f"no {STATIC_ENGINE} variant: {error}")


def do_quality(state: Run) -> None:
    codec.save(_measure_quality(state), state.out / "quality.json")


def _measure_quality(state: Run) -> "Quality":
    from tailcut.bench.quality import compare, package_nll
    from tailcut.compress.perplexity import directory_nll, tokenise
    from tailcut.windows import read_text

    recipe = state.recipe
    text = read_text(state.text)
    windows, bos = tokenise(state.model, text, recipe.text_context, recipe.windows)
    dense = directory_nll(state.model, windows, device=recipe.device, report=state.report)
    if recipe.rounds:  # what is deployed is judged: the package, by its own session
        sparse = package_nll(state.out / "package", windows, workload_of(recipe), state.report)
    else:
        sparse = directory_nll(state.made, windows, device=recipe.device, report=state.report)
    manifest = try_manifest(state.model)
    kl_nats = _kl(state, windows) if "divergence" in policy_of(recipe).judged else None
    return compare(
        dense,
        sparse,
        text=text,
        context=recipe.text_context,
        bos=bos,
        notes=manifest.notes if manifest else (),
        measured_with="torch (dense), onnxruntime (sparse)" if recipe.rounds else "torch",
        kl_nats=kl_nats,
    )


def _kl(state: Run, windows: "Tokens") -> "npt.NDArray[np.float64]":
    """KL of each window between the directories, or between the packages where they are what is judged."""
    from tailcut.bench.quality import package_kl
    from tailcut.compress.divergence import directory_kl

    recipe, out = state.recipe, state.out
    if recipe.rounds:
        return package_kl(out / "dense", out / "package", windows, workload_of(recipe), state.report)
    return directory_kl(state.made, state.model, windows, device=recipe.device, report=state.report)


def workload_of(recipe: Recipe) -> "Workload":
    """What every engine is asked to do."""
    from tailcut.results import Workload

    return Workload(
        batch=1,
        prompt_tokens=recipe.prompt_tokens,
        new_tokens=recipe.new_tokens,
        context=recipe.context,
        threads=recipe.threads or len(os.sched_getaffinity(0)),
        blocks=recipe.blocks,
        seed=recipe.seed,
    )


def stopping_of(recipe: Recipe) -> "Stopping | None":
    """When the bench ends; the gate's limit on the speedup is what it settles unless the recipe says otherwise."""
    return recipe.stopping(policy_of(recipe).min_speedup(recipe.engines[0]))


def do_bench(state: Run) -> None:
    from tailcut.bench.run import bench
    from tailcut.results import Quality

    recipe, out = state.recipe, state.out
    workload = replace(workload_of(recipe), stopping=stopping_of(recipe))
    result = bench(out / "dense", out / "package", engines=recipe.engines, workload=workload, report=state.report)
    quality = codec.load(Quality, out / "quality.json")
    codec.save(replace(result, quality=(quality,)), out / "result.json")


def do_gate(state: Run) -> None:
    from tailcut.bench.checks import Subject
    from tailcut.bench.gate import judge
    from tailcut.results import BenchResult

    out = state.out
    subject = Subject(codec.load(BenchResult, out / "result.json"), sparse=out / "package", dense=out / "dense")
    codec.save(judge(subject, policy_of(state.recipe)), out / "verdict.json")


def policy_of(recipe: Recipe) -> "Policy":
    from tailcut.bench.policy import recipe_policy

    return recipe_policy(recipe)


def do_report(state: Run) -> None:
    from tailcut.bench.report import write_report
    from tailcut.compress.measure import load_spectra
    from tailcut.manifest import read_manifest
    from tailcut.recovering import try_recovery
    from tailcut.results import BenchResult, Verdict

    out = state.out
    write_report(
        out,
        result=codec.load(BenchResult, out / "result.json"),
        verdict=codec.load(Verdict, out / "verdict.json"),
        scores=codec.load(LayerScores, out / "scores.json"),
        spectra=load_spectra(out / "spectra.npz"),
        manifest=read_manifest(state.made),
        recovery=try_recovery(state.made),
    )


def static_reason(recipe: Recipe) -> str | None:
    """Why no static variants are exported; None if they are."""
    from tailcut.bench import engines

    if STATIC_ENGINE not in recipe.engines:
        return f"{STATIC_ENGINE} is not among the engines"
    return engines.load(STATIC_ENGINE).available()
