"""Which path `linear` takes, and that measured times are kept; the products themselves in Triton's interpreter."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tailcut.errors import InputError
from tailcut.kernels.gpu import dispatch, tuned
from tailcut.kernels.gpu import paths as ways
from tailcut.kernels.gpu.bitmask_pack import pack_bitmask
from tailcut.kernels.gpu.layer import Layer, make_layer
from tailcut.kernels.gpu.paths import candidates, paths, rule, run_path
from tailcut.kernels.gpu.tiles import tiles_from_dense
from tailcut.kernels.gpu.two_four_pack import pack_two_four

GPU = torch.device("cuda", 0)


def two_four(rows: int, columns: int, dtype: torch.dtype = torch.float16) -> Tensor:
    groups = torch.randn(rows, columns // 4, 4, generator=torch.Generator().manual_seed(rows + columns))
    keep = groups.abs().topk(2, -1).indices
    return torch.zeros_like(groups).scatter_(-1, keep, groups.gather(-1, keep)).view(rows, columns).to(dtype)


@pytest.fixture
def weight() -> Tensor:
    return two_four(24, 256)


def test_buckets_round_up() -> None:
    assert [dispatch.bucket_of(rows) for rows in (1, 2, 3, 9, 64, 65, 2048, 5000)] == [1, 2, 4, 16, 64, 128, 2048, 2048]


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_linear_multiplies_with_every_path_that_runs_here(weight: Tensor, rows: int) -> None:
    pytest.importorskip("triton", reason="triton comes with torch's CUDA wheels and with the dev extra on Linux")
    layer = make_layer(pack_two_four(weight), dense=weight)
    x = torch.randn(rows, 256, generator=torch.Generator().manual_seed(1)).half()
    want = x.double() @ weight.double().T
    # one rounding to float16 (eps 2^-10) and float32 sums
    bound = want.abs() * 2**-11 + 1e-5 * (x.double().abs() @ weight.double().abs().T)
    for path in paths(layer, rows):
        assert bool(((run_path(path, x, layer).double() - want).abs() <= bound).all()), path
    shaped = dispatch.linear(x.view(1, rows, 256), layer)
    assert shaped.shape == (1, rows, 24)
    assert bool(((shaped[0].double() - want).abs() <= bound).all())


def test_an_empty_x_gives_an_empty_y(weight: Tensor) -> None:
    assert dispatch.linear(torch.zeros(0, 3, 256).half(), Layer(dense=weight)).shape == (0, 3, 24)


def test_the_rule(weight: Tensor) -> None:
    layout = pack_two_four(weight)
    kept, lean = Layer(layout, dense=weight), Layer(layout)
    assert [rule(kept, rows) for rows in (1, 2, 64, 65)] == ["gemv", "dense", "dense", "dense"]
    assert [rule(lean, rows) for rows in (1, 2, 64, 65)] == ["gemv", "dot", "dot", "expand"]
    assert rule(Layer(tiles=tiles_from_dense(weight)), 100) == "expand"
    unstructured = Layer(bitmask=pack_bitmask(weight))
    assert [rule(unstructured, rows) for rows in (1, 8, 9)] == ["bitmask", "bitmask", "expand"]
    beside = Layer(bitmask=pack_bitmask(weight), dense=weight)
    assert [rule(beside, rows) for rows in (1, 2, 9)] == ["bitmask", "dense", "dense"]
    assert unstructured.kind.startswith("bitmask_16_")
    assert [candidates(beside, rows) for rows in (8, 16)] == [["dense", "bitmask"], ["dense"]]
    assert candidates(unstructured, 16) == []


@pytest.mark.parametrize(
    ("columns", "dense", "want"),
    [
        (4096, False, ["gemv", "tiles", "tiles", "tiles", "tiles", "expand"]),
        (4096, True, ["gemv", "tiles", "tiles", "dense", "dense", "dense"]),
        (4104, True, ["tiles", "tiles", "tiles", "dense", "dense", "dense"]),
    ],
)
def test_the_rule_with_tiles(columns: int, dense: bool, want: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    weight = two_four(8, columns)
    layer = make_layer(pack_two_four(weight), dense=weight if dense else None)
    real = ways.paths
    # the tile kernel is only open on a GPU
    monkeypatch.setattr(ways, "paths", lambda held, rows: (*real(held, rows), *(["tiles"] if rows <= 64 else [])))
    assert [rule(layer, rows) for rows in (1, 2, 32, 33, 64, 65)] == want


def test_tiles_and_bitmasks_are_expanded_for_many_rows(weight: Tensor) -> None:
    x = torch.randn(70, 256, generator=torch.Generator().manual_seed(1)).half()
    want = x @ weight.T
    assert torch.equal(dispatch.linear(x, Layer(tiles=tiles_from_dense(weight))), want)
    assert torch.equal(dispatch.linear(x, Layer(bitmask=pack_bitmask(weight))), want)


def test_the_fastest_measured_path_is_taken(weight: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer(pack_two_four(weight), dense=weight)
    key = dispatch.key_of(layer, 16)
    known = {key: {"dense": 10.0, "dot": 9.0, "tiles:1,1,8,3,1,0,1,1,0": 1.0}}
    monkeypatch.setattr(tuned, "times", lambda device, asked: known.get(asked, {}))
    choice = dispatch.choose(layer, 12)  # tiles are not kept: their time does not count
    assert (choice.rows, choice.path, choice.tuned) == (16, "dot", True)
    assert choice.times_us == {"dense": 10.0, "dot": 9.0}
    untuned, again = dispatch.explain(layer, (64, 16))
    assert (untuned.path, untuned.tuned, untuned.times_us) == ("dense", False, {})
    assert again == choice
    assert key == "two_four_16 float16 24x256 16"


def test_times_are_kept_per_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    versions = {"device": "one", "driver": "13.0"}
    monkeypatch.setattr(tuned, "fingerprint", lambda device: dict(versions))
    tuned.forget()
    try:
        tuned.keep(GPU, "a", {"dense": 3.0})
        tuned.keep(GPU, "a", {"gemv": 2.0})
        assert tuned.times(GPU, "a") == {"dense": 3.0, "gemv": 2.0}
        assert tuned.times(GPU, "b") == {}
        tuned.forget()
        assert tuned.times(GPU, "a") == {"dense": 3.0, "gemv": 2.0}
        (file,) = (tmp_path / "tailcut" / "dispatch").iterdir()
        assert json.loads(file.read_text())["fingerprint"] == versions
        file.write_text("{")
        tuned.forget()
        assert tuned.times(GPU, "a") == {}
        versions["driver"] = "13.1"
        tuned.forget()
        tuned.keep(GPU, "a", {"dense": 4.0})
        assert len(list((tmp_path / "tailcut" / "dispatch").iterdir())) == 2
    finally:
        tuned.forget()
    assert tuned.times(torch.device("cpu"), "a") == {}


def test_wrong_inputs_are_refused(weight: Tensor) -> None:
    layer = Layer(dense=weight)
    with pytest.raises(InputError, match=r"x must be torch.float16 \[\.\.\., 256\]"):
        dispatch.linear(torch.zeros(2, 128).half(), layer)
    with pytest.raises(InputError, match=r"got torch\.float32"):
        dispatch.linear(torch.zeros(2, 256), layer)
    with pytest.raises(InputError, match="one shape"):
        Layer(pack_two_four(weight), dense=weight[:8])
    with pytest.raises(InputError, match="one shape, got none"):
        Layer()
    with pytest.raises(InputError, match="one dtype"):
        Layer(pack_two_four(weight), dense=weight.bfloat16())
    with pytest.raises(InputError, match="cannot take the path 'gemv'"):
        run_path("gemv", torch.zeros(1, 256).half(), layer)
    with pytest.raises(InputError, match="timed on a CUDA device"):
        dispatch.tune(layer)
    with pytest.raises(InputError, match="multiples of 16"):
        make_layer(pack_two_four(weight), cusparselt=True)


@pytest.mark.gpu
def test_a_tuned_layer_is_not_slower_than_dense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tuned.forget()
    weight = two_four(1024, 1024, torch.bfloat16).cuda()
    layer = make_layer(pack_two_four(weight), dense=weight, cusparselt=True)
    for choice in dispatch.tune(layer, (1, 16, 256)):
        assert choice.tuned
        assert choice.times_us[choice.path] <= choice.times_us["dense"]
        x = torch.randn(choice.rows, 1024, device="cuda", dtype=torch.bfloat16)
        want = x.double() @ weight.double().T
        # bfloat16 of the result: 2^-9 of it, and the sums' own error in another order of magnitude below
        assert float((dispatch.linear(x, layer).double() - want).norm() / want.norm()) < 4e-3
    tuned.forget()


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 24, 256])
def test_every_path_gives_rows_that_lie_together(rows: int) -> None:
    weight = two_four(64, 128, torch.bfloat16).cuda()
    layer = make_layer(pack_two_four(weight), dense=weight, tiles=True, cusparselt=True)
    x = torch.randn(rows, 128, device="cuda", dtype=torch.bfloat16)
    found = {path: run_path(path, x, layer).is_contiguous() for path in paths(layer, rows)}
    assert all(found.values()), found
    assert {"dense", "cusparselt", "expand"} <= set(found)
