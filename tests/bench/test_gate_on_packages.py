"""The gate on real packages: a tiny model cut to 2:4, exported, measured; then one seeded regression of each check."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tailcut import codec
from tailcut.accuracy import ModelAnswers, TaskFile, ZeroShot, rows_of
from tailcut.allocation import NM, Allocation, LayerPlan
from tailcut.bench import checks, engines
from tailcut.bench.checks import Subject
from tailcut.bench.gate import judge
from tailcut.bench.load_file import read_load
from tailcut.bench.load_run import bench_load
from tailcut.bench.load_values import LoadPlan, LoadResult, Visit
from tailcut.bench.policy import Policy
from tailcut.bench.quality import package_quality
from tailcut.bench.result_file import read_result
from tailcut.bench.run import bench
from tailcut.bench.stats import median_ratio
from tailcut.kernels.package import locate
from tailcut.manifest import file_entries, read_manifest, write_manifest
from tailcut.results import BenchResult, Blocks, EngineResult, Ratio, Workload
from tailcut.windows import EvalText

WORKLOAD = Workload(prompt_tokens=8, new_tokens=8, context=32, blocks=3, prefill_blocks=3)
LOAD = LoadPlan(streams=(2,), contexts=(24,), prompt_tokens=6, new_tokens=4, requests=5, blocks=3, steps=4)
TEXT = EvalText(
    "It was a bright cold day in spring, and the clocks were striking again. " * 20, "prose", "f00", "as is"
)


@dataclass(frozen=True)
class Real:
    """Two packages of one model, what they were exported from, and what the bench measured of them."""

    dense: Path
    sparse: Path
    result: BenchResult
    load: LoadResult

    @property
    def subject(self) -> Subject:
        """With times that count: whatever the machine did meanwhile, these tests are of the gate."""
        engine, loaded = replace(self.result.engines[0], procedures=()), self.load.engines[0]
        streams = tuple(
            replace(point, loud=False, disturbed=("",) * len(point.disturbed)) if point.loud else point
            for point in loaded.streams
        )
        contexts = tuple(replace(point, procedure=None) for point in loaded.contexts)
        return Subject(
            replace(self.result, engines=(engine,)),
            sparse=self.sparse,
            dense=self.dense,
            tasks=self.answers(0.0),
            load=replace(self.load, engines=(replace(loaded, streams=streams, contexts=contexts),)),
        )

    def answers(self, lost: float) -> ZeroShot:
        """Answers of the two models that the packages were exported from: 1000 items, the fraction `lost` of them lost."""
        gone = round(1000 * lost)
        right = {"dense": "1" * 700 + "0" * 300, "sparse": "0" * gone + "1" * (700 - gone) + "0" * 300}
        prints = {"dense": self.dense, "sparse": self.sparse}
        models = tuple(
            ModelAnswers(role, read_manifest(prints[role]).source["model"], None, {"task": {"acc": right[role]}})
            for role in right
        )
        return ZeroShot({"task": TaskFile("task.jsonl", "", 1000, 1000, "1")}, models, rows_of(models), {}, {})


@pytest.fixture(scope="module")
def real(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Real:
    if reason := engines.load("tailcut").available():
        pytest.skip(reason)
    from tailcut.checkpoint import Checkpoint
    from tailcut.compress.calibration import Calibration
    from tailcut.compress.discovery import find_linears
    from tailcut.compress.run import compress
    from tailcut.export.run import export

    folder, model = tmp_path_factory.mktemp("real"), tiny_model("llama", hidden_size=64, intermediate_size=128)
    plans = {linear.name: LayerPlan(NM(2, 4)) for linear in find_linears(Checkpoint(model))}
    compress(
        model, Allocation(plans, {}), folder / "cut", pruner="magnitude", calibration=Calibration(samples=1, seqlen=8)
    )
    for source, name in ((model, "dense"), (folder / "cut", "sparse")):
        export(source, folder / name)
    dense, sparse = folder / "dense", folder / "sparse"
    patch = pytest.MonkeyPatch()
    patch.setenv("TAILCUT_BENCH_LOCK", str(folder / "lock"))
    result = bench(dense, sparse, engines=["tailcut"], workload=WORKLOAD)
    load = bench_load(dense, sparse, engines=["tailcut"], plan=LOAD)
    patch.undo()
    quality = package_quality(dense, sparse, TEXT, context=32, limit=12, workload=WORKLOAD, kl=True)
    return Real(dense, sparse, replace(result, quality=(quality,)), load)


# What the tiny pair truly holds. It fits in cache and its steps are mostly overhead, so speeds are only bounded.
TRUE: dict[str, float | bool | str] = {
    "min_speedup": 0.001,
    "max_tpot_ms": 10_000.0,
    "max_ttft_ms": 10_000.0,
    "max_ttft_ratio": 1000.0,
    "min_tokens_per_second": 0.01,
    "max_rss_ratio": 10.0,
    "max_size_ratio": 0.95,
    "min_sparsity": 0.5,
    "pattern": "2:4",
    "max_ppl_ratio": 3.0,
    "max_kl": 3.0,
    "min_task_recovery": 0.95,
    "max_logit_gap": 1e-3,
    "verify_files": True,
    "max_speedup_over_bytes": 100.0,
    "min_load_tokens_per_second": 0.01,
    "min_load_speedup": "0.001 at 2",
    "max_load_ttft_p95_ms": "10000 at 2",
    "max_load_ttft_p95_ratio": 1000.0,
    "max_load_itl_p95_ms": 10_000.0,
    "max_load_itl_p95_ratio": "1000 at 2",
    "max_context_tpot_ms": "10000 at 24",
    "min_context_speedup": 0.001,
}


def one_engine(subject: Subject, **changes: Any) -> Subject:
    engine = replace(subject.result.engines[0], **changes)
    return replace(subject, result=replace(subject.result, engines=(engine,)))


def with_times(subject: Subject, change: Callable[[Blocks], Blocks]) -> Subject:
    """The sparse side's times changed, and everything that the bench computes from them."""
    engine = subject.result.engines[0]
    assert engine.dense is not None
    assert engine.sparse is not None
    sparse = replace(
        engine.sparse, decode_ms=change(engine.sparse.decode_ms), prefill_ms=change(engine.sparse.prefill_ms)
    )
    decode = median_ratio(engine.dense.decode_ms, sparse.decode_ms)
    prefill = median_ratio(engine.dense.prefill_ms, sparse.prefill_ms)
    return one_engine(subject, sparse=sparse, decode_speedup=decode, prefill_speedup=prefill)


