"""What a recipe means to this room: which metrics it needs, and its structured stage."""

from pathlib import Path

from tailcut.compress import searches
from tailcut.compress.allocators import metrics_needed
from tailcut.compress.calibration import Calibration
from tailcut.compress.metrics import need_text
from tailcut.compress.structured_run import Structuring, cut_structured
from tailcut.progress import Reporter
from tailcut.recipe import Recipe


def metrics_of(recipe: Recipe) -> tuple[str, ...]:
    """What the report shows, what the recipe's allocator reads, and what its bits follow."""
    of_bits = () if recipe.bits is None or recipe.metric is None else (recipe.metric.replace("-", "_"),)
    name = recipe.allocator
    needed = searches.load(name).METRICS if recipe.searches else metrics_needed(name, recipe.metric)
    return tuple(dict.fromkeys(("alpha_mid", "alpha_peak", *needed, *of_bits)))


def measured_with(recipe: Recipe) -> tuple[object, ...]:
    """The calibration settings where a metric reads text: elsewhere another text must not measure again."""
    texts = (recipe.calibration, recipe.samples, recipe.seqlen, recipe.seed)
    return texts if need_text(metrics_of(recipe)) else ()


def cut_units(recipe: Recipe, calibration: Calibration, out: Path, report: Reporter) -> None:
    """Whole units go before weights do."""
    asked = Structuring(
        recipe.structured,
        importance=recipe.importance,
        calibration=calibration,
        device=recipe.device,
        forward=recipe.forward,
    )
    cut_structured(Path(recipe.model), out, asked, report=report)
