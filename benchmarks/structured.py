"""Structured pruning of a model: importances, ratios and shapes beside each other, before and after recovery.

    python benchmarks/structured.py run models/smollm2-135m --text wiki.test.raw --calibration c4.jsonl --device cuda \\
        --recover-text c4.jsonl --budget 5m
    python benchmarks/structured.py table benchmarks/results/structured.json

Each row is a model cut by `tailcut structured` and its nats on every window of the text; rows lie in the result file as they
are made, and a run with the same settings goes on after those that are there. Rows with --recover-text also hold the nats after
`tailcut recover`. --rows names some of the rows (`list` shows all). Speeds are measured elsewhere: export two
directories and give them to `tailcut bench`.
"""

import argparse
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from bench_common import add_table, machine_of, perform  # beside this script

from tailcut.allocation import Allocation, Budget
from tailcut.bench.report import markdown_row
from tailcut.checkpoint import Checkpoint
from tailcut.compress.allocators import Settings as Shaping
from tailcut.compress.allocators import allocate
from tailcut.compress.calibration import Calibration
from tailcut.compress.measure import measure
from tailcut.compress.perplexity import directory_nll, tokenise
from tailcut.compress.recover import recover
from tailcut.compress.structured import Settings
from tailcut.compress.structured_run import Structuring, cut_structured
from tailcut.files import write_file
from tailcut.progress import console
from tailcut.recovering import Recovering, parse_effort
from tailcut.windows import perplexity, read_text

OUTPUT: Final = Path("benchmarks/results/structured.json")
RATIOS: Final = (0.2, 0.5)
DENSE: Final = "dense"


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to cut, but for the ratio. `alpha`: blocks lose as AlphaPruning's ratios say."""

    name: str
    importance: str
    blend: float | None = None
    refit: bool = True
    alpha: bool = False
    protect: tuple[int, int] = (0, 0)
    blocks: bool = False


VARIANTS: Final = (
    Variant("LLM-Pruner first order", "taylor"),
    Variant("LLM-Pruner first order, not refitted", "taylor", refit=False),
    Variant("LLM-Pruner first order, first 4 and last 2 blocks kept", "taylor", protect=(4, 2)),
    Variant("LLM-Pruner second order", "taylor-second"),
    Variant("LLM-Pruner mixed", "taylor-mixed"),
    Variant("LLM-Pruner vectorised", "taylor-vector"),
    Variant("HyWIA, attention", "hywia"),
    Variant("HyWIA, attention, not refitted", "hywia", refit=False),
    Variant("HyWIA, coarse", "hywia", blend=0.0),
    Variant("HyWIA, half and half", "hywia", blend=0.5),
    Variant("HyWIA, fine", "hywia", blend=1.0),
    Variant("Wanda summed", "wanda"),
    Variant("Wanda summed, not refitted", "wanda", refit=False),
    Variant("magnitude", "magnitude"),
    Variant("LLM-Pruner first order, alpha ratios", "taylor", alpha=True),
    Variant("HyWIA, attention, alpha ratios", "hywia", alpha=True),
    Variant("whole blocks, first order", "taylor", blocks=True),
)


def key_of(variant: Variant, ratio: float) -> str:
    return f"{variant.name} at {ratio:g}"


def run(options: argparse.Namespace) -> None:
    """Every row that is not there yet."""
    settings = settings_of(options)
    data = started(options, settings)
    windows, _ = tokenise(options.model, read_text(options.text), options.context, options.windows or None)
    wanted = [(variant, ratio) for ratio in options.ratios for variant in VARIANTS]
    named = [(key_of(*pair), pair) for pair in wanted if not options.rows or pair[0].name in options.rows]
    with console() as report:
        if DENSE not in data["rows"]:
            nll = directory_nll(options.model, windows, device=options.device, report=report)
            parameters = Checkpoint(options.model).total_parameters()
            keep(options.output, data, DENSE, {"parameters": parameters, "nll": nll.tolist()})
        for place, (key, pair) in enumerate(named):
            report("rows", place, len(named), key)
            if key not in data["rows"]:
                keep(options.output, data, key, row(options, *pair, windows))
        report("rows", len(named), len(named))


