"""The static variant: shapes, parity with torch for every family, what it refuses, and DeepSparse itself."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from tailcut.errors import InputError
from tailcut.export.static import export_deepsparse
from tailcut.manifest import verify

Model = Callable[..., Path]
SPLITS = {"LayerNormalization", "Gelu", "Cos", "Sin", "Range", "Where"}  # DeepSparse hands these back
WIDE = {"sliding_window": 32}  # at least the context


def sliding(family: str) -> dict[str, int]:
    return WIDE if family in ("mistral", "gemma2", "gemma3_text") else {}


def test_every_family_agrees_with_torch(family: str, sparse_model: Model, tmp_path: Path) -> None:
    manifest = export_deepsparse(sparse_model(family, **sliding(family)), tmp_path / "s", context=32, prompt=8)
    assert manifest.details["parity_positions"] == 12  # prompt 8, then 4 cached steps
    assert manifest.sparsity == pytest.approx(0.7, abs=0.01)
    assert verify(tmp_path / "s") == manifest
    for name in ("decode.onnx", "prefill.onnx"):
        model = onnx.load(tmp_path / "s" / name, load_external_data=False)
        assert not SPLITS & {node.op_type for node in model.graph.node}
        assert (model.ir_version, model.opset_import[0].version) == (8, 17)


def test_shapes_are_fixed_and_the_data_file_is_shared(sparse_model: Model, tmp_path: Path) -> None:
    export_deepsparse(sparse_model("llama"), tmp_path / "s", context=16, prompt=4, check=False)
    shapes = {}
    for name in ("decode", "prefill"):
        session = onnxruntime.InferenceSession(str(tmp_path / "s" / f"{name}.onnx"))
        shapes[name] = {v.name: v.shape for v in (*session.get_inputs(), *session.get_outputs())}
    assert shapes["decode"]["attention_bias"] == [1, 1, 1, 16]
    assert shapes["decode"]["past_key_values.2.key"] == [1, 2, 15, 8]
    assert shapes["decode"]["new.2.value"] == [1, 2, 1, 8]
    assert shapes["decode"]["logits"] == [1, 1, 258]
    assert shapes["prefill"]["attention_bias"] == [1, 1, 4, 4]
    assert shapes["prefill"]["new.0.key"] == [1, 2, 4, 8]
    assert not any("past" in name for name in shapes["prefill"])
    data = (tmp_path / "s" / "model.onnx.data").stat().st_size
    assert data < 1.3 * (258 * 32 * 2 + 3 * 32 * (2 * 32 + 2 * 16 + 3 * 64)) * 4 + 4096 * 40  # once, plus alignment


def test_cache_slots_may_be_in_any_order(sparse_model: Model, tmp_path: Path) -> None:
    export_deepsparse(sparse_model("llama"), tmp_path / "s", context=16, prompt=4, check=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "s" / "decode.onnx"))
    rng = np.random.default_rng(0)
    feeds = {v.name: rng.standard_normal(v.shape).astype(np.float32) for v in session.get_inputs() if "past" in v.name}
    fixed = {
        "input_ids": np.array([[5]]),
        "position_ids": np.array([[9]]),
        "attention_bias": np.zeros((1, 1, 1, 16), np.float32),
    }
    order = rng.permutation(15)
    (straight,) = session.run(["logits"], feeds | fixed)
    (shuffled,) = session.run(["logits"], {name: array[:, :, order] for name, array in feeds.items()} | fixed)
    np.testing.assert_allclose(straight, shuffled, atol=1e-4)  # sums over slots in another order


@pytest.mark.parametrize(
    ("kind", "overrides", "context", "prompt", "sentence"),
    [
        ("llama", {}, 8, 8, "prompt must have at least 1 and fewer than context=8"),
        ("llama", {}, 8, 0, "prompt must have at least 1"),
        ("llama", {}, 1024, 8, "passes the model's 128 positions"),
        ("mistral", {}, 32, 8, "no sliding window: choose a context of at most 8"),
        ("llama", {"hidden_size": 40, "head_dim": 10}, 32, 8, "multiples of 16"),
    ],
)
def test_refusals(
    kind: str, overrides: dict[str, int], context: int, prompt: int, sentence: str, tiny_model: Model, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=sentence):
        export_deepsparse(tiny_model(kind, **overrides), tmp_path / "s", context=context, prompt=prompt)
    assert list(tmp_path.iterdir()) == []


RUN = """
import sys, numpy as np
from deepsparse import Engine
graph, data = sys.argv[1:3]
ref = np.load(data)
engine = Engine(graph, batch_size=1, num_cores=1)
found = engine.run([ref["i_" + name] for name in engine.input_names])
assert engine.fraction_of_supported_ops == 1.0, engine.fraction_of_supported_ops
print(max(float(np.abs(a - ref["o_" + n]).max()) for n, a in zip(engine.output_names, found)))
"""


def deepsparse_python() -> str:
    """The interpreter of the evaluation environment, or a skip that says what is missing."""
    from tailcut.bench.engines import deepsparse

    reason = deepsparse.available()
    if reason is not None:
        pytest.skip(f"DeepSparse is not here: {reason}")
    return deepsparse.where()


@pytest.mark.deepsparse
@pytest.mark.parametrize("graph", ["decode", "prefill"])
@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "opt", "gpt_neox"])
def test_deepsparse_takes_the_whole_graph(kind: str, graph: str, sparse_model: Model, tmp_path: Path) -> None:
    python = deepsparse_python()
    export_deepsparse(sparse_model(kind, **sliding(kind)), tmp_path / "s", context=32, prompt=8, check=False)
    path = tmp_path / "s" / f"{graph}.onnx"
    session, rng = onnxruntime.InferenceSession(str(path)), np.random.default_rng(0)
    feeds = {}
    for value in session.get_inputs():
        if value.type == "tensor(int64)":
            feeds[value.name] = rng.integers(0, 30, value.shape)
        else:
            feeds[value.name] = rng.standard_normal(value.shape).astype(np.float32)
    want = dict(zip([v.name for v in session.get_outputs()], session.run(None, feeds), strict=True))
    np.savez(tmp_path / "ref.npz", **{f"i_{k}": v for k, v in feeds.items()}, **{f"o_{k}": v for k, v in want.items()})
    done = subprocess.run(
        [python, "-c", RUN, str(path), str(tmp_path / "ref.npz")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "NM_DISABLE_ANALYTICS": "1"},
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert float(done.stdout.splitlines()[-1]) < 1e-4  # float32 sums of width 32 to 64 at values of order 1


def test_deepsparse_is_not_needed_to_export() -> None:
    assert "deepsparse" not in sys.modules


def test_every_family_has_a_graph_for_the_engine_s_cache(family: str, sparse_model: Model, tmp_path: Path) -> None:
    """cached.onnx is checked against torch when it is written; here: its shapes, and a head for every query head."""
    model = sparse_model(family, **dict.fromkeys(sliding(family), 64))
    export_deepsparse(model, tmp_path / "s", context=64, prompt=8, engine_cache=True)
    graph = onnx.load(tmp_path / "s" / "cached.onnx", load_external_data=False)
    assert not SPLITS & {node.op_type for node in graph.graph.node}
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.graph.input, *graph.graph.output)
    }
    heads = shapes["past_key_values.0.key"][1]
    assert heads == 4  # of the tiny models' queries, whatever their key/value heads
    assert shapes["past_key_values.2.value"][2] == 63
    assert shapes["present.2.value"] == [1, heads, 64, shapes["past_key_values.2.value"][3]]
    assert verify(tmp_path / "s").details["engine_cache"] is True


def test_the_engine_s_graph_shares_all_but_repeated_projections(sparse_model: Model, tmp_path: Path) -> None:
    model = sparse_model("llama")
    for name, both in (("one", False), ("two", True)):
        export_deepsparse(model, tmp_path / name, context=64, prompt=4, engine_cache=both, check=False)
    assert not (tmp_path / "one" / "cached.onnx").exists()
    sizes = [(tmp_path / name / "model.onnx.data").stat().st_size for name in ("one", "two")]
    repeated = 3 * 2 * 32 * 32 * 4  # k and v of three blocks, now with the rows of four heads of 8
    assert repeated <= sizes[1] - sizes[0] <= repeated + 4096 * 7


@pytest.mark.parametrize("context", [16, 63, 65, 80, 96, 100])
def test_a_cache_of_the_engine_s_is_refused_unless_a_multiple_of_64(
    context: int, sparse_model: Model, tmp_path: Path
) -> None:
    with pytest.raises(
        InputError, match=f"with a context of {context} its logits go wrong, .*a multiple of 64, or leave"
    ):
        export_deepsparse(sparse_model("llama"), tmp_path / "s", context=context, prompt=8, engine_cache=True)
    assert not (tmp_path / "s").exists()
    export_deepsparse(sparse_model("llama"), tmp_path / "s", context=context, prompt=8, check=False)  # our own cache
    assert not (tmp_path / "s" / "cached.onnx").exists()