def slower(subject: Subject) -> Subject:
    return with_times(subject, lambda blocks: tuple(tuple(1e9 * ms for ms in block) for block in blocks))


def held_up(subject: Subject) -> Subject:
    """The sparse side's times under load, all of them."""
    assert subject.load is not None
    engine = subject.load.engines[0]
    points = []
    for point in engine.streams:
        assert point.sparse is not None
        visits = tuple((late(first), late(second)) for first, second in point.sparse.visits)
        points.append(replace(point, sparse=replace(point.sparse, visits=visits)))
    steps = tuple(
        replace(point, sparse_ms=tuple(tuple(1e9 * ms for ms in block) for block in point.sparse_ms))
        for point in engine.contexts
    )
    worse = replace(engine, streams=tuple(points), contexts=steps)
    return replace(subject, load=replace(subject.load, engines=(worse,)))


def late(visit: Visit) -> Visit:
    first, gaps = (tuple(1e9 * ms for ms in times) for times in (visit.ttft_ms, visit.itl_ms))
    return replace(visit, seconds=1e9 * visit.seconds, ttft_ms=first, itl_ms=gaps)


def test_true_claims_pass(real: Real, tmp_path: Path) -> None:
    verdict = judge(real.subject, Policy(TRUE))
    assert verdict.outcome == "pass", [check.sentence for check in verdict.checks if check.outcome != "pass"]
    assert {check.name for check in verdict.checks} >= {"sparse kernel engaged", "logits of the export to torch's"}
    codec.save(real.result, tmp_path / "r.json")  # and what the bench writes is what the gate reads
    assert read_result(tmp_path / "r.json") == real.result
    codec.save(real.load, tmp_path / "l.json")
    assert read_load(tmp_path / "l.json") == real.load


def copied(real: Real, tmp_path: Path) -> Subject:
    """The sparse package in a place where it may be damaged."""
    shutil.copytree(real.sparse, tmp_path / "sparse")
    return replace(real.subject, sparse=tmp_path / "sparse")


