"""The tables of README.md and docs/, generated from benchmarks/results/*.json.

    python benchmarks/tables.py           # rewrite what stands between <!-- table:NAME --> and <!-- /table -->
    python benchmarks/tables.py --check   # exit 1 if a document does not show what the results say

No number in these tables is typed by hand; a test runs the check.
"""

import argparse
import importlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import alloc_bits_table  # beside this script
import alloc_table_render
import cpu_decode
import cpu_engines
import cpu_engines_table
import cpu_kernels
import cpu_quality
import cpu_rows
import gate_errors
import gate_errors_table
import interop_table
import oracles_table
from bench_common import nats_above

from tailcut import codec
from tailcut.bench import gpu_tables
from tailcut.bench.gpu import GpuResult
from tailcut.bench.report import markdown_row
from tailcut.bench.tables import interval, milliseconds
from tailcut.results import BenchResult, Verdict

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (
    "README.md",
    "docs/experiments.md",
    "docs/allocation.md",
    "docs/quantisation.md",
    "docs/recovery.md",
    "docs/structured-pruning.md",
    "docs/zero-shot.md",
    "docs/interop.md",
    "docs/importing.md",
    "docs/other-tools.md",
)
_SLOT = re.compile(r"(<!-- table:(\w+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def quality() -> str:
    """Perplexity at both contexts; alpha against uniform as paired log-perplexity difference over windows."""
    data = json.loads((RESULTS / "alloc_quality.json").read_bytes())
    rows, contexts = data["rows"], sorted(data["tokens_scored"], key=int)
    head = ["pruner", "sparsity"]
    for context in contexts:
        head += [f"uniform @{context}", f"alpha @{context}", "alpha − uniform, nats (SE)"]
    lines = [markdown_row(head), "|" + " --- |" * len(head)]
    dense = [cell for context in contexts for cell in (_ppl(rows["dense"], context), "", "")]
    lines.append(markdown_row(["dense", "0", *dense]))
    for key, row in rows.items():
        if " uniform " in key:
            other = rows.get(key.replace(" uniform ", " alpha "))
            cells = [cell for context in contexts for cell in _pair(row, other, context)]
            lines.append(markdown_row([key.split()[0], key.split()[2], *cells]))
    scored = ", ".join(f"{data['tokens_scored'][context]:,} at context {context}" for context in contexts)
    cal, machine = data["calibration"], data["machine"]
    note = (
        f"WikiText-2 test whole ({scored} tokens scored), windows do not overlap; {data['text']['joining']}. "
        f"Calibration: {cal['samples']} x {cal['seqlen']} tokens of {cal['file']}. float32 on {machine['accelerator']}, "
        f"commit {machine['commit']}. alpha: alpha_peak by block, default tau (0.1, 0.2, 0.3 at 50, 60, 70 %)."
    )
    return "\n".join([*lines, "", note])


def _ppl(row: dict[str, Any], context: str) -> str:
    value = row[f"ppl_{context}"]
    return f"{value:.2f}" if value < 1e4 else f"{value:.3g}"


def _pair(uniform: dict[str, Any], alpha: dict[str, Any] | None, context: str) -> list[str]:
    if alpha is None:
        return [_ppl(uniform, context), "", ""]
    above = nats_above(alpha[f"nll_{context}"], uniform[f"nll_{context}"], int(context))
    return [_ppl(uniform, context), _ppl(alpha, context), "{:+.3f} ({:.3f})".format(*above)]


def bits() -> str:
    """Perplexity against bits a weight, uniform and by alpha, with and without pruning."""
    return alloc_bits_table.render(json.loads((RESULTS / "alloc_bits.json").read_bytes()))


def optional(file: str, script: str, function: str = "render") -> str:
    """What `script` (beside this one; it may load torch) makes of a result file; nothing while there is no such file."""
    path = RESULTS / file
    if not path.is_file():
        return ""
    text: str = getattr(importlib.import_module(script), function)(json.loads(path.read_bytes()))
    return text


def decode() -> str:
    return cpu_decode.render(cpu_decode.read(RESULTS / "cpu_decode.json"))


def engines(file: str) -> str:
    """Every table of side-by-side runs: decode, several sequences, prompts, loading."""
    return cpu_engines_table.render(cpu_engines.read(RESULTS / file))


def engines_at_80(file: str) -> str:
    """80 % sparsity on two threads."""
    return cpu_engines_table.summary(cpu_engines.read(RESULTS / file))


def kernels(file: str) -> str:
    """Share of the read bandwidth of the product kernels."""
    return cpu_kernels.render(json.loads((RESULTS / file).read_bytes()))


def rows(file: str) -> str:
    """One to many rows, inside ONNX Runtime, against its own dense products."""
    return cpu_rows.render(json.loads((RESULTS / file).read_bytes()))


def deployed_quality() -> str:
    """Perplexity through the kernels against the same stored weights."""
    return cpu_quality.render(json.loads((RESULTS / "cpu_quality.json").read_bytes()))


def interop() -> str:
    """Every foreign client on every layout."""
    path = RESULTS / "interop.json"
    return interop_table.render(json.loads(path.read_bytes())) if path.is_file() else "No results are committed yet."


def esd() -> str:
    data = json.loads((RESULTS / "alloc_esd.json").read_bytes())
    seven = data["llama_7b"]
    head = ["model", "matrices", "cold cache", "CPU time", "warm cache", "peak RSS", "LLaMA-7B, extrapolated"]
    cells = [
        f"synthetic Llama, {data['model']['parameters'] / 1e9:.1f} B",
        str(data["model"]["matrices"]),
        f"{data['seconds']['cold_cache']:.0f} s",
        f"{data['seconds']['cold_cache_cpu']:.0f} s",
        f"{data['seconds']['warm_cache']:.0f} s",
        f"{data['memory_peak']['rss_bytes'] / 1e6:.0f} MB",
        f"{seven['from_one_matrix_each_s'] / 60:.0f} to {seven['from_fit_s'] / 60:.0f} min",
    ]
    return "\n".join([markdown_row(head), "|" + " --- |" * len(head), markdown_row(cells)])


def gpu_products() -> str:
    """One row of x: every matrix and contender, with the machine."""
    result = codec.load(GpuResult, RESULTS / "gpu_kernels.json")
    return f"{gpu_tables.products_table(result)}\n\n{gpu_tables.machine_line(result)}"


def gpu_crossover() -> str:
    """Speedup over dense at every number of rows of x, and the path taken."""
    result, more = codec.load(GpuResult, RESULTS / "gpu_kernels.json"), RESULTS / "gpu_kernels_rows.json"
    if more.is_file():  # a session of its own for the numbers of rows; every ratio is within one session
        rows = codec.load(GpuResult, more)
        shapes, names = {p.shape for p in rows.products}, {p.contender for p in rows.products}
        single = (p for p in result.products if p.shape in shapes and p.contender in names)
        result = replace(rows, products=(*single, *rows.products))
    return gpu_tables.crossover_table(result)


def gpu_decode() -> str:
    """Whole decode steps."""
    result = codec.load(GpuResult, RESULTS / "gpu_decode.json")
    return f"{gpu_tables.decode_table(result)}\n\n{gpu_tables.machine_line(result)}"


def gpu_quality() -> str:
    """A real 2:4 model: tokens and perplexity of the 2:4 kernels beside dense products."""
    import gpu_quality as script  # beside this script; loads torch

    return script.render(json.loads((RESULTS / "gpu_quality.json").read_bytes()))


def gpu_compress() -> str:
    """Spectra, SparseGPT and Wanda on a GPU."""
    import gpu_compress as script  # beside this script; loads torch

    return script.render(json.loads((RESULTS / "gpu_compress.json").read_bytes()))


def gpu_tests() -> str:
    """What became of the tests of the GPU kernels on a GPU."""
    data = json.loads((RESULTS / "gpu_tests.json").read_bytes())
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(data["counts"].items()))
    return f"{counts} in {data['seconds']:.0f} s on {data['gpu']['name']}, commit {data['machine']['commit']}."