def row(options: argparse.Namespace, variant: Variant, ratio: float, windows: Any) -> dict[str, Any]:  # noqa: ANN401
    """Cut, judged, recovered and judged again; its directories are removed."""
    out: Path = options.work / hashlib.sha256(key_of(variant, ratio).encode()).hexdigest()[:12]
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    manifest = cut_structured(options.model, out, asked(options, variant, ratio))
    seconds = time.perf_counter() - began
    made: dict[str, Any] = asdict(variant) | {
        "ratio": ratio,
        "seconds": seconds,
        "parameters": manifest.total_parameters,
    }
    shown = ("ratio_removed", "kv_heads_kept", "mlp_channels_kept", "removed_blocks", "equal_blocks")
    made |= {name: manifest.details[name] for name in shown if name in manifest.details}
    made["nll"] = directory_nll(out, windows, device=options.device).tolist()
    if options.recover_text:
        better = out.with_name(f"{out.name}-recovered")
        shutil.rmtree(better, ignore_errors=True)
        texts, budget = tuple(map(str, options.recover_text)), parse_effort(options.budget)
        # methods that pair matrices with the teacher's need equal shapes
        recover(out, options.model, better, Recovering(texts, budget, ("distill",), device=options.device))
        made["recovered_nll"] = directory_nll(better, windows, device=options.device).tolist()
        shutil.rmtree(better)
    shutil.rmtree(out)
    return made


def asked(options: argparse.Namespace, variant: Variant, ratio: float) -> Structuring:
    text = Calibration(options.calibration, options.samples, options.seqlen)
    common = Structuring(
        ratio=ratio,
        importance=variant.importance,
        scoring=Settings(blend=variant.blend),
        units=("blocks",) if variant.blocks else ("heads", "mlp"),
        multiple=options.multiple,
        protect_first=variant.protect[0],
        protect_last=variant.protect[1],
        refit=variant.refit,
        calibration=text,
        device=options.device,
        forward=options.forward,
    )
    return replace(common, ratio=None, allocation=alpha(options, ratio)) if variant.alpha else common


