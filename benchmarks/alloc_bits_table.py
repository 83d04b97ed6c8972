"""The tables of benchmarks/alloc_bits.py: perplexity along mean bits, and which model is the better one per byte."""

from typing import Any

from bench_common import nats_above  # beside this script

from tailcut.bench.report import markdown_row

Rows = dict[str, dict[str, Any]]


def render(content: dict[str, Any]) -> str:
    """Both tables with what they were measured on."""
    rows, setup, machine = content["rows"], content["setup"], content["machine"]
    tokens, cal = setup["windows"] * (setup["context"] - 1), setup["calibration"]
    note = (
        f"{setup['model']['name']}, dense {rows['dense']['ppl']:.2f}: {tokens:,} tokens of {setup['text']['name']} at context "
        f"{setup['context']}; calibration {cal['samples']} x {cal['seqlen']} tokens of {cal['source']}, seed {cal['seed']}. "
        f"Nats a token over the same windows, in brackets the standard error. {machine['accelerator'] or machine['cpu']}, "
        f"commit {machine['commit']}."
    )
    return "\n\n".join(part for part in (curve(rows, setup), per_byte(rows, setup), note) if part)


def curve(rows: Rows, setup: dict[str, Any]) -> str:
    """Mean bits down, for each quantiser uniform bits, bits by alpha and by search, and paired differences."""
    head = ["mean bits", "quantiser", "uniform", "alpha", "auto", "alpha less uniform", "auto less uniform"]
    lines = [markdown_row(head), "|" + " --- |" * len(head)]
    found = {tuple(key.split()[:2]) for key in rows if key.split()[0] in ("gptq", "rtn") and "unclipped" not in key}
    for quantiser, mean in sorted(found, key=lambda pair: (-float(pair[1]), pair[0])):
        uniform, *others = (rows.get(f"{quantiser} {mean}{share}") for share in ("", " alpha", " auto"))
        told = [difference(other, uniform, setup["context"]) for other in others]
        lines.append(markdown_row([mean, quantiser, *map(_ppl, (uniform, *others)), *told]))
    return "\n".join(lines) if found else ""


def per_byte(rows: Rows, setup: dict[str, Any]) -> str:
    """Every row by its size as a package stores it; `front`: no smaller row is better, by either size."""
    head = ["model", "zeros", "bits stored", "bits, tightly", "perplexity", "nats above dense", "front"]
    lines = [markdown_row(head), "|" + " --- |" * len(head)]
    sized = {key: row for key, row in rows.items() if "bits_stored" in row}
    for key, row in sorted(sized.items(), key=lambda item: (-item[1]["bits_stored"], -item[1]["bits_tight"])):
        fronts = [title for title in ("stored", "tight") if _unbeaten(row, sized, f"bits_{title}")]
        cells = [f"{row['zeros']:.0%}", f"{row['bits_stored']:.2f}", f"{row['bits_tight']:.2f}", _ppl(row)]
        above = difference(row, rows["dense"], setup["context"])
        lines.append(markdown_row([key, *cells, above, ", ".join(fronts)]))
    return "\n".join(lines) if sized else ""


def _unbeaten(row: dict[str, Any], others: Rows, size: str) -> bool:
    return not any(
        other[size] <= row[size] and other["ppl"] < row["ppl"] for other in others.values() if other is not row
    )


def difference(row: dict[str, Any] | None, base: dict[str, Any] | None, context: int) -> str:
    """Mean of the paired difference in nats a token, and its standard error over windows."""
    if row is None or base is None or row is base:
        return ""
    return "{:+.3f} ({:.3f})".format(*nats_above(row["nll"], base["nll"], context))


def _ppl(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return f"{row['ppl']:.2f}" if row["ppl"] < 1e4 else f"{row['ppl']:.3g}"
