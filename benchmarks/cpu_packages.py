"""Every package that `cpu_engines.py` measures, in one directory, from one model.

    python benchmarks/cpu_packages.py MODEL --out DIR --profile alpha.csv --sparsities 80,70 --context 512 --prompt 128

Writes DIR/dense and DIR/s80, … (float32), DIR/NAME-int8 and DIR/NAME-int4 (all matrices, the head too),
DIR/NAME-head8 and DIR/NAME-int8-head4 (float32 and int8 with a rounder head), DIR/NAME-deepsparse, and the variants that the named peers open instead of a package. What is there already is kept, so a
broken-off run goes on. Random weights have no spectrum: the layer profile is a published model's, as in
`speed_packages.py`; without --profile every matrix is cut alike.

A model whose float32 form is larger than the memory (7B): name the packages to write with --only, and have the reference
logits computed with --unfolded, by a plain ONNX Runtime that expands one matrix at a time.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from cpu_engines_table import PACKAGES  # beside this script
from speed_packages import profile_scores

from tailcut.allocation import Allocation, Budget, LayerScore, LayerScores
from tailcut.bench import variants
from tailcut.bench.engines import load
from tailcut.bench.machine import usable_cpus
from tailcut.bench.many import Logits, Row, Tokens, check_tokens, kept_logits, reference
from tailcut.checkpoint import Checkpoint
from tailcut.compress.allocators import Settings, alpha, uniform
from tailcut.compress.blocks import finish, open_stream, run_through
from tailcut.compress.calibration import Calibration
from tailcut.compress.discovery import find_linears
from tailcut.compress.resident import Weights
from tailcut.compress.run import compress
from tailcut.compress.skeleton import build_skeleton
from tailcut.errors import TailcutError
from tailcut.export.run import export
from tailcut.export.static import export_deepsparse
from tailcut.kernels.package import MODEL_NAME
from tailcut.manifest import MANIFEST_NAME
from tailcut.progress import Reporter, console
from tailcut.results import Workload


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    with console() as report:
        for percent in options.sparsities:
            name = f"s{percent}" if percent else "dense"
            if not all((options.out / part).exists() for part in wanted(name, options)):
                model = cut(options, percent, report) if percent else options.model
                write(model, name, options, report)
                if percent and not options.keep:
                    shutil.rmtree(model)
            peers(options, name, report)
            logits(options, name, report)


def wanted(name: str, options: argparse.Namespace) -> list[str]:
    """The packages of one sparsity, the static one included where it is asked for."""
    static = [f"{name}-deepsparse"] if percent_of(name) in options.static else []
    return [*(f"{name}{suffix}" for suffix in suffixes(options)), *static]


def suffixes(options: argparse.Namespace) -> list[str]:
    return [suffix for suffix in PACKAGES if not options.only or suffix.removeprefix("-") in options.only]


def percent_of(name: str) -> int:
    return 0 if name == "dense" else int(name.removeprefix("s"))


def cut(options: argparse.Namespace, percent: int, report: Reporter) -> Path:
    """MODEL with its smallest weights set to zero."""
    out: Path = options.out / f"cut-{percent}"
    if (out / MANIFEST_NAME).is_file():
        return out
    compress(options.model, plan(options, percent), out, pruner="magnitude", calibration=Calibration(), report=report)
    return out


def plan(options: argparse.Namespace, percent: int) -> Allocation:
    if options.profile is not None:
        scores = profile_scores(options.model, options.profile)
        return alpha.allocate(scores, Budget(percent / 100), Settings(metric="alpha_peak", tau=options.tau))
    checkpoint = Checkpoint(options.model)
    layers = tuple(LayerScore(linear.name, linear.block, linear.shape, {}) for linear in find_linears(checkpoint))
    scores = LayerScores(checkpoint.fingerprint(), layers, checkpoint.total_parameters(), {"profile": "none"})
    return uniform.allocate(scores, Budget(percent / 100), Settings())


def write(model: Path, name: str, options: argparse.Namespace, report: Reporter) -> None:
    """Every package of one (cut) model that is not there yet."""
    out: Path = options.out
    for suffix in suffixes(options):
        weights, head = PACKAGES[suffix]
        if not (out / f"{name}{suffix}").exists():
            export(model, out / f"{name}{suffix}", weights=weights, head=head, check=False, report=report)
    static = out / f"{name}-deepsparse"
    if static.name in wanted(name, options) and not static.exists():
        sizes = {"context": options.context, "prompt": options.prompt}
        export_deepsparse(model, static, **sizes, check=False, report=report)


def peers(options: argparse.Namespace, name: str, report: Reporter) -> None:
    """The variants of the peers that can run here; one that cannot be made is named and left out."""
    for engine in options.peers:
        sparse = engine.startswith("deepsparse")
        if (name != "dense" and not sparse) or (sparse and percent_of(name) not in options.static):
            continue
        reason = load(engine).available()
        try:
            if reason is None:
                variants.prepare(engine, options.out / name, report)
        except TailcutError as error:
            reason = str(error)
        if reason is not None:
            print(f"{name}: no variant for {engine}: {reason}")


def logits(options: argparse.Namespace, name: str, report: Reporter) -> None:
    """The reference logits that every engine is checked against, now rather than while the machine is being timed."""
    work = Workload(prompt_tokens=options.prompt, new_tokens=4, context=options.context, threads=len(usable_cpus()))
    made = suffixes(options)
    for number, suffix in enumerate(made):
        report("reference logits", number, len(made), f"{name}{suffix}")
        row = Row("onnxruntime", options.out / f"{name}{suffix}", "float32")
        if options.unfolded and not kept_logits(row.package).is_file():
            # the float32 package of such a model is mapped whole even so; its weights are those of the model
            tokens = check_tokens(row, work)
            known = unfolded(row.package, tokens) if suffix or name != "dense" else streamed(options.model, tokens)
            np.save(kept_logits(row.package), known)
        reference(row, work)


def unfolded(package: Path, tokens: Tokens) -> Logits:
    """The standard graph's logits [1, n, vocab] of tokens [1, n], without a float32 copy of the matrices in memory."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(usable_cpus())
    options.add_session_config_entry("session.disable_prepacking", "1")
    session = onnxruntime.InferenceSession(
        package / MODEL_NAME, options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
    )
    count = tokens.shape[1]
    feed = {
        "input_ids": tokens,
        "attention_mask": np.ones((1, count), np.int64),
        "position_ids": np.arange(count, dtype=np.int64)[None],
    }
    sizes = {"batch": 1, "past": 0}
    for cache in session.get_inputs():
        if cache.name not in feed:
            feed[cache.name] = np.zeros([sizes.get(size, size) for size in cache.shape], np.float32)
    return np.asarray(session.run(["logits"], feed)[0], np.float32)


