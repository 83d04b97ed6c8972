"""benchmarks/cpu_rows.py: every setting at every number of rows, and chains that multiply with what they say."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tailcut.kernels import library
from tailcut.kernels.timing import random_parts

pytestmark = pytest.mark.skipif(library.problem() is not None, reason="the kernels are not compiled here")


@pytest.fixture
def cpu_rows(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("cpu_rows")


def test_every_setting_is_measured_and_shown(cpu_rows: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    sizes = ["--shapes", "96x64", "--rows", "1,4,64", "--threads", "1", "--rounds", "2", "--pause", "0"]
    cpu_rows.main(["run", *sizes, "--pool-bytes", "20000", "-o", str(out)])
    content = json.loads(out.read_bytes())
    engines = [row["engine"] for row in content["rows"]]
    assert {name: engines.count(name) for name in engines} == {"tailcut": 18, "onnxruntime": 9, "standalone": 6}
    assert all(len(row["ms"]) == 2 and min(row["ms"]) > 0 for row in content["rows"])
    table = cpu_rows.render(content)
    assert table.count("| 96 x 64 |") == 6
    assert table.count("x)") == 18


@pytest.mark.parametrize("kind", ["f32", "i8", "i4"])
def test_a_chain_multiplies_with_its_matrices(cpu_rows: ModuleType, kind: str) -> None:
    options = cpu_rows.parse(["run", "--threads", "1", "--pool-bytes", "1"])
    setting = cpu_rows.Setting("tailcut", kind, 0.5)
    session, length = cpu_rows.open_chain(setting, (96, 64), 1, options)
    assert length == 2
    x = np.random.default_rng(2).standard_normal((3, 64), np.float32)
    y = x
    for shape in ((96, 64), (64, 96)):  # the same parts, in a matrix outside of ONNX Runtime
        found = random_parts(cpu_rows.KINDS[kind], shape, 0.5, np.random.default_rng(0))
        if kind == "f32":
            found["values"] = found["values"] / np.float32(shape[1] ** 0.5)
        else:
            found["scales"][:] = 0.1 / shape[1] ** 0.5
        y = library.CpuMatrix(shape=shape, **found).matmul(y)
    np.testing.assert_allclose(session.run(None, {"x0": x})[0], y, rtol=1e-5, atol=1e-5)