def republished(subject: Subject) -> Subject:
    """A package that was changed and signed again, and a result that measured just that."""
    from tailcut.bench.checks._package import manifest_hash

    package = subject.sparse
    assert package is not None
    write_manifest(replace(read_manifest(package), files=file_entries(package)), package)
    facts = replace(subject.result.sparse, sha256=manifest_hash(package))
    return replace(subject, result=replace(subject.result, sparse=facts))


def denser(subject: Subject) -> Subject:
    """The first mask byte of a matrix, two groups of four inputs: three weights kept in one and one in the other."""
    assert subject.sparse is not None
    model = onnx.load(subject.sparse / "model.onnx", load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == "SparseMatMul")
    mask = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[2])
    start = locate(mask, subject.sparse).offset
    with (subject.sparse / "model.onnx.data").open("r+b") as stream:
        stream.seek(start)
        assert stream.read(1)[0].bit_count() == 4
        stream.seek(start)
        stream.write(bytes([0b0001_0111]))
    return republished(subject)


def fewer_zeros(subject: Subject) -> Subject:
    """The manifest promises a zero more than the matrix holds."""
    package = subject.sparse
    assert package is not None
    manifest = read_manifest(package)
    name, layer = next(iter(manifest.layers.items()))
    layers = {**manifest.layers, name: replace(layer, zeros=layer.zeros + 1)}
    write_manifest(replace(manifest, layers=layers), package)
    return republished(subject)


def flipped(subject: Subject) -> Subject:
    """One bit of the weights."""
    assert subject.sparse is not None
    data = bytearray((subject.sparse / "model.onnx.data").read_bytes())
    data[-1] ^= 1
    (subject.sparse / "model.onnx.data").write_bytes(data)
    return subject


def side_of(engine: EngineResult) -> Any:
    assert engine.sparse is not None
    return engine.sparse


def worse_text(subject: Subject) -> Subject:
    quality = subject.result.quality[0]
    nats = tuple(value + 5 * quality.context for value in quality.sparse_nll)
    far = tuple(value + 5.0 for value in quality.kl_nats)
    changed = replace(quality, sparse_nll=nats, kl_nats=far, ratio=Ratio(90.0, 80.0, 100.0, 0.95))
    return replace(subject, result=replace(subject.result, quality=(changed,)))


def heavier(subject: Subject) -> Subject:
    facts, side = subject.result.sparse, side_of(subject.result.engines[0])
    swollen = replace(
        subject, result=replace(subject.result, sparse=replace(facts, bytes_on_disk=100 * facts.bytes_on_disk))
    )
    return one_engine(swollen, sparse=replace(side, peak_rss_bytes=100 * side.peak_rss_bytes))


REGRESSIONS: dict[str, tuple[dict[str, Any], Callable[[Real, Subject], Subject]]] = {
    "speedup": ({}, lambda real, subject: slower(subject)),
    "tpot": ({}, lambda real, subject: slower(subject)),
    "ttft": ({}, lambda real, subject: slower(subject)),
    "throughput": ({}, lambda real, subject: slower(subject)),
    "memory": ({}, lambda real, subject: heavier(subject)),
    "size": ({}, lambda real, subject: heavier(subject)),
    "perplexity": ({}, lambda real, subject: worse_text(subject)),
    "divergence": ({}, lambda real, subject: worse_text(subject)),
    "tasks": ({}, lambda real, subject: replace(subject, tasks=real.answers(0.3))),
    "parity": (
        {},
        lambda real, subject: one_engine(subject, sparse=replace(side_of(subject.result.engines[0]), logits_gap=0.2)),
    ),
    "sparsity": ({}, lambda real, subject: fewer_zeros(subject)),
    "pattern": ({}, lambda real, subject: denser(subject)),
    "engagement": ({"require_engagement": True}, lambda real, subject: one_engine(subject, engagement=None)),
    "roofline": ({"max_speedup_over_bytes": 0.001}, lambda real, subject: one_engine(subject, byte_ratio=100.0)),
    "integrity": ({}, lambda real, subject: flipped(subject)),
    "under-load": ({}, lambda real, subject: held_up(subject)),
    "baseline": (
        {"min_speedup_of_baseline": 0.5, "max_tpot_of_baseline": 2.0},
        lambda real, subject: slower(replace(subject, baseline=subject.result)),
    ),
}


