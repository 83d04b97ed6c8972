"""Reading the spectra that `tailcut measure` saved, without the room that made them (and without torch)."""

import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tailcut.errors import InputError


def read_spectra(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    """Module name -> eigenvalues, from an .npz without pickled objects."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: np.asarray(archive[name], np.float64) for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a file of spectra ({error}); run `tailcut measure` again") from error
