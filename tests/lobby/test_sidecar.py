"""Integers beside a model: back as they were, and refused when damaged."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tailcut.allocation import Bits, Dense, LayerPlan
from tailcut.bitmask import Array
from tailcut.checkpoint import write_shard
from tailcut.errors import InputError
from tailcut.manifest import Manifest, RealisedLayer, file_entries
from tailcut.quantised import LARGEST, scales_shape
from tailcut.sidecar import Errors, Integral, errors_of, file_name, open_sidecars, tensors_of

SHAPE = (6, 131)  # an odd width: half a byte is left over


def integral(bits: Bits) -> Integral:
    rng = np.random.default_rng(bits)
    q = rng.integers(-LARGEST[bits], LARGEST[bits] + 1, SHAPE).astype(np.int8)
    return Integral(q, rng.random(scales_shape(bits, SHAPE), np.float32), bits)


def written(directory: Path, bits: Bits, changed: Mapping[str, Array | None] | None = None) -> Manifest:
    """A directory with one quantised matrix `a`; `changed` replaces parts (None: leaves them out)."""
    parts: dict[str, Array | None] = {**tensors_of("a", integral(bits), Errors(0.1, None)), **(changed or {})}
    kept = {name: part for name, part in parts.items() if part is not None}
    write_shard(directory / file_name(0, 1), kept)
    layers = {"a": RealisedLayer(LayerPlan(Dense(), bits), SHAPE, 0), "b": RealisedLayer(LayerPlan(Dense()), SHAPE, 0)}
    return Manifest("model", "test", {"name": "x"}, layers, 1, file_entries(directory))


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_what_is_written_is_read(bits: Bits, tmp_path: Path) -> None:
    sidecars = open_sidecars(tmp_path, written(tmp_path, bits))
    assert list(sidecars) == ["a"]
    assert (sidecars.bits("a"), sidecars.bits("b")) == (bits, None)
    read, want = sidecars.read("a"), integral(bits)
    assert np.array_equal(read.q, want.q)
    assert np.array_equal(read.scales, want.scales)
    assert np.array_equal(read.dense(), want.dense())


def test_errors_come_back() -> None:
    for errors in (Errors(0.25, 0.5), Errors(0.0, None)):
        assert errors_of("a", tensors_of("a", integral(4), errors)) == errors


def test_a_directory_without_integers_has_none(tmp_path: Path) -> None:
    assert not open_sidecars(tmp_path, None)
    plain = Manifest("model", "test", {}, {"b": RealisedLayer(LayerPlan(Dense()), SHAPE, 0)}, 1, {})
    assert not open_sidecars(tmp_path, plain)


DAMAGE = [
    (8, {"a.q": np.full(SHAPE, -128, np.int8)}, "reach -128 to -128, 8 bits hold"),
    (3, {"a.q": np.full((6, 66), 0xFF, np.uint8)}, "reach 7 to 7, 3 bits hold"),
    (8, {"a.q": np.zeros((6, 130), np.int8)}, r"a.q needs int8 \[6, 131\], has int8 \[6, 130\]"),
    (4, {"a.q": np.zeros(SHAPE, np.int8)}, r"a.q needs uint8 \[6, 66\]"),
    (4, {"a.scales": np.zeros(6, np.float32)}, r"a.scales needs float32 \[6, 2\], has float32 \[6\]"),
    (8, {"a.scales": np.full(6, np.nan, np.float32)}, "a scale is negative or not finite"),
    (8, {"a.scales": np.full(6, -1.0, np.float32)}, "a scale is negative or not finite"),
    (8, {"a.scales": None}, "a.scales is missing"),
]


@pytest.mark.parametrize(("bits", "changed", "match"), DAMAGE, ids=[match[:24] for _, _, match in DAMAGE])
def test_nonsense_is_refused(bits: Bits, changed: dict[str, Array | None], match: str, tmp_path: Path) -> None:
    sidecars = open_sidecars(tmp_path, written(tmp_path, bits, changed))
    with pytest.raises(InputError, match=match):
        sidecars.read("a")


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    manifest = written(tmp_path, 4)
    path = tmp_path / file_name(0, 1)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"quantised-00001-of-00001\.safetensors: differs from the manifest"):
        open_sidecars(tmp_path, manifest)
    path.unlink()
    with pytest.raises(InputError, match="listed in the manifest but missing"):
        open_sidecars(tmp_path, manifest)


def test_integers_that_are_not_there(tmp_path: Path) -> None:
    manifest = written(tmp_path, 4)
    layers = dict(manifest.layers) | {"c": RealisedLayer(LayerPlan(Dense(), 8), SHAPE, 0)}
    with pytest.raises(InputError, match="c has 8 bits but no integers"):
        open_sidecars(tmp_path, replace(manifest, layers=layers))
