"""A manifest makes a directory checkable where it is deployed."""

from dataclasses import replace
from pathlib import Path

import pytest

from tailcut.allocation import LayerPlan, Unstructured
from tailcut.errors import InputError
from tailcut.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    RealisedLayer,
    file_entries,
    read_manifest,
    try_manifest,
    verify,
    write_manifest,
)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "a.bin").write_bytes(b"12345")
    (tmp_path / "b.txt").write_text("text")
    plan = LayerPlan(Unstructured(0.5))
    layers = {"q": RealisedLayer(plan, (4, 8), 16), "k": RealisedLayer(plan, (2, 8), 2)}
    manifest = Manifest("package", "test", {"name": "m"}, layers, 96, file_entries(tmp_path))
    write_manifest(manifest, tmp_path)
    return tmp_path


def test_sparsity_is_weighted_by_parameters_and_the_whole_model_stands_beside_it(package: Path) -> None:
    manifest = verify(package)
    assert manifest.layers["q"].sparsity == 0.5
    assert manifest.prunable_parameters == 48
    assert manifest.sparsity == 18 / 48
    assert manifest.whole_model_sparsity == 18 / 96


def test_manifest_lists_every_file_but_itself(package: Path) -> None:
    assert set(verify(package).files) == {"a.bin", "b.txt"}


def test_same_inputs_give_the_same_bytes(package: Path) -> None:
    before = (package / MANIFEST_NAME).read_bytes()
    write_manifest(read_manifest(package), package)
    assert (package / MANIFEST_NAME).read_bytes() == before


def test_changed_byte_is_noticed_by_hash_not_by_size(package: Path) -> None:
    (package / "a.bin").write_bytes(b"12346")
    verify(package, hashes=False)
    with pytest.raises(InputError, match=r"a\.bin: sha256 differs"):
        verify(package)


def test_changed_size_is_noticed_without_hashing(package: Path) -> None:
    (package / "a.bin").write_bytes(b"123")
    with pytest.raises(InputError, match=r"a\.bin: 3 bytes, the manifest says 5"):
        verify(package, hashes=False)


def test_missing_file(package: Path) -> None:
    (package / "b.txt").unlink()
    with pytest.raises(InputError, match=r"b\.txt: listed in the manifest but missing"):
        verify(package, hashes=False)


def test_manifest_cannot_point_outside(package: Path) -> None:
    manifest = read_manifest(package)
    write_manifest(replace(manifest, files={"../secret": FileEntry(1, "0")}), package)
    with pytest.raises(InputError, match="leaves its directory"):
        verify(package)


def test_directory_without_a_manifest(tmp_path: Path) -> None:
    assert try_manifest(tmp_path) is None
    with pytest.raises(InputError, match="was not made by tailcut"):
        verify(tmp_path)
