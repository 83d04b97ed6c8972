"""What a recovery did: its table, and the loss over what was learnt."""

from tailcut.bench.esd import BLUE, GREY, RED
from tailcut.bench.plots import Drawn, address, figure, plain
from tailcut.bench.tables import Table
from tailcut.results import RecoveryResult, RecoveryStage


def recovery_table(result: RecoveryResult) -> Table:
    """A row a method; the note says what was kept and what it was taught from."""
    header = ("method", "unit", "before", "after", "steps", "tokens", "minutes", "ended")
    kl = f"{result.heldout_kl_before:.4f} to {result.heldout_kl_after:.4f} nats a token"
    same = result.mask_sha256_before == result.mask_sha256_after
    kept = "the mask is the same" if same else f"no zero was filled, rounding added {result.new_zeros:,}"
    texts = ", ".join(result.texts)
    note = (
        f"KL to {result.teacher} on held-out text: {kl}. {result.sparsity:.2%} of the blocks' weights are zero; {kept} "
        f"({result.mask_sha256_after[:16]}). Learnt from {texts}: {result.train_tokens:,} tokens."
    )
    return Table("Recovery", header, tuple(_row(stage) for stage in result.stages), note)


def _row(stage: RecoveryStage) -> tuple[str, ...]:
    before, after = _ends(stage)
    counts = f"{stage.steps:,}" if stage.steps else "", f"{stage.tokens:,}", f"{stage.seconds / 60:.1f}"
    return (stage.method, stage.unit, before, after, *counts, stage.ended)


def _ends(stage: RecoveryStage) -> tuple[str, str]:
    """The first and the best look of a training; the mean over blocks of what goes block by block."""
    if not stage.curve:
        return "", ""
    if stage.best_step is not None:
        return f"{stage.curve[0].heldout:.4f}", f"{min(point.heldout for point in stage.curve):.4f}"
    firsts = [point.loss for point in stage.curve if point.loss is not None]
    lasts = [point.heldout for point in stage.curve]
    return (f"{sum(firsts) / len(firsts):.4f}" if firsts else ""), f"{sum(lasts) / len(lasts):.4f}"


def of_recovery(result: RecoveryResult) -> list[Drawn]:
    """One figure a method."""
    return [
        _trained(stage) if stage.best_step is not None else _blocks(stage) for stage in result.stages if stage.curve
    ]


def _trained(stage: RecoveryStage) -> Drawn:
    made, (axis,) = figure()
    millions = [point.tokens / 1e6 for point in stage.curve]
    axis.plot(millions, [point.heldout for point in stage.curve], "o-", color=BLUE, markersize=4, label="held-out text")
    learnt = [(point.tokens / 1e6, point.loss) for point in stage.curve if point.loss is not None]
    axis.plot([x for x, _ in learnt], [y for _, y in learnt], "s--", color=RED, markersize=3, label="training text")
    best = next((point for point in stage.curve if point.step == stage.best_step), stage.curve[-1])
    axis.axvline(best.tokens / 1e6, color=GREY, linewidth=0.8)
    axis.set(xlabel="million tokens learnt from", ylabel=plain(stage.unit), ylim=(0, None))
    axis.legend(frameon=False)
    caption = "Training loss is the mean since the point before; the upright line is where the kept weights are from."
    return Drawn(f"Recovery by {plain(stage.method)}", (address(made),), caption)


def _blocks(stage: RecoveryStage) -> Drawn:
    made, (axis,) = figure()
    places = [point.step for point in stage.curve]
    axis.plot(places, [point.loss for point in stage.curve], "s--", color=RED, markersize=4, label="before")
    axis.plot(places, [point.heldout for point in stage.curve], "o-", color=BLUE, markersize=4, label="after")
    axis.set(xlabel="decoder block", ylabel=plain(stage.unit), ylim=(0, None))
    axis.legend(frameon=False)
    return Drawn(
        f"Recovery by {plain(stage.method)}", (address(made),), "Error of a block's outputs, before and after."
    )