@pytest.mark.parametrize("name", checks.names())
def test_a_seeded_regression_fails_its_check(name: str, real: Real, tmp_path: Path) -> None:
    """Each check in its turn: real packages and measurements with one thing made worse."""
    more, seed = REGRESSIONS[name]
    own = {key: limit for key, limit in {**TRUE, **more}.items() if name in Policy({key: limit}).judged}
    assert own, f"no limit of {name} is tried"
    subject = seed(real, copied(real, tmp_path))
    found = [(check.outcome, check.sentence) for check in judge(subject, Policy(own)).checks]
    assert "fail" in [outcome for outcome, _ in found], found
    if name == "under-load":  # one regression, eight limits: each of them is broken
        assert [outcome for outcome, _ in found] == ["fail"] * len(own), found


def test_load_makes_the_real_times_undecided(real: Real) -> None:
    """Bursts that take whole blocks four times as long or a quarter: limits a fifth from the truth decide nothing."""

    def burst(blocks: Blocks) -> Blocks:
        return tuple(tuple(ms * 4.0 ** (place % 3 - 1) for ms in block) for place, block in enumerate(blocks))

    loaded = with_times(real.subject, burst)
    step, speedup = (
        float(np.median(side_of(loaded.result.engines[0]).decode_ms)),
        loaded.result.engines[0].decode_speedup,
    )
    assert speedup is not None
    limits = {"max_tpot_ms": 1.2 * step, "min_tokens_per_second": 800 / step, "min_speedup": speedup.value / 1.2}
    verdict = judge(loaded, Policy(limits))
    assert verdict.outcome == "inconclusive"
    assert [check.outcome for check in verdict.checks if check.limit is not None] == ["inconclusive"] * 3


def test_weights_in_cache_have_no_bandwidth_to_judge(real: Real) -> None:
    verdict = judge(real.subject, Policy({"max_bandwidth_share": 1.15, "min_dense_bandwidth_share": 0.5}))
    assert verdict.outcome == "inconclusive"
    assert "nearly fit in cache" in verdict.checks[0].sentence


def test_the_command_on_the_package(real: Real, tmp_path: Path, tailcut: Any) -> None:
    """The street of a release: result, policy, package, answers; then the same with one byte changed."""
    subject = copied(real, tmp_path)
    assert subject.sparse is not None
    for name, value in (("r.json", subject.result), ("a.json", real.answers(0.01)), ("l.json", subject.load)):
        codec.save(value, tmp_path / name)
    (tmp_path / "p.yaml").write_text(f"version: 1\nlimits: {json.dumps(TRUE)}\n")
    call = ("gate", tmp_path / "r.json", "--policy", tmp_path / "p.yaml", "--sparse", subject.sparse)
    more = ("--dense", real.dense, "--tasks", tmp_path / "a.json", "--load", tmp_path / "l.json")
    code, out, _ = tailcut(*call, *more)
    assert code == 0, out
    assert "counted in the package" in out
    assert "p95 time between tokens at 2 streams" in out
    flipped(subject)
    code, out, _ = tailcut(*call, *more)
    assert code == 1
    assert "sha256 differs from the manifest" in out


def test_answers_of_other_models_are_not_taken(real: Real) -> None:
    answers = real.answers(0.0)
    other = replace(answers, models=(answers.models[0], replace(answers.models[1], fingerprint="f00")))
    verdict = judge(replace(real.subject, tasks=other), Policy({"min_task_recovery": 0.5}))
    assert verdict.outcome == "fail"
    assert "no model that was asked is what sparse was exported from" in verdict.checks[0].sentence


def test_int4_and_joined_matrices_are_counted_as_their_manifest_says(real: Real, tmp_path: Path) -> None:
    """q+k+v are one matrix of nibbles: what the gate counts is what the export counted, module by module."""
    from tailcut.bench.checks._package import counted
    from tailcut.export.run import export

    for weights, layout in (("int4", "bitmask"), ("int8", "dense"), ("float16", "bitmask"), ("float32", "dense")):
        made = tmp_path / f"{weights}-{layout}"
        manifest = export(real.sparse.with_name("cut"), made, weights=weights, layout=layout, check=False)  # type: ignore[arg-type]
        found = {matrix.name: (matrix.zeros, matrix.fullest(NM(2, 4))) for matrix in counted(made)}
        assert found == {name: (layer.zeros, 2) for name, layer in manifest.layers.items()}
