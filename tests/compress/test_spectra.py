"""Eigenvalues against the SVD, the rounding floor, and the cache."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tailcut.bitmask import Array
from tailcut.compress import spectra
from tailcut.compress.spectra import (
    cached_eigenvalues,
    content_key,
    default_cache,
    gram_eigenvalues,
    resolve_device,
    significant,
)
from tailcut.errors import InputError, MissingEnvironmentError


def gaussian(rows: int, columns: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the matrices whose eigenvalues were really computed."""
    shapes: list[tuple[int, ...]] = []
    real = spectra.gram_eigenvalues

    def counting(weight: Array, device: str = "cpu") -> spectra.Eigenvalues:
        shapes.append(weight.shape)
        return real(weight, device)

    monkeypatch.setattr(spectra, "gram_eigenvalues", counting)
    return shapes


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (50, 50), (1, 7), (7, 1)])
def test_equals_squared_singular_values(shape: tuple[int, int]) -> None:
    weight = gaussian(*shape)
    expected = np.sort(np.linalg.svd(weight.astype(np.float64), compute_uv=False)) ** 2
    got = gram_eigenvalues(weight)
    assert got.dtype == np.float64
    assert got.shape == (min(shape),)
    # a backward stable symmetric solver moves each eigenvalue by at most m eps l_max, as does forming the Gram matrix
    np.testing.assert_allclose(got, expected, rtol=0, atol=2 * max(shape) * np.finfo(float).eps * expected[-1])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_every_stored_dtype_is_widened_exactly(dtype: type) -> None:
    weight = gaussian(20, 30).astype(dtype)
    assert np.array_equal(gram_eigenvalues(weight), gram_eigenvalues(weight.astype(np.float64)))


def test_a_transposed_view_has_the_same_spectrum() -> None:
    weight = gaussian(30, 70)
    np.testing.assert_allclose(gram_eigenvalues(weight.T), gram_eigenvalues(weight), rtol=1e-10)


def test_square_gaussian_keeps_its_small_eigenvalues() -> None:
    # l_min / l_max is about 1e-6 here: lost in a float32 Gram matrix, far above the float64 floor
    values = gram_eigenvalues(gaussian(300, 300))
    assert np.array_equal(significant(values), values)
    assert values[0] > 0.0


def test_rank_deficiency_is_dropped() -> None:
    low_rank = gaussian(60, 5).astype(np.float64) @ gaussian(5, 80).astype(np.float64)
    assert significant(gram_eigenvalues(low_rank)).size == 5


def test_a_zero_matrix_has_no_significant_eigenvalue() -> None:
    assert significant(gram_eigenvalues(np.zeros((4, 6), np.float32))).size == 0
    assert significant(np.zeros(0)).size == 0


@pytest.mark.parametrize("weight", [np.zeros((0, 3), np.float32), np.zeros(5, np.float32), np.zeros((2, 2, 2))])
def test_only_matrices(weight: Array) -> None:
    with pytest.raises(InputError, match="non-empty matrix"):
        gram_eigenvalues(weight)


def test_second_read_is_a_hit(tmp_path: Path, computed: list[tuple[int, ...]]) -> None:
    weight = gaussian(12, 20)
    first = cached_eigenvalues(weight, cache=tmp_path)
    second = cached_eigenvalues(weight.copy(), cache=tmp_path)
    assert np.array_equal(first, second)
    assert computed == [(12, 20)]
    assert len(list(tmp_path.iterdir())) == 1


def test_content_shape_and_dtype_are_the_key() -> None:
    weight = gaussian(12, 20)
    other = weight.copy()
    other[3, 4] = np.nextafter(other[3, 4], np.float32(9))
    variants = [weight, other, weight.reshape(20, 12), weight.view(np.int32), weight.T, weight.astype(np.float64)]
    assert len({content_key(variant) for variant in variants}) == len(variants)
    assert content_key(weight.T) == content_key(np.ascontiguousarray(weight.T))
    assert content_key(weight.astype(ml_dtypes.bfloat16)) != content_key(weight.astype(np.float16))


