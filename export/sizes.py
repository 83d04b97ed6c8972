"""What a package's matrices take and what storing them lost, for the manifest's details."""

from collections import Counter

from tailcut.export.fused import MAX_POSITIONS, needs_onnxruntime, positions_held, why_not
from tailcut.export.layouts import Linears
from tailcut.kernels.stored import module_names

Facts = dict[str, str | int | float | bool | None]


def facts(linears: Linears) -> Facts:
    """Layout and precision, bytes of the block linears and of the head, error of the stored weights."""
    storage, spec = linears.storage, linears.weights.spec
    blocks, head = linear_bytes(linears), head_bytes(linears)
    weights = sum(layer.shape[0] * layer.shape[1] for name, layer in linears.realised.items() if name in spec.linears)
    found: Facts = {
        "layout": storage.layout,
        "precision": _precision(linears),
        "head_precision": storage.head,
        "activation_bits": storage.activation_bits,
        "linear_bytes": blocks,
        "linear_bits_per_weight": 8 * blocks / weights,
        "head_bytes": head,
        "head_share": head / (head + blocks),  # of the bytes that every decoded token reads
        "fused_graph": why_not(spec, storage) or "fused.onnx",
    }
    if why_not(spec, storage) is None:
        found["kv_cache"] = storage.kv_cache
        found["fused_positions"] = positions_held(spec)
        found["fused_positions_bound"] = MAX_POSITIONS
        found["fused_needs_onnxruntime"] = needs_onnxruntime(spec)
    return found | _errors(linears)


def _precision(linears: Linears) -> str:
    """Of the block linears: the one they share, or `mixed` and how many have which."""
    counts = Counter(linears.precision(module) for module in linears.weights.spec.linears)
    if len(counts) == 1:
        return next(iter(counts))
    return "mixed: " + ", ".join(f"{count} {precision}" for precision, count in sorted(counts.items()))


def linear_bytes(linears: Linears) -> int:
    """Bytes of the matrices inside the blocks: values, masks, scales."""
    inside = set(linears.weights.spec.linears)
    return sum(made.size_bytes for name, made in linears.written.items() if set(module_names(name)) <= inside)


def head_bytes(linears: Linears) -> int:
    """Bytes of the output head; of the table when it is tied."""
    spec = linears.weights.spec
    if spec.head in linears.written:
        return linears.written[spec.head].size_bytes
    if spec.embedding in linears.written:
        return linears.written[spec.embedding].size_bytes
    return linears.graph.data.size(f"{spec.embedding}.weight")


def _errors(linears: Linears) -> Facts:
    """Relative L2 error of the block linears: the largest and the median of a matrix."""
    errors = sorted(linears.realised[name].error for name in linears.weights.spec.linears)
    if not any(errors):
        return {}
    return {"weight_error_median": errors[len(errors) // 2], "weight_error_largest": errors[-1]}