def alloc_table() -> str:
    """Every allocator, pruner and sparsity, beside uniform."""
    return alloc_table_render.render(json.loads((RESULTS / "alloc_table.json").read_bytes()))


def alloc_oracles() -> str:
    """Ours beside the public implementations, on the same weights and activations."""
    return oracles_table.render(json.loads((RESULTS / "alloc_oracles.json").read_bytes()))


def alloc_table_auto() -> str:
    """`auto` beside uniform and the best of the others."""
    return alloc_table_render.render_auto(json.loads((RESULTS / "alloc_table.json").read_bytes()))


def alloc_table_again() -> str:
    """SparseGPT cells measured twice."""
    return alloc_table_render.render_again(json.loads((RESULTS / "alloc_table_again.json").read_bytes()))


def alloc_table_outliers() -> str:
    """How much of those differences a few windows make."""
    return alloc_table_render.render_outliers(json.loads((RESULTS / "alloc_table.json").read_bytes()))


def gate_errors_rates() -> str:
    """Wrong verdicts, simulated and on real runs."""
    return gate_errors_table.render(gate_errors.read(RESULTS / "gate_errors.json"))


def demo() -> str:
    """What the last `make demo` run printed, from the files that it wrote."""
    data = json.loads((RESULTS / "cpu_demo.json").read_bytes())
    result = codec.from_json(BenchResult, json.dumps(data["result"]), "cpu_demo.json")
    verdict = codec.from_json(Verdict, json.dumps(data["verdict"]), "cpu_demo.json")
    head = ["engine", "dense TPOT", "sparse TPOT", "decode speedup", "prefill speedup", "sparse kernel shown"]
    lines = [markdown_row(head), "|" + " --- |" * len(head)]
    for engine in result.engines:
        if engine.dense is None or engine.sparse is None:
            lines.append(markdown_row([engine.engine, "not measured", engine.reason, "", "", ""]))
            continue
        times = milliseconds(engine.dense.decode_ms), milliseconds(engine.sparse.decode_ms)
        ratios = interval(engine.decode_speedup), interval(engine.prefill_speedup)
        shown = "yes" if engine.engagement and engine.engagement.proven else "no"
        lines.append(markdown_row([f"{engine.engine} {engine.version}", *times, *ratios, shown]))
    mb = result.dense.bytes_on_disk / 1e6, result.sparse.bytes_on_disk / 1e6
    texts = [
        f"perplexity {item.dense_perplexity:.2f} -> {item.sparse_perplexity:.2f} "
        f"({item.tokens_scored:,} tokens of {item.text})"
        for item in result.quality
    ]
    checks = "; ".join(f"{check.name}: {check.outcome}" for check in verdict.checks)
    limit = f" (OMP_NUM_THREADS={data['omp_num_threads']})" if data["omp_num_threads"] else ""
    summary = (
        f"{result.sparse.sparsity:.0%} of the block weights cut, package {mb[0]:.0f} -> {mb[1]:.0f} MB, "
        f"{', '.join(texts)}. Verdict **{verdict.outcome}** ({checks}). Wall time {data['wall_s'] / 60:.1f} min with set-up "
        f"from an empty environment, {data['run_s'] / 60:.1f} min of it the run{limit}; peak memory {data['peak_rss_mb']:.0f} MB."
    )
    return "\n".join([*lines, "", summary])


