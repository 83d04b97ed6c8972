"""A package's weights under their Hugging Face names, whatever form the package has them in."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tailcut.allocation import NM, Dense, LayerPlan, Unstructured
from tailcut.bench.package_weights import PackageWeights, not_two_four
from tailcut.checkpoint import Checkpoint
from tailcut.errors import InputError
from tailcut.manifest import read_manifest, write_manifest

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def packages(tiny_model: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """(model, package) by what is special about the package: joined and sparse, dense, rounded, tied."""
    from tailcut.export.run import export

    out = tmp_path_factory.mktemp("packages")
    settings = {
        "bitmask": ({}, {}),
        "dense": ({}, {"layout": "dense"}),
        "int8": ({}, {"weights": "int8"}),
        "int4": ({}, {"weights": "int4", "head": "int4"}),
        "tied": ({"tie_word_embeddings": True}, {"weights": "float16"}),
        "tied int4": ({"tie_word_embeddings": True}, {"weights": "int4", "head": "int4"}),
    }
    found = {}
    for name, (config, options) in settings.items():
        model = tiny_model("llama", hidden_size=64, **config)
        export(model, out / name, check=False, **options)
        found[name] = (model, out / name)
    return found


@pytest.mark.parametrize(
    ("kind", "largest"),
    # of the largest weight: exact; half a step of float16 (2^-11), of 127 steps, of 7 steps
    [("bitmask", 0.0), ("dense", 0.0), ("int8", 0.005), ("int4", 0.08), ("tied", 2**-11), ("tied int4", 0.08)],
)
def test_every_parameter_comes_back(packages: dict[str, tuple[Path, Path]], kind: str, largest: float) -> None:
    model, package = packages[kind]
    stored, weights = Checkpoint(model), PackageWeights(package)
    for name in stored.names:
        want, got = stored.read(name), weights.read(name).dense()
        assert got.shape == want.shape, name
        assert np.abs(got.astype(np.float32) - want).max() <= largest * np.abs(want).max(), name


def test_rounded_matrices_come_as_integers(packages: dict[str, tuple[Path, Path]]) -> None:
    found = PackageWeights(packages["int4"][1]).read("model.layers.0.self_attn.k_proj.weight")
    assert found.values.dtype == np.int8
    assert found.scales is not None
    assert found.scales.shape == (32, 1)
    assert np.abs(found.values).max() <= 7


def test_a_tied_head_is_the_embedding(packages: dict[str, tuple[Path, Path]]) -> None:
    weights = PackageWeights(packages["tied"][1])
    assert np.array_equal(weights.read("lm_head.weight").dense(), weights.read("model.embed_tokens.weight").dense())


def test_what_a_package_does_not_hold_is_said(packages: dict[str, tuple[Path, Path]]) -> None:
    with pytest.raises(InputError, match=r"holds no model\.layers\.9"):
        PackageWeights(packages["dense"][1]).read("model.layers.9.mlp.up_proj.weight")


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        (NM(2, 4), True),
        (NM(1, 4), True),
        (NM(1, 2), True),
        (Dense(), True),
        (NM(4, 8), False),
        (Unstructured(0.5), False),
    ],
)
def test_what_is_cut_otherwise_than_two_four_is_said(make_package: Make, pattern: object, fits: bool) -> None:
    package = make_package("p", 0.5)
    manifest = read_manifest(package)
    layers = {name: replace(layer, plan=LayerPlan(pattern)) for name, layer in manifest.layers.items()}  # type: ignore[arg-type]
    write_manifest(replace(manifest, layers=layers), package)
    said = not_two_four(package)
    assert (said is None) is fits
    assert fits or "not as 2:4" in str(said)
