"""Times of a layer's paths on its GPU: CUDA graphs over copies of the weights, replayed in turn."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Final

import torch
from torch import Tensor

from tailcut.errors import InputError, TailcutError
from tailcut.kernels.gpu.layer import Layer
from tailcut.kernels.gpu.paths import run_path

_LOG = logging.getLogger(__name__)
_ROUNDS: Final = 7
_LEAST_LAUNCHES: Final = 8  # in one graph: starting a replay costs microseconds
_MOST_COPIES: Final = 64
_OWN: Final = ("tiles", "dense", "cusparselt", "bitmask")  # paths named as the form they read


def time_paths(layer: Layer, rows: int, paths: Sequence[str]) -> dict[str, float]:
    """Median microseconds of each path that runs, for x [rows, in]; a path that fails is left out, with a log line."""
    with torch.cuda.device(layer.device):
        x = torch.randn(rows, layer.shape[1], device=layer.device).to(layer.dtype)
        pools: dict[str, list[Layer]] = {}
        graphs: dict[str, tuple[torch.cuda.CUDAGraph, int]] = {}
        for path in paths:
            form = _form(layer, path.partition(":")[0])
            if form not in pools:
                pools[form] = _copies(layer, form)
            try:
                graphs[path] = _capture([_call(path, x, copy) for copy in pools[form]])
            except (RuntimeError, TailcutError) as error:  # a plan or a form that this GPU refuses is no candidate
                _LOG.info("%s for %d rows of %s: %s", path, rows, layer.shape, error)
        return _in_turn(graphs)


def _form(layer: Layer, path: str) -> str:
    """The name of the form that a path reads."""
    if path in _OWN:
        return path
    return next(form for form in ("two_four", "tiles", "bitmask") if getattr(layer, form) is not None)


def _call(path: str, x: Tensor, layer: Layer) -> Callable[[], Tensor]:
    return lambda: run_path(path, x, layer)


def _copies(layer: Layer, form: str) -> list[Layer]:
    """Layers with copies of one form, together at least twice the L2 cache, so that none is cached when read again."""
    kept = getattr(layer, form)
    size = layer.shape[0] * layer.shape[1] * 2 if isinstance(kept, Tensor) else kept.nbytes
    cache = torch.cuda.get_device_properties(layer.device).L2_cache_size
    count = min(_MOST_COPIES, max(2, -(-2 * cache // size)))
    return [_copy(layer, form) for _ in range(count)]


def _copy(layer: Layer, form: str) -> Layer:
    """A layer with only this form, its tensors cloned."""
    if form == "dense" and layer.dense is not None:
        return Layer(dense=layer.dense.clone())
    if form == "cusparselt" and layer.cusparselt is not None:
        return Layer(cusparselt=torch.sparse.to_sparse_semi_structured(layer.cusparselt.to_dense()))
    if form == "bitmask" and layer.bitmask is not None:
        parts = {name: part.clone() for name, part in layer.bitmask.tensors.items()}
        return Layer(bitmask=replace(layer.bitmask, **parts))  # type: ignore[arg-type]
    if form == "tiles" and layer.tiles is not None:
        return Layer(tiles=replace(layer.tiles, data=layer.tiles.data.clone()))
    if layer.two_four is None:
        raise InputError(f"this layer keeps no form {form!r}")
    held = layer.two_four
    scales = None if held.scales is None else held.scales.clone()
    return Layer(replace(held, values=held.values.clone(), meta=held.meta.clone(), scales=scales))


def _capture(calls: Sequence[Callable[[], Tensor]]) -> tuple[torch.cuda.CUDAGraph, int]:
    """One graph of all calls (at least 8 launches), replayed once; with the number of launches."""
    calls = list(calls) * -(-_LEAST_LAUNCHES // len(calls))
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls[:2]:  # compiles outside of the capture
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    graph.replay()
    torch.cuda.synchronize()
    return graph, len(calls)


def _in_turn(graphs: dict[str, tuple[torch.cuda.CUDAGraph, int]]) -> dict[str, float]:
    samples: dict[str, list[float]] = {path: [] for path in graphs}
    for _ in range(_ROUNDS):
        for path, (graph, launches) in graphs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            samples[path].append(begin.elapsed_time(end) * 1e3 / launches)
    return {path: round(median(found), 3) for path, found in samples.items()}