def streamed(model: Path, tokens: Tokens) -> Logits:
    """A model directory's logits [1, n, vocab] of tokens [1, n], by torch in float32, a block in memory at a time."""
    checkpoint = Checkpoint(model)
    weights = Weights(checkpoint, build_skeleton(checkpoint), "cpu", torch.float32)
    weights.load_rest()
    stream = open_stream(weights, tokens)
    run_through(weights, stream)
    positions = torch.arange(tokens.shape[1])
    return np.asarray(finish(weights, stream, tokens, stream.batches[0], positions), np.float32)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sparsities", type=integers, default=[80, 0, 70, 90, 50, 60], help="percent; 0 is dense")
    parser.add_argument("--static", type=integers, default=[80, 0, 70, 90, 50, 60], help="which of them for DeepSparse")
    parser.add_argument("--profile", type=Path, help="layer profile of a published model (CSV)")
    parser.add_argument("--tau", type=float)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument(
        "--only", type=lambda text: text.split(","), help="packages: float32's name is empty (int8,int4)"
    )
    parser.add_argument("--unfolded", action="store_true", help="reference logits of a model larger than the memory")
    parser.add_argument("--keep", action="store_true", help="keep the cut models, for packages made again later")
    parser.add_argument("--peers", type=lambda text: text.split(",") if text else [], default=list(PEERS))
    return parser.parse_args(arguments)


PEERS = (
    "onnxruntime-int8",
    "onnxruntime-int4",
    "llamacpp-q8",
    "llamacpp-q4",
    "openvino-int8",
    "openvino-int4",
    "deepsparse-int8",
)


def integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


if __name__ == "__main__":
    main()
