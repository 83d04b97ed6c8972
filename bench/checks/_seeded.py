"""Made-up results, answers and packages whose truth is known: what the checks' self-tests are made of."""

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tailcut.accuracy import ModelAnswers, TaskFile, ZeroShot, rows_of
from tailcut.allocation import NM, LayerPlan
from tailcut.bench.checks import Subject
from tailcut.bench.checks._package import manifest_hash
from tailcut.bench.stats import mean_exp_ratio, median_ratio
from tailcut.bitmask import pack
from tailcut.kernels.package import MODEL_NAME
from tailcut.kernels.stored import DOMAIN
from tailcut.manifest import Manifest, RealisedLayer, file_entries, write_manifest
from tailcut.results import (
    BandwidthPoint,
    BenchResult,
    Blocks,
    Engagement,
    EngineResult,
    Machine,
    PackageFacts,
    Quality,
    Roofline,
    Side,
    Workload,
)
from tailcut.windows import perplexity

_WINDOWS: Final = 40
_SCORED: Final = 511  # tokens a window
_MODULE: Final = "model.layers.0.mlp.down_proj"


@lru_cache(maxsize=64)  # its bootstraps are what the self-test takes longest for
def seeded_result(
    *,
    speedup: float,
    seed: int = 7,
    prefill: float | None = None,
    cost: float = 1.0,
    sparsity: float = 0.5,
    gap: float | None = None,
    ppl_ratio: float | None = None,
    kl: float | None = None,
    noise: float = 0.05,
) -> BenchResult:
    """A made-up result with realistic noise (`noise` between blocks, 2 % within) and known true values.

    prefill: its speedup, as decoding's if None. cost: memory and size over dense. ppl_ratio or kl: with a quality.
    """
    rng = np.random.default_rng(seed)
    dense, sparse = _blocks(10.0, noise, rng), _blocks(10.0 / speedup, noise, rng)
    first, second = _blocks(100.0, noise, rng), _blocks(100.0 / (prefill or speedup), noise, rng)
    line = Roofline(weight_bytes=10**8, kv_bytes=10**6, estimate=False, gb_per_s=10.1, share=0.505)
    side = Side("dense", "", 1, 0.0, first, dense, (0.0,) * 8, 10**9, 100.0, line, {}, gap)
    half = replace(line, weight_bytes=line.weight_bytes // 2, kv_bytes=line.kv_bytes // 2)
    other = replace(
        side, role="sparse", prefill_ms=second, decode_ms=sparse, peak_rss_bytes=int(cost * 10**9), roofline=half
    )
    engine = EngineResult(
        engine="seeded",
        status="measured",
        engagement=Engagement(proven=True, reason="seeded"),
        dense=side,
        sparse=replace(other, tokens_per_second=100.0 * speedup),
        decode_speedup=median_ratio(dense, sparse, seed=seed),
        prefill_speedup=median_ratio(first, second, seed=seed),
        byte_ratio=2.0,
    )
    facts = PackageFacts("", 500_000_000, sparsity, 0.8 * sparsity, 125_000_000)
    return BenchResult(
        machine=Machine("seeded", (), 1, 1, 1, 1, None, "", {}, None, "seeded"),
        bandwidth=(BandwidthPoint(1, 20.0, (20.0,)),),
        workload=Workload(),
        dense=facts,
        sparse=replace(facts, bytes_on_disk=int(cost * facts.bytes_on_disk)),
        engines=(engine,),
        quality=() if ppl_ratio is None and kl is None else (_quality(ppl_ratio or 1.02, kl, rng),),
    )


def _blocks(milliseconds: float, noise: float, rng: np.random.Generator) -> Blocks:
    factors = np.exp(rng.normal(0, noise, (8, 1)) + rng.normal(0, 0.02, (8, 32)))
    return tuple(tuple(float(ms) for ms in row) for row in milliseconds * factors)


def _quality(ratio: float, kl: float | None, rng: np.random.Generator) -> Quality:
    dense = _SCORED * np.random.default_rng(0).normal(3.0, 0.3, _WINDOWS)  # one text, whatever the seed
    sparse = dense + _SCORED * rng.normal(np.log(ratio), 0.05, _WINDOWS)
    spread = () if kl is None else tuple(float(value) for value in kl * np.exp(rng.normal(0, 0.3, _WINDOWS)))
    return Quality(
        text="seeded",
        text_sha256="",
        joining="",
        context=_SCORED + 1,
        bos=None,
        tokens_scored=_SCORED * _WINDOWS,
        dense_perplexity=perplexity(dense, _SCORED),
        sparse_perplexity=perplexity(sparse, _SCORED),
        ratio=mean_exp_ratio(dense, sparse, _SCORED),
        dense_nll=tuple(map(float, dense)),
        sparse_nll=tuple(map(float, sparse)),
        kl_nats=spread,
    )


def seeded_answers(lost: float) -> ZeroShot:
    """A dense model right on 70 % of 1000 items of each of two tasks, and one that lost the fraction `lost` of all items."""
    count, kept = 1000, 700
    dense = "1" * kept + "0" * (count - kept)
    gone = round(lost * count)
    sparse = "0" * (gone + 10) + "1" * (kept - gone - 10) + "1" * 10 + "0" * (count - kept - 10)
    models = tuple(
        ModelAnswers(name, name, sparsity, {task: {"acc": right} for task in ("one", "two")})
        for name, sparsity, right in (("dense", None, dense), ("sparse", 0.5, sparse))
    )
    tasks = {task: TaskFile(f"{task}.jsonl", "", count, count, "1") for task in ("one", "two")}
    return ZeroShot(tasks, models, rows_of(models), {}, {})


def seeded_on_disk(folder: Path, *, promised: float = 0.5, broken: bool = False) -> Subject:
    """A package of one 2:4 matrix [8, 16] and a result that measured it.

    promised: the sparsity that its manifest states. broken: one group keeps three weights, another one.
    """
    folder.mkdir(parents=True)
    weight = np.tile(np.asarray([1, 2, 0, 0], np.float32), (8, 4))
    if broken:
        weight[3, 4:12] = [1, 2, 3, 0, 4, 0, 0, 0]
    onnx.save(_graph(weight), folder / MODEL_NAME)
    (folder / "config.json").write_text(json.dumps({"model_type": "seeded"}))
    layer = RealisedLayer(LayerPlan(NM(2, 4)), (8, 16), round(promised * weight.size))
    manifest = Manifest("package", "tailcut gate --self-test", {}, {_MODULE: layer}, weight.size, file_entries(folder))
    write_manifest(manifest, folder)
    result = seeded_result(speedup=2.0)
    facts = replace(result.sparse, sha256=manifest_hash(folder), sparsity=manifest.sparsity)
    return Subject(replace(result, sparse=facts), "seeded", sparse=folder)


def _graph(weight: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> onnx.ModelProto:
    """y = x W^T with W stored as a bitmask."""
    packed = pack(weight)
    shape = np.asarray(packed.shape, np.int64)
    parts = {"values": packed.values, "mask": packed.mask, "shape": shape}
    stored = [numpy_helper.from_array(array, f"{_MODULE}.weight.{part}") for part, array in parts.items()]
    node = helper.make_node("SparseMatMul", ["x", *(one.name for one in stored)], ["y"], name=_MODULE, domain=DOMAIN)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", None]) for name in ("x", "y")]
    graph = helper.make_graph([node], "seeded", ends[:1], ends[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)])
