"""The tables of `gate_errors.json`: what `gate_errors.py table` prints and docs/experiments.md shows."""

from typing import Any

import numpy as np
from gate_errors_simulate import BATCH, OUTCOMES  # beside this script

from tailcut.bench.report import markdown_row


def render(found: dict[str, Any]) -> str:
    """The simulation, then each session of real runs."""
    simulated = found["simulation"]
    parts = [_coverage(simulated), _rates(simulated)] if simulated.get("rates") else []
    parts += [_session(label, session) for label, session in found["sessions"].items() if session["trials"]]
    return "\n\n".join(parts) or "No results are committed yet."


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join([markdown_row(head), "|" + " --- |" * len(head), *(markdown_row(row) for row in rows)])


def _coverage(data: dict[str, Any]) -> str:
    cells = data["coverage"]
    rows = [
        [name, *(_covered(cell["sums"][name], BATCH * cell["batches"]) for cell in cells.values())]
        for name in next(iter(cells.values()))["sums"]
    ]
    noise = data["noise"]
    text = (
        f"Simulated, {_sessions(cells)} sessions a cell, no disturbances: how often an interval that states "
        f"{data['protocols']['confidence']:.0%} holds the true speedup, and in brackets its half-width. Noise as "
        f"measured here: {noise['level']:.1%} that both sides share, {noise['visit']:.1%} a visit's own (heavy tails), "
        f"{noise['step']:.1%} a step, {noise['spikes']:.1%} of the steps spikes of {noise['spike']:.0%}."
    )
    return f"{text}\n\n{_table(['interval', *(f'{count} blocks' for count in cells)], rows)}"


def _covered(sums: list[float], trials: int) -> str:
    return f"{sums[0] / trials:.1%} (±{sums[1] / trials:.1%})"


def _sessions(cells: dict[str, Any]) -> int:
    return BATCH * min(cell["batches"] for cell in cells.values())


def _rates(data: dict[str, Any]) -> str:
    protocols, cells, rows = data["protocols"], data["rates"], []
    for key, cell in cells.items():
        scene, truth = key.split(" @")
        trials = BATCH * cell["batches"]
        for name, sums in cell["sums"].items():
            said = dict(zip(OUTCOMES, (count / trials for count in sums), strict=False))
            rows.append([scene, truth, name, *_shares(said, float(truth)), f"{sums[3] / trials:.1f}"])
    text = (
        f"Simulated, {_sessions(cells)} sessions a row: verdicts at a true speedup of so many times the limit. Fixed: "
        f"{protocols['fixed']} blocks. Adaptive: after {protocols['least']} to {protocols['most']} blocks, as soon as the "
        "interval is clear of the limit. At the limit itself pass and fail are both wrong, by design at most 2.5 % each. "
        "Blocks: measured on average, the discarded ones too."
    )
    return f"{text}\n\n{_table(['disturbances', 'truth / limit', 'protocol', 'wrong', 'right', 'undecided', 'blocks'], rows)}"


def _shares(said: dict[str, float], truth: float) -> list[str]:
    """wrong, right, undecided; below the limit a pass is wrong, above it a fail, at it both."""
    passed, failed, open_ = (said[kind] for kind in ("pass", "fail", "inconclusive"))
    if truth == 1:
        return [f"{passed:.1%} pass, {failed:.1%} fail", "", f"{open_:.1%}"]
    wrong, right = (passed, failed) if truth < 1 else (failed, passed)
    return [f"{wrong:.1%} {'pass' if truth < 1 else 'fail'}", f"{right:.1%}", f"{open_:.1%}"]


def _session(label: str, session: dict[str, Any]) -> str:
    trials, work, machine = session["trials"], session["workload"], session["machine"]
    cases = sorted({(trial["speedup"], name) for trial in trials for name in trial["verdicts"]}, key=_order)
    rows = [_row([trial for trial in trials if trial["speedup"] == truth], truth, name) for truth, name in cases]
    blocks = sum(len(trial["kept"]) for trial in trials)
    lost = sum(trial["kept"].count(False) for trial in trials)
    text = (
        f"Real runs, {label}: {len(trials)} trials of the package {session['package']['name']} against itself, "
        f"{work['threads']} threads, {work['new_tokens']} steps a block and side, fresh processes for each; {lost} of {blocks} "
        f"blocks discarded, {sum(trial['loud'] for trial in trials)} trials too loud to judge. {machine['cpu']}, "
        f"{machine['cores']} cores, commit {machine['commit']}. Seconds: until the verdict, from the first block on."
    )
    head = [
        "true speedup",
        "limit",
        "protocol",
        "wrong",
        "right",
        "undecided",
        "interval holds the truth",
        "blocks",
        "s",
    ]
    return f"{text}\n\n{_table([*head, 'trials'], rows)}"


def _order(case: tuple[float, str]) -> tuple[float, str, float]:
    truth, name = case
    protocol, limit = name.split(" @")
    return float(limit), protocol, truth


def _row(trials: list[dict[str, Any]], truth: float, name: str) -> list[str]:
    protocol, limit = name.split(" @")
    said = [trial["verdicts"][name] for trial in trials]
    share = {kind: float(np.mean([item[0] == kind for item in said])) for kind in ("pass", "fail", "inconclusive")}
    seconds = [trial["seconds"] / len(trial["kept"]) * item[4] for trial, item in zip(trials, said, strict=True)]
    holds = np.mean([item[2] <= truth <= item[3] for item in said])
    measured = float(np.mean([item[4] for item in said]))
    shown = _shares(share, truth / float(limit))
    return [
        f"{truth:g}",
        limit,
        protocol,
        *shown,
        f"{holds:.0%}",
        f"{measured:.1f}",
        f"{np.mean(seconds):.1f}",
        str(len(said)),
    ]