TABLES: dict[str, Callable[[], str]] = {
    "quality": quality,
    "alloc_table": alloc_table,
    "alloc_table_auto": alloc_table_auto,
    "alloc_table_again": alloc_table_again,
    "alloc_table_outliers": alloc_table_outliers,
    "alloc_bits": bits,
    "alloc_oracles": alloc_oracles,
    "alloc_cost": partial(optional, "alloc_cost.json", "alloc_cost"),
    "alloc_metrics": partial(optional, "alloc_metrics.json", "metrics"),
    "alloc_zero_shot": partial(optional, "alloc_zero_shot.json", "zero_shot"),
    "alloc_latency": partial(optional, "alloc_latency.json", "alloc_latency"),
    "alloc_latency_alone": partial(optional, "alloc_latency_alone.json", "alloc_latency"),
    "peer_sparseml": partial(optional, "peer_sparseml.json", "sparseml_peer"),
    "peer_sparseml_first4": partial(optional, "peer_sparseml_first4.json", "sparseml_peer"),
    "peer_sparseml_tiny": partial(optional, "peer_sparseml_tiny.json", "sparseml_peer"),
    "recover": partial(optional, "recover.json", "recover"),
    "recover_short": partial(optional, "recover.json", "recover", "render_short"),
    "structured": partial(optional, "structured.json", "structured"),
    "structured_short": partial(optional, "structured.json", "structured", "render_short"),
    "structured_cpu": partial(optional, "structured_cpu.json", "structured"),
    "structured_speed": partial(optional, "structured_speed.json", "structured_speed"),
    "cpu_decode": decode,
    "cpu_engines": partial(engines, "cpu_engines.json"),
    "cpu_engines_80": partial(engines_at_80, "cpu_engines.json"),
    "cpu_engines_7b": partial(engines, "cpu_engines_7b.json"),
    "cpu_engines_batches": partial(engines, "cpu_engines_batches.json"),
    "cpu_load": partial(engines, "cpu_load.json"),
    "cpu_engines_avx512": partial(engines, "cpu_engines_avx512.json"),
    "cpu_engines_avx512_masks": partial(engines, "cpu_engines_avx512_masks.json"),
    "cpu_engines_avx512_80": partial(engines_at_80, "cpu_engines_avx512.json"),
    "cpu_kernels": partial(kernels, "cpu_kernels.json"),
    "cpu_kernels_avx512": partial(kernels, "cpu_kernels_avx512.json"),
    "cpu_kernels_avx512_slots": partial(kernels, "cpu_kernels_avx512_slots.json"),
    "cpu_rows": partial(rows, "cpu_rows.json"),
    "cpu_rows_avx512": partial(rows, "cpu_rows_avx512.json"),
    "cpu_quality": deployed_quality,
    "esd": esd,
    "interop": interop,
    "interop_amx": partial(optional, "interop_amx.json", "interop_table"),
    "interop_import": partial(optional, "interop_import.json", "import_round_trip"),
    "gpu_products": gpu_products,
    "gpu_crossover": gpu_crossover,
    "gpu_decode": gpu_decode,
    "gpu_quality": gpu_quality,
    "gpu_compress": gpu_compress,
    "gpu_tests": gpu_tests,
    "gate_errors": gate_errors_rates,
    "demo": demo,
}


def render(text: str) -> str:
    """A document with every slot filled from the results."""
    return _SLOT.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}\n{match[3]}", text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for name in DOCUMENTS:
        path = ROOT / name
        old = path.read_text()
        new = render(old)
        if new != old:
            stale.append(name)
            if not check:
                path.write_text(new)
    for name in stale:
        print(f"{name}: {'does not show what the results say' if check else 'tables rewritten'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
