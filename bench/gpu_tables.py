"""The tables of a GPU session, as Markdown: products at one row, the crossover over rows of x, decode steps."""

from collections.abc import Sequence
from math import exp, log

from tailcut.bench.gpu import DENSE, Decode, GpuResult, Product
from tailcut.bench.report import markdown_row

_HEAD = ("matrix", "rows", "contender", "path", "us", "GB/s", "of copy", "speedup", "byte ceiling", "SQNR dB")


def render(result: GpuResult) -> str:
    """Everything that was measured."""
    parts = [machine_line(result)]
    if result.products:
        parts += [products_table(result), crossover_table(result)]
    if result.decodes:
        parts.append(decode_table(result))
    return "\n\n".join(part for part in parts if part)


def machine_line(result: GpuResult) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in dict(result.gpu.get("versions", {})).items())
    return (
        f"{result.gpu.get('name')} (driver {result.gpu.get('driver') or 'unknown'}), {versions}, commit "
        f"{result.machine.commit}. Copy bandwidth {result.bandwidth:.0f} GB/s. Speedups are over dense cuBLAS bfloat16 "
        "timed in turn in the same session; SQNR is against a float64 product with the weights as stored."
    )


def products_table(result: GpuResult, rows: Sequence[int] | None = None) -> str:
    """One line a matrix and contender, for the smallest number of rows unless others are asked for."""
    wanted = rows or sorted({found.rows for found in result.products})[:1]
    lines = [markdown_row(_HEAD), "|" + " --- |" * len(_HEAD)]
    lines += [markdown_row(_product(result, found)) for found in result.products if found.rows in wanted]
    means = "; ".join(_means(result, count) for count in wanted)
    return "\n".join([*lines, "", means])


def _product(result: GpuResult, found: Product) -> tuple[str, ...]:
    start = (f"{found.shape[0]} x {found.shape[1]}", str(found.rows), found.contender)
    if found.median_us is None or found.gb_per_s is None:
        return (*start, f"not measured: {found.reason}", "", "", "", "", "", "")
    sqnr = "" if found.sqnr_db is None else f"{found.sqnr_db:.0f}"
    if found.weights_sqnr_db is not None:
        sqnr += f" ({found.weights_sqnr_db:.0f} with the weights' rounding)"
    return (
        *start,
        short_path(found.path),
        f"{found.median_us:.2f}",
        f"{found.gb_per_s:.0f}",
        f"{found.gb_per_s / result.bandwidth:.0%}",
        _times(result.speedup(found)),
        _times(result.ceiling(found)),
        sqnr,
    )


def short_path(path: str) -> str:
    """A path without its settings, which are in the result file."""
    return path.partition(":")[0]


def _means(result: GpuResult, rows: int) -> str:
    """Geometric means over the matrices, a contender."""
    names = dict.fromkeys(found.contender for found in result.products if found.contender != DENSE)
    means = []
    for name in names:
        mine = [found for found in result.products if (found.contender, found.rows) == (name, rows)]
        ratios = [ratio for found in mine if (ratio := result.speedup(found))]
        if ratios:
            means.append(f"{name} {geometric_mean(ratios):.2f}x (least {min(ratios):.2f}x, {len(ratios)} matrices)")
    return f"Geometric mean at {rows} row{'s' if rows > 1 else ''} of x: {', '.join(means)}." if means else ""


def geometric_mean(values: Sequence[float]) -> float:
    return exp(sum(log(value) for value in values) / len(values))


def crossover_table(result: GpuResult) -> str:
    """Speedup over dense at every number of rows, with the path that was taken where it changes along a line."""
    counts = sorted({found.rows for found in result.products})
    names = dict.fromkeys(found.contender for found in result.products if found.contender != DENSE)
    if len(counts) < 2:
        return ""
    head = ["matrix", "contender", *(f"{count} rows" for count in counts)]
    lines = [markdown_row(head), "|" + " --- |" * len(head)]
    for shape in dict.fromkeys(found.shape for found in result.products):
        for name in names:
            cells = [_crossing(result, shape, count, name) for count in counts]
            lines.append(markdown_row([f"{shape[0]} x {shape[1]}", name, *cells]))
    return "\n".join(lines)


def _crossing(result: GpuResult, shape: tuple[int, int], rows: int, name: str) -> str:
    found = result.product(shape, rows, name)
    if found is None or (ratio := result.speedup(found)) is None:
        return ""
    return f"{ratio:.2f}x ({short_path(found.path)})" if found.path else f"{ratio:.2f}x"


def decode_table(result: GpuResult) -> str:
    """Whole steps: milliseconds a token, bytes, share of the copy bandwidth, speedup and its byte ceiling."""
    head = (
        "model",
        "contender",
        "batch",
        "context",
        "ms a step",
        "tokens/s",
        "GB/s",
        "of copy",
        "speedup",
        "byte ceiling",
    )
    lines = [markdown_row(head), "|" + " --- |" * len(head)]
    lines += [markdown_row(_decode(result, found)) for found in result.decodes]
    return "\n".join(lines)


def _decode(result: GpuResult, found: Decode) -> tuple[str, ...]:
    start = (found.model, found.contender, str(found.batch), str(found.context))
    if found.median_ms is None or found.gb_per_s is None:
        return (*start, f"not measured: {found.reason}", "", "", "", "", "")
    return (
        *start,
        f"{found.median_ms:.3f}",
        f"{1e3 * found.batch / found.median_ms:.0f}",
        f"{found.gb_per_s:.0f}",
        f"{found.gb_per_s / result.bandwidth:.0%}",
        _times(result.decode_speedup(found)),
        _times(result.decode_ceiling(found)),
    )


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"
