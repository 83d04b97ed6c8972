"""The GGUF file, read back by the gguf package where it is installed, and run by llama.cpp where that is."""

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tailcut.bench import gguf, variants
from tailcut.bench.engines import load
from tailcut.bench.many import LIMITS, Row, reference, relative_l2
from tailcut.bench.worker import Worker
from tailcut.errors import InputError
from tailcut.results import Workload

WORK = Workload(prompt_tokens=8, new_tokens=4, context=32, threads=1)


@pytest.fixture(scope="module", params=["bitmask", "dense"])
def package(
    request: pytest.FixtureRequest, tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Joined projections in the first layout, single ones in the second."""
    from tailcut.export.run import export

    out = tmp_path_factory.mktemp("packages") / "dense"
    export(tiny_model("llama", hidden_size=128, intermediate_size=256), out, layout=request.param, check=False)
    return out


def test_a_head_of_the_file_is_what_the_format_says() -> None:
    stream = io.BytesIO()
    rows = np.arange(64, dtype=np.float32).reshape(2, 32)
    tensors = [gguf.Tensor("norm", (3,), 0, lambda: np.ones(3, np.float32)), gguf.Tensor("w", (2, 32), 8, lambda: rows)]
    gguf.write(stream, {"general.architecture": "llama", "n": 7, "eps": 0.5}, tensors)
    data = stream.getvalue()
    assert data[:4] == b"GGUF"
    assert struct.unpack("<IQQ", data[4:24]) == (3, 2, 3)
    assert len(data) % 32 == 0
    assert data.endswith(b"\0" * (-(2 * 34) % 32))  # two blocks of 34 bytes, then padding


def test_every_tensor_comes_back(package: Path, tmp_path: Path) -> None:
    reader = pytest.importorskip("gguf", reason="the gguf package reads the file back")
    gguf.convert(package, tmp_path, 8)
    found = reader.GGUFReader(tmp_path / gguf.FILE_NAME)
    tensors = {tensor.name: tensor for tensor in found.tensors}
    assert len(tensors) == 3 + 9 * 3
    assert found.fields["llama.attention.head_count_kv"].contents() == 2
    from tailcut.bench.stored import open_graph

    stored = open_graph(package / "model.onnx")
    down = tensors["blk.1.ffn_down.weight"]
    want = stored.array("model.layers.1.mlp.down_proj.weight").T
    got = reader.quants.dequantize(down.data, down.tensor_type)
    assert relative_l2(got, want) < 0.01  # half a step of 1/127 of each block's maximum
    key = tensors["blk.0.attn_k.weight"]
    assert tuple(key.shape) == (128, 64)  # fastest first: 128 inputs, 2 heads of 32


def test_query_rows_become_neighbouring_pairs() -> None:
    rows = np.arange(8, dtype=np.float32)[:, None]  # two heads of width 4: halves (0, 1) and (2, 3)
    assert gguf._neighbours(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "gpt2"}, "only the llama family"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "plain rotary"),
        ({"attention_bias": True}, "without bias"),
        ({"hidden_size": 48}, "multiple of 32"),
    ],
)
def test_what_cannot_be_written_is_said(change: dict[str, object], reason: str) -> None:
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 64}
    assert gguf.unfit(config) is None
    assert reason in str(gguf.unfit(config | change))


def test_a_sparse_package_is_refused(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    from tailcut.export.run import export

    export(tiny_model("llama"), tmp_path / "int8", weights="int8", head="int8", check=False)
    with pytest.raises(InputError, match="dense float32 package"):
        gguf.convert(tmp_path / "int8", tmp_path, 8)


@pytest.mark.parametrize(("engine", "weights"), [("llamacpp-q8", "int8"), ("llamacpp-q4", "int4")])
def test_llamacpp_computes_the_model(package: Path, engine: str, weights: str) -> None:
    chosen = load(engine)
    if reason := chosen.available():
        pytest.skip(f"{engine}: {reason}")
    check_engine(package, engine, weights)


@pytest.mark.parametrize(("engine", "weights"), [("openvino-int8", "int8"), ("openvino-int4", "int4")])
def test_openvino_computes_the_model(package: Path, engine: str, weights: str) -> None:
    chosen = load(engine)
    if reason := chosen.available():
        pytest.skip(f"{engine}: {reason}")
    check_engine(package, engine, weights)


def check_engine(package: Path, name: str, weights: str) -> None:
    """Its variant is made, its logits are the model's within the rounding, its steps and prompts can be timed."""
    engine, row = load(name), Row("onnxruntime", package, "float32")
    variants.prepare(name, package)
    assert engine.unfit(package, WORK) is None
    launch = engine.launch(package, "decode", WORK)
    tokens = np.random.default_rng(0).integers(0, 258, (1, 32), np.int64)
    with Worker(launch) as worker:
        worker.ask("open", **launch.settings)
        _, arrays = worker.ask("logits", {"tokens": tokens[:, :8]})
        settings = {"context": 32, "steps": 3, "warmup": 1, "seed": 0}
        times = [worker.ask("decode", {"tokens": tokens}, **settings)[1]["ms"] for _ in range(2)]
        _, again = worker.ask("logits", {"tokens": tokens[:, :8]})
    np.testing.assert_array_equal(again["logits"], arrays["logits"])  # timing leaves nothing behind
    assert [part.size for part in times] == [3, 3]
    want = ask_reference(row, tokens[:, :8])
    assert 1e-3 < relative_l2(arrays["logits"], want) < LIMITS[weights]


def ask_reference(row: Row, tokens: np.ndarray) -> np.ndarray:
    launch = load(row.engine).launch(row.package, "prefill", WORK)
    with Worker(launch) as worker:
        worker.ask("open", **launch.settings)
        return worker.ask("logits", {"tokens": tokens})[1]["logits"]


def test_the_reference_is_kept_beside_the_package(package: Path) -> None:
    row = Row("onnxruntime", package, "float32")
    first = reference(row, WORK)
    (kept,) = package.parent.glob("dense.logits-*.npy")
    before = kept.stat().st_mtime_ns
    np.testing.assert_array_equal(reference(row, WORK), first)
    assert kept.stat().st_mtime_ns == before
