"""`tailcut run`: (structured) -> measure -> allocate -> compress -> (recover) -> export -> quality -> bench -> gate -> report, resumable.

The run directory holds one output per stage, each also what the single command of that name would write:

    structured/, where units are cut | scores.json spectra.npz | allocation.json | model/ | recovered/, where text for it is given
    | dense/ package/ (+ -deepsparse) | quality.json | result.json | verdict.json report.md report.html

This module is the order of the stages and what each depends on; what they do is in `pipeline_work` and the rooms.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tailcut import codec, pipeline_work
from tailcut.checkpoint import Checkpoint
from tailcut.files import sha256_file
from tailcut.pipeline_work import Run, policy_of, require_plannable, static_reason, stopping_of
from tailcut.progress import Reporter, silent
from tailcut.recipe import SHAPING, Recipe
from tailcut.stages import Stage, run_stages

if TYPE_CHECKING:
    from tailcut.results import Verdict


def run(recipe: Recipe, out: Path, report: Reporter = silent) -> "Verdict":
    """Do every stage that is not done yet and return the verdict that is in `out`."""
    from tailcut.results import Verdict

    require_plannable(recipe)  # now, not after the measuring
    policy_of(recipe)
    state = Run(recipe, out, report)
    stages = plan(state, Checkpoint(state.model).fingerprint())
    out.mkdir(parents=True, exist_ok=True)
    codec.save(recipe, out / "recipe.json")
    order = [stage.name for stage in stages]

    def tell(name: str, skipped: bool) -> None:
        report("stage", order.index(name) + 1, len(order), f"{name}{' (done before)' if skipped else ''}")

    run_stages(out, stages, tell)
    return codec.load(Verdict, out / "verdict.json")


def plan(state: Run, model_fingerprint: str) -> tuple[Stage, ...]:
    """The stages with what each depends on; a setting appears at the stage whose output it changes."""
    from tailcut.compress.recipes import measured_with, metrics_of

    recipe = state.recipe
    wants_kl = "divergence" in policy_of(recipe).judged
    static = static_reason(recipe) is None  # an engine that is installed later makes its stages run again

    def stage(name: str, after: tuple[str, ...], outputs: tuple[str, ...], work: Callable[[Run], None]) -> Stage:
        fields: dict[str, object] = {field: getattr(recipe, field) for field in _SETTINGS[name]}
        if name == "structured":
            fields["model"] = model_fingerprint
        if name == "measure":
            fields |= {"model": model_fingerprint, "metrics": metrics_of(recipe), "calibration": measured_with(recipe)}
        if name == "allocate" and recipe.searches:
            fields |= {field: getattr(recipe, field) for field in (*_SEARCHING, *_SETTINGS["compress"])}
        if name == "allocate" and recipe.cost is not None:
            fields["cost"] = (sha256_file(Path(recipe.cost)), recipe.weights)
        if name == "export":
            fields["static"] = static
        if name == "bench" and (stopping := stopping_of(recipe)) is not None:
            fields["stopping"] = asdict(stopping)
        if name == "quality" and wants_kl:
            fields["kl"] = True
        if name == "gate" and recipe.policy is not None:
            fields["policy"] = sha256_file(Path(recipe.policy))
        return Stage(name, after, fields, outputs, lambda: work(state), resumes=name in _RESUMING)

    cut = "compress" if recipe.recovering() is None else "recover"
    recovery = (stage("recover", ("compress",), ("recovered",), pipeline_work.do_recover),) if cut == "recover" else ()
    first = (
        () if recipe.structured is None else (stage("structured", (), ("structured",), pipeline_work.do_structured),)
    )
    return (
        *first,
        stage("measure", tuple(one.name for one in first), ("scores.json", "spectra.npz"), pipeline_work.do_measure),
        stage("allocate", ("measure",), ("allocation.json",), pipeline_work.do_allocate),
        stage("compress", ("allocate",), ("model",), pipeline_work.do_compress),
        *recovery,
        stage("export", (cut,), ("dense", "package"), pipeline_work.do_export),
        stage("quality", ("export" if recipe.rounds else cut,), ("quality.json",), pipeline_work.do_quality),
        stage("bench", ("export", "quality"), ("result.json",), pipeline_work.do_bench),
        stage("gate", ("bench",), ("verdict.json",), pipeline_work.do_gate),
        stage("report", ("gate",), ("report.md", "report.html"), pipeline_work.do_report),
    )


_SEARCHING = ("minutes", "evaluations")  # a search prunes, too: what decides the cutting decides its plan
_RESUMING = ("structured", "compress", "recover")
_SETTINGS: dict[str, tuple[str, ...]] = {
    "structured": ("structured", "importance", "calibration", "samples", "seqlen", "seed", "device", "forward"),
    "measure": ("device",),  # and the metrics, and with some of them the calibration text
    "allocate": ("sparsity", "pattern", "allocator", "cap", "bits", "bit_choices", "speedup", *SHAPING),
    "compress": ("pruner", "quantiser", "calibration", "samples", "seqlen", "seed", "device", "forward"),
    "recover": ("recover", "recover_hashes", "recover_budget", "seed", "device"),
    "export": ("engines", "context", "prompt_tokens", "weights", "head", "activation_bits", "kv_cache"),
    "quality": ("text", "text_context", "windows", "device"),
    "bench": ("engines", "threads", "prompt_tokens", "context", "new_tokens", "blocks", "seed"),
    "gate": ("min_speedup", "max_ppl_ratio"),
    "report": (),
}
