"""Our metrics, allocators and pruners beside the public implementations, on one model and the same activations.

    python benchmarks/oracles.py run MODEL --checkouts DIR -o benchmarks/results/alloc_oracles.json
    python benchmarks/oracles.py table benchmarks/results/alloc_oracles.json

DIR holds checkouts, each under its repository's name: wanda, sparsegpt, AlphaPruning, OWL, layer-adaptive-sparsity, DLP,
Relative-importance-and-activation-pruning, DSnoT, ALPS (`oracle_code.SOURCES` says of which owners, and which function of
which file is run). Their code is read and executed from there; none of it is in this repository. A comparison whose checkout
is missing is left out; what the output already holds is not measured again, so the script can be stopped. MODEL is a
Llama-like Hugging Face directory. Activations are those of the dense model, the same tensors for both sides, but for
`wanda-run`, which lets both sides prune the whole model.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from bench_common import add_table, machine_of, perform  # beside this script
from oracle_code import SOURCES, described, load
from oracle_inputs import Dense
from oracle_masks import MASKS, TARGETS, wanda_run
from oracle_ratios import alpha_ratio_rows, alpha_rows, dlp_rows, erk_rows, lamp_rows, owl_rows
from oracles_table import checks, render

from tailcut.allocation import Allocation, LayerPlan, Unstructured
from tailcut.checkpoint import Checkpoint
from tailcut.compress.blocks import max_positions, open_stream
from tailcut.compress.calibration import Calibration, CalibrationTokens, draw
from tailcut.compress.cutting import Method, cut_blocks
from tailcut.compress.discovery import linears_of_skeleton
from tailcut.compress.pruners import wanda
from tailcut.compress.resident import Weights
from tailcut.compress.skeleton import build_skeleton
from tailcut.files import write_file
from tailcut.windows import Tokens

OUTPUT: Final = Path("benchmarks/results/alloc_oracles.json")
# dear ones see fewer blocks
EVERY: Final[Mapping[str, int]] = {
    "magnitude": 5, "wanda-variant": 5, "ria": 5, "sparsegpt": 4, "dsnot": 10, "alps": 15, "lamp": 2,
}  # fmt: skip
RUN_SEQUENCES: Final = 4  # of wanda-run, which passes the model six times
Rows = list[dict[str, Any]]


def alpha_ratios(options: argparse.Namespace, tokens: CalibrationTokens, tests: dict[str, Any]) -> Rows:
    """Fed with what their estimator gave in alpha-metrics."""
    oracle, values = load(options.checkouts, SOURCES["alpha-ratios"]), tests.get("alpha-metrics", {"rows": []})["rows"]
    dense = Dense(options.model)
    if len({row["block"] for row in values}) != len(dense.blocks):
        raise SystemExit("alpha-ratios needs alpha-metrics of every block; run that to its end first")
    return alpha_ratio_rows(oracle, dense, values)


def lamp(options: argparse.Namespace, tokens: CalibrationTokens, tests: dict[str, Any]) -> Rows:
    """Their function sorts all weights three times over: half the blocks are a model as good as all."""
    step = options.every or EVERY["lamp"]
    return lamp_rows(load(options.checkouts, SOURCES["lamp"]), Dense(options.model), step)


def erk(options: argparse.Namespace, tokens: CalibrationTokens, tests: dict[str, Any]) -> Rows:
    return erk_rows(load(options.checkouts, SOURCES["erk"]), Dense(options.model))


def depth(name: str, options: argparse.Namespace, tokens: CalibrationTokens, tests: dict[str, Any]) -> Rows:
    """owl and dlp compare blocks with each other, and so need the inputs of all."""
    dense, oracle = Dense(options.model), load(options.checkouts, SOURCES[name])
    blocks = [sites for _, sites in dense.sites(tokens.tokens, set(range(len(dense.blocks))))]
    return {"owl": owl_rows, "dlp": dlp_rows}[name](oracle, blocks)


def whole_runs(options: argparse.Namespace, tokens: CalibrationTokens, tests: dict[str, Any]) -> Rows:
    """Wanda at 50 %, block after block on pruned inputs: theirs, ours, and ours in other batches as a yardstick."""
    dense, windows = Dense(options.model), tokens.tokens[:RUN_SEQUENCES]
    theirs = wanda_run(load(options.checkouts, SOURCES["wanda-run"]), dense, windows, 0.5)
    ours, batched = (_our_run(options.model, windows, 0.5, batch) for batch in (1, None))
    return [
        {
            "matrix": matrix,
            "weights": made.numel(),
            "sequences": len(windows),
            "differ": int(((ours[matrix] == 0) != (made == 0)).sum()),
            "differ_of_our_batches": int(((ours[matrix] == 0) != (batched[matrix] == 0)).sum()),
        }
        for matrix, made in theirs.items()
    ]


def _our_run(model: Path, windows: Tokens, sparsity: float, batch: int | None) -> dict[str, torch.Tensor]:
    """What `tailcut compress` makes of the model, without writing it; module name -> weight."""
    checkpoint = Checkpoint(model)
    skeleton = build_skeleton(checkpoint)
    linears, weights = linears_of_skeleton(checkpoint, skeleton), Weights(checkpoint, skeleton, "cpu", torch.float32)
    plan = LayerPlan(Unstructured(sparsity))
    allocation = Allocation({linear.name: plan for linear in linears}, {"allocator": "uniform"})
    weights.load_rest()
    stream = open_stream(weights, windows, batch)
    made: dict[str, torch.Tensor] = {}
    for index, cut in enumerate(cut_blocks(weights, linears, allocation, Method(wanda), stream)):
        made |= {one.name: torch.from_numpy(cut.tensors[one.tensor]) for one in linears if one.block == index}
    return made


WHOLE: Final[Mapping[str, Callable[..., Rows]]] = {
    "owl": partial(depth, "owl"),
    "dlp": partial(depth, "dlp"),
    "lamp": lamp,
    "erk": erk,
    "alpha-ratios": alpha_ratios,
    "wanda-run": whole_runs,
}
BY_BLOCK: Final = ("alpha-metrics", *MASKS)
TESTS: Final = (*BY_BLOCK, *WHOLE)


class Output:
    """The result file, written after each block of a pruner and after each other comparison."""

    def __init__(self, options: argparse.Namespace, tokens: CalibrationTokens) -> None:
        self._options, head = options, head_of(options, tokens)
        self.path: Path = options.output
        self.content: dict[str, Any] = (
            json.loads(self.path.read_bytes()) if self.path.is_file() else head | {"tests": {}}
        )
        if any(self.content[key] != head[key] for key in ("model", "calibration")):
            raise SystemExit(f"{self.path} was measured on another model or text; give another -o")

    @property
    def tests(self) -> dict[str, Any]:
        found: dict[str, Any] = self.content["tests"]
        return found

    def add(self, name: str, rows: Rows, seconds: float) -> None:
        """More rows of one comparison."""
        source = described(self._options.checkouts, (name,))[name]
        entry = self.tests.setdefault(name, {"source": source, "seconds": 0.0, "rows": []})
        entry["rows"] += rows
        entry["seconds"] += seconds
        write_file(self.path, (json.dumps(self.content) + "\n").encode())
        print(f"{name}: {len(rows)} more rows in {seconds:.0f} s", flush=True)


def run(options: argparse.Namespace) -> None:
    """What is asked for and not in the output yet."""
    until = time.perf_counter() + options.seconds
    skeleton = build_skeleton(Checkpoint(options.model))
    tokens = draw(_calibration(options), options.model, max_positions(skeleton.model))
    output, names = Output(options, tokens), [name for name in options.tests if _is_here(name, options)]
    with torch.inference_mode():
        _by_block([name for name in names if name in BY_BLOCK], options, tokens, output, until)
        for name in names:
            if name in WHOLE and name not in output.tests and time.perf_counter() < until:
                began = time.perf_counter()
                rows = WHOLE[name](options, tokens, output.tests)
                output.add(name, rows, time.perf_counter() - began)


def _is_here(name: str, options: argparse.Namespace) -> bool:
    here = bool((options.checkouts / SOURCES[name].folder).is_dir())
    if not here:
        print(f"{name}: no checkout {SOURCES[name].folder}; left out", flush=True)
    return here


def _by_block(
    names: list[str], options: argparse.Namespace, tokens: CalibrationTokens, output: Output, until: float
) -> None:
    """Each on the blocks that it has not seen; the pruners in one pass of the model."""
    if not names:
        return
    dense, left = Dense(options.model), dict[str, set[int]]()
    for name in names:
        seen = {row["block"] for row in output.tests.get(name, {"rows": []})["rows"]}
        left[name] = set(range(0, len(dense.blocks), options.every or EVERY.get(name, 1))) - seen
    oracles = {name: load(options.checkouts, SOURCES[name]) for name in names}
    for block in sorted(left.pop("alpha-metrics", ())):
        if time.perf_counter() < until:
            began = time.perf_counter()
            found = alpha_rows(oracles["alpha-metrics"], dense, block)
            output.add("alpha-metrics", [{"block": block} | row for row in found], time.perf_counter() - began)
    for block, sites in dense.sites(tokens.tokens, set().union(*left.values())):
        for name in (name for name, blocks in left.items() if block in blocks and time.perf_counter() < until):
            began, rows = time.perf_counter(), Rows()
            for target in TARGETS[name]:
                rows += [{"target": target, "block": block} | row for row in MASKS[name](oracles[name], sites, target)]
            output.add(name, rows, time.perf_counter() - began)


def head_of(options: argparse.Namespace, tokens: CalibrationTokens) -> dict[str, Any]:
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    checkpoint = Checkpoint(options.model)
    return {
        "what": "differences to the public implementations on the same weights and activations",
        "machine": machine_of(options) | versions | {"threads": torch.get_num_threads()},
        "model": {"name": options.model.resolve().name, "fingerprint": checkpoint.fingerprint()},
        "calibration": {
            "text": tokens.name,
            "text_sha256": tokens.text_sha256,
            "tokens_sha256": tokens.sha256,
            "samples": int(tokens.tokens.shape[0]),
            "seqlen": int(tokens.tokens.shape[1]),
            "seed": options.seed,
        },
    }


def _calibration(options: argparse.Namespace) -> Calibration:
    return Calibration(options.calibration, options.samples, options.seqlen, options.seed)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    action = actions.add_parser("run", help="compare")
    action.add_argument("model", type=Path)
    action.add_argument("--checkouts", type=Path, required=True, help="folder of the public repositories")
    action.add_argument("--calibration", default="demo", help="demo, or a text file")
    action.add_argument("--samples", type=int, default=16)
    action.add_argument("--seqlen", type=int, default=256)
    action.add_argument("--seed", type=int, default=0)
    action.add_argument("--tests", nargs="+", choices=TESTS, default=list(TESTS))
    action.add_argument("--every", type=int, help="pruners see every so-many-th block; each has its own default")
    action.add_argument("--seconds", type=float, default=float("inf"), help="nothing new is begun after so many")
    action.add_argument("--commit", help="of tailcut, where the checkout holds no git history")
    action.add_argument("-o", "--output", type=Path, default=OUTPUT)
    action.set_defaults(device="cpu")
    add_table(actions)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """1 where a comparison that has a limit passes it."""
    options = parse(arguments)
    perform(options, run, render)
    failed = [one for one in checks(json.loads(options.output.read_bytes())) if not one.passed]
    for one in failed:
        print(f"{one.name}: {one.value:g} is above {one.limit:g}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