def alpha(options: argparse.Namespace, ratio: float) -> Allocation:
    """AlphaPruning's ratios; the spectra are cached by the first call."""
    scores = measure(options.model, metrics=["alpha_peak"], device=options.device).scores
    return allocate("alpha", scores, Budget(ratio), Shaping())


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What rows of one file share."""
    names = ("calibration", "samples", "seqlen", "context", "windows", "multiple", "device", "forward", "budget")
    settings = {name: getattr(options, name) for name in names}
    hashes = {name: read_text(Path(name)).sha256 for name in map(str, [options.text, *options.recover_text])}
    source = {"model": options.model.resolve().name, "model_sha256": Checkpoint(options.model).fingerprint()}
    named = {"text": options.text.name, "text_sha256": hashes[str(options.text)]}
    recovery = {"recover_text_sha256": [hashes[str(text)] for text in options.recover_text]}
    return settings | source | named | recovery | {"calibration": Path(options.calibration).name}


def started(options: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """The result file to go on with, or an empty one; rows of other settings are never mixed with these."""
    output: Path = options.output
    if output.is_file():
        found: dict[str, Any] = json.loads(output.read_bytes())
        if found["settings"] != settings:
            raise SystemExit(f"{output}: holds rows of other settings; give another -o, or remove it")
        return found
    what = "structured pruning: sums of nats of every window of a text, before and after recovery"
    return {"what": what, "machine": machine_of(options), "settings": settings, "rows": {}}


def keep(output: Path, data: dict[str, Any], key: str, made: dict[str, Any]) -> None:
    data["rows"][key] = made
    write_file(output, (json.dumps(data, indent=1) + "\n").encode())


def render(data: dict[str, Any]) -> str:
    """Perplexities and sizes, in the order of the variants."""
    rows = data["rows"]
    head = ["how", "asked", "weights gone", "parameters", "KV heads", "MLP width", "perplexity", "recovered"]
    dense = ["dense", "", "", f"{rows[DENSE]['parameters'] / 1e6:.1f} M", "", "", _ppl(data, rows[DENSE], "nll"), ""]
    lines = [markdown_row(head), "|" + " --- |" * len(head), markdown_row(dense)]
    for row in (rows[key] for ratio in _ratios(rows) for v in VARIANTS if (key := key_of(v, ratio)) in rows):
        shapes = [_span(row.get(name, "")) for name in ("kv_heads_kept", "mlp_channels_kept")]
        sizes = [f"{row['ratio']:.0%}", f"{row['ratio_removed']:.1%}", f"{row['parameters'] / 1e6:.1f} M"]
        found = [_ppl(data, row, name) for name in ("nll", "recovered_nll")]
        lines.append(markdown_row([row["name"], *sizes, *shapes, *found]))
    return "\n".join([*lines, "", _note(data)])


def render_short(data: dict[str, Any]) -> str:
    """For a page with other tables: the default importance, with a title; nothing where it was not measured."""
    rows = data["rows"]
    found = [rows[key] for ratio in _ratios(rows) if (key := key_of(VARIANTS[0], ratio)) in rows]
    if not found:
        return ""
    head = ["weights gone", "parameters", "perplexity", "after recovery"]
    lines = [markdown_row(head), "|" + " --- |" * len(head)]
    for row in (rows[DENSE] | {"ratio_removed": 0.0}, *found):
        told = [_ppl(data, row, name) for name in ("nll", "recovered_nll")]
        lines.append(markdown_row([f"{row['ratio_removed']:.1%}", f"{row['parameters'] / 1e6:.1f} M", *told]))
    title = (
        f"**Whole heads and MLP channels cut** ({data['settings']['model']}, {VARIANTS[0].name}). Other ways: "
        "[docs/structured-pruning.md](docs/structured-pruning.md#measurements)."
    )
    return "\n".join([title, "", *lines])


def _ratios(rows: dict[str, Any]) -> list[float]:
    return sorted({row["ratio"] for row in rows.values() if "ratio" in row})


def _ppl(data: dict[str, Any], row: dict[str, Any], name: str) -> str:
    return f"{perplexity(np.asarray(row[name]), data['settings']['context'] - 1):.2f}" if name in row else ""


def _note(data: dict[str, Any]) -> str:
    settings, machine = data["settings"], data["machine"]
    learnt = any("recovered_nll" in row for row in data["rows"].values())
    recovery = f" Recovered by `distill`, a budget of {settings['budget']} each." if learnt else ""
    return (
        f"{settings['model']}; {len(data['rows'][DENSE]['nll'])} windows of {settings['context']} tokens of "
        f"{settings['text']}. Scored and refitted on {settings['samples']} x {settings['seqlen']} tokens of "
        f"{settings['calibration']}; widths are multiples of {settings['multiple']}.{recovery} "
        f"{machine['accelerator'] or machine['cpu']}, commit {machine['commit']}."
    )


def _span(counts: str | int) -> str:
    """'3,2,2' -> '2 to 3'."""
    numbers = sorted(int(word) for word in str(counts).split(",") if word)
    ends = [str(number) for number in dict.fromkeys((*numbers[:1], *numbers[-1:]))]
    return " to ".join(ends)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    add_table(actions)
    new = actions.add_parser("run", help="cut and judge every row that the result file does not hold")
    new.add_argument("model", type=Path, help="the dense model's directory")
    new.add_argument("--text", type=Path, required=True, help="what perplexity is taken of")
    new.add_argument("--calibration", default="demo", help="what scores and refitting read")
    new.add_argument("--samples", type=int, default=64)
    new.add_argument("--seqlen", type=int, default=512)
    new.add_argument("--context", type=int, default=2048, help="tokens a window of --text")
    new.add_argument("--windows", type=int, default=0, help="windows scored; 0: all")
    new.add_argument("--ratios", type=float, nargs="+", default=list(RATIOS))
    new.add_argument("--rows", nargs="+", default=[], help="names of variants; all when left out")
    new.add_argument("--multiple", type=int, default=64)
    new.add_argument("--recover-text", type=Path, nargs="+", default=[], help="text to recover on; none: not recovered")
    new.add_argument("--budget", default="5m", help="of each recovery")
    new.add_argument("--device", default="cpu", help="cpu or cuda")
    new.add_argument("--forward", default="float32", help="float32 or bfloat16")
    new.add_argument("--commit", help="where there is no history")
    new.add_argument("--work", type=Path, default=Path("structured.work"), help="where cut models lie for a while")
    new.add_argument("-o", "--output", type=Path, default=OUTPUT)
    actions.add_parser("list", help="the names of all variants").add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.action == "list":
        print("\n".join(variant.name for variant in VARIANTS))
        return
    perform(options, run, render)


if __name__ == "__main__":
    main()
