"""Eigenvalues of one weight matrix at a time, and a cache of them by content.

The spectrum of W [out, in] is the set of eigenvalues of its smaller Gram matrix (W W^T or W^T W), which are
the squared singular values; min(out, in) of them, not normalised. Both the Gram matrix and the eigenvalue
solver work in float64: a Gram matrix squares the condition number, and in float32 a square Gaussian matrix's
smallest eigenvalues would be noise or negative. Measured on 2 cores (2048 x 5632): numpy 0.41 s Gram + 0.50 s
eigenvalues (numpy multiplies A A^T with half the work), torch 0.65 + 0.64 s; an SVD costs several times as much.
One matrix at a time with BLAS threads comes within 12 % of one matrix a core and needs half the memory.

Eigenvalues l <= m * eps * l_max are rounding error and are dropped before any logarithm (`significant`).
"""

import hashlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from tailcut.bitmask import Array
from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.files import write_file

if TYPE_CHECKING:
    import torch

Eigenvalues = npt.NDArray[np.float64]
FORMAT_VERSION: Final = 1  # of a cache entry; raise it when the computation changes
_DIGEST_BYTES: Final = 32
_LOG: Final = logging.getLogger(__name__)


def resolve_device(device: str) -> str:
    """ "auto", "cpu" or "cuda" -> "cpu" or "cuda"; auto takes a GPU if there is one."""
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device must be auto, cpu or cuda, got {device!r}")
    if device == "cpu":
        return "cpu"
    if _cuda_available():
        return "cuda"
    if device == "cuda":
        raise MissingEnvironmentError("device cuda was asked for but torch sees no CUDA GPU; use --device cpu")
    return "cpu"


def _cuda_available() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


def gram_eigenvalues(weight: Array, device: str = "cpu") -> Eigenvalues:
    """Matrix [out, in], any float dtype -> all min(out, in) eigenvalues of its smaller Gram matrix, ascending.

    `device` is "cpu" or "cuda". Rounding can leave tiny negative values where the matrix is rank-deficient.
    """
    if weight.ndim != 2 or 0 in weight.shape:
        raise InputError(f"a spectrum needs a non-empty matrix, got shape {weight.shape}")
    if device == "cuda":
        return _on_cuda(weight)
    return np.asarray(np.linalg.eigvalsh(_gram(weight)), np.float64)


def _gram(weight: Array) -> Eigenvalues:
    """float64 [m, m] with m = min(out, in); the float64 copy of the matrix is gone when this returns."""
    wide = np.asarray(weight if weight.shape[0] <= weight.shape[1] else weight.T, np.float64)
    # the same array on both sides makes numpy call syrk: half the multiplications, exactly symmetric
    return np.asarray(wide @ wide.T, np.float64)


def _on_cuda(weight: Array, device: str = "cuda") -> Eigenvalues:
    """By torch on `device`: the matrix goes there as it is stored, and is turned and widened there."""
    import torch

    matrix = _host_tensor(weight).to(device).to(torch.float64)
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    values: Eigenvalues = torch.linalg.eigvalsh(wide @ wide.T).cpu().numpy()
    return values


def _host_tensor(weight: Array) -> "torch.Tensor":
    """The matrix, or its transpose where that is how it lies (the spectrum is the same), with the bits it has."""
    import torch

    lying = weight.T if weight.flags.f_contiguous and not weight.flags.c_contiguous else weight
    # copies: torch warns of read-only views. It cannot read numpy's bfloat16, but its bits
    if lying.dtype.name == "bfloat16":
        return torch.from_numpy(np.array(lying, order="C").view(np.int16)).view(torch.bfloat16)
    known = lying.dtype in (np.float16, np.float32, np.float64)
    return torch.from_numpy(np.array(lying, lying.dtype if known else np.float32, order="C"))


def significant(eigenvalues: Eigenvalues) -> Eigenvalues:
    """Without the values at or below m * eps * l_max, which are rounding error of a float64 Gram matrix of size m."""
    if eigenvalues.size == 0:
        return eigenvalues
    floor = eigenvalues.size * np.finfo(np.float64).eps * eigenvalues[-1]
    return np.asarray(eigenvalues[eigenvalues > max(floor, 0.0)], np.float64)


def cached_eigenvalues(weight: Array, device: str = "cpu", cache: Path | None = None) -> Eigenvalues:
    """`gram_eigenvalues`, read from or written to the cache directory (None: `default_cache()`).

    An entry is a sha256 and the float64 values it covers; a damaged one is computed again and replaced.
    A directory that was named must be writable; without the default one the work goes on uncached.
    """
    directory = default_cache() if cache is None else cache
    if directory is None:
        return gram_eigenvalues(weight, device)
    entry = directory / f"{content_key(weight)}.f64"
    found = _read_entry(entry)
    if found is not None and found.size == min(weight.shape):
        return found
    values = gram_eigenvalues(weight, device)
    try:
        _write_entry(entry, values)
    except MissingEnvironmentError as error:
        if cache is not None:
            raise
        _LOG.info("going on without a spectra cache: %s", error)
    return values


def default_cache() -> Path | None:
    """`$XDG_CACHE_HOME/tailcut/spectra`, else `~/.cache/tailcut/spectra`; None where there is no home directory."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "tailcut" / "spectra"
    except RuntimeError:  # a container's user without an entry in passwd
        return None


def content_key(weight: Array) -> str:
    """sha256 over format version, dtype, shape and the matrix's bytes in row order."""
    digest = hashlib.sha256(f"tailcut-spectrum-{FORMAT_VERSION}:{weight.dtype}:{weight.shape}:".encode())
    # a byte view, since numpy's buffer protocol does not know bfloat16
    digest.update(np.ascontiguousarray(weight).view(np.uint8).data)
    return digest.hexdigest()


def _write_entry(path: Path, values: Eigenvalues) -> None:
    body = values.astype("<f8").tobytes()
    try:
        write_file(path, hashlib.sha256(body).digest() + body)
    except OSError as error:
        raise MissingEnvironmentError(
            f"{path.parent}: cannot write the spectra cache ({error.strerror}); choose another with --cache"
        ) from error


def _read_entry(path: Path) -> Eigenvalues | None:
    """None when there is no entry or its checksum does not match."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if len(body) % 8 or hashlib.sha256(body).digest() != digest:
        return None
    return np.frombuffer(body, "<f8").astype(np.float64)