@pytest.mark.parametrize("damage", ["empty", "short", "flip_first", "flip_middle", "flip_last", "longer", "directory"])
def test_damaged_entry_is_computed_again(tmp_path: Path, computed: list[tuple[int, ...]], damage: str) -> None:
    weight = gaussian(12, 20)
    good = cached_eigenvalues(weight, cache=tmp_path)
    (entry,) = tmp_path.iterdir()
    content = bytearray(entry.read_bytes())
    if damage == "empty":
        content = bytearray()
    elif damage == "short":
        content = content[:-8]
    elif damage == "longer":
        content += bytes(8)
    elif damage.startswith("flip"):
        content[{"flip_first": 0, "flip_middle": len(content) // 2, "flip_last": -1}[damage]] ^= 1
    if damage == "directory":
        entry.unlink()
        entry.mkdir()
        with pytest.raises(MissingEnvironmentError, match="cannot write the spectra cache"):
            cached_eigenvalues(weight, cache=tmp_path)
        return
    entry.write_bytes(content)
    assert np.array_equal(cached_eigenvalues(weight, cache=tmp_path), good)
    assert len(computed) == 2
    assert np.array_equal(cached_eigenvalues(weight, cache=tmp_path), good)
    assert len(computed) == 2  # the damaged entry was replaced


def test_an_entry_of_another_size_is_computed_again(tmp_path: Path, computed: list[tuple[int, ...]]) -> None:
    small, large = gaussian(5, 9), gaussian(12, 20)
    for weight in (small, large):
        cached_eigenvalues(weight, cache=tmp_path)
    name = f"{content_key(large)}.f64"
    (tmp_path / name).write_bytes((tmp_path / f"{content_key(small)}.f64").read_bytes())
    assert cached_eigenvalues(large, cache=tmp_path).size == 12
    assert len(computed) == 3


def test_a_killed_write_leaves_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    weight = gaussian(12, 20)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            cached_eigenvalues(weight, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert cached_eigenvalues(weight, cache=tmp_path).size == 12


def test_cache_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MissingEnvironmentError, match=r"spectra cache.*--cache"):
        cached_eigenvalues(gaussian(3, 4), cache=tmp_path / "file" / "cache")


def test_without_the_default_cache_the_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    weight = gaussian(3, 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    assert np.array_equal(cached_eigenvalues(weight), gram_eigenvalues(weight))

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert default_cache() is None
    assert np.array_equal(cached_eigenvalues(weight), gram_eigenvalues(weight))


def test_default_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "tailcut" / "spectra"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "tailcut" / "spectra"


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectra, "_cuda_available", lambda: False)
    assert [resolve_device(device) for device in ("auto", "cpu")] == ["cpu", "cpu"]
    with pytest.raises(MissingEnvironmentError, match="no CUDA GPU"):
        resolve_device("cuda")
    with pytest.raises(InputError, match=r"auto, cpu or cuda.*'gpu'"):
        resolve_device("gpu")
    monkeypatch.setattr(spectra, "_cuda_available", lambda: True)
    assert [resolve_device(device) for device in ("auto", "cpu", "cuda")] == ["cuda", "cpu", "cuda"]


@pytest.mark.gpu
@pytest.mark.skipif(not spectra._cuda_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_gpu_agrees_with_cpu(dtype: type) -> None:
    for weight in (gaussian(200, 300).astype(dtype), gaussian(300, 200).astype(dtype)):
        cpu = gram_eigenvalues(weight)
        # both in float64: a few m eps l_max
        np.testing.assert_allclose(gram_eigenvalues(weight, "cuda"), cpu, rtol=0, atol=1e-12 * cpu[-1])


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, ml_dtypes.float8_e4m3fn])
def test_the_gpu_s_way_on_a_cpu(dtype: type, shape: tuple[int, int], turned: bool) -> None:
    """Every stored dtype goes over with the bits it has, however it lies; float64 from there on."""
    weight = gaussian(*shape).astype(dtype)
    weight.flags.writeable = False
    weight = weight.T if turned else weight
    found = spectra._on_cuda(weight, "cpu")
    want = gram_eigenvalues(weight)
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-12 * want[-1])
