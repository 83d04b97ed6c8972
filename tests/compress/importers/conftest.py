"""What the tests of importers share."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def golden(tmp_path: Path) -> Callable[[str], Path]:
    """golden(folder) -> a checkpoint as compressed-tensors 0.14.0.1 wrote it (golden/write_compressed_tensors.py)."""

    def unpack(folder: str) -> Path:
        with zipfile.ZipFile(GOLDEN / "compressed_tensors_0_14_0_1.zip") as archive:
            for name in archive.namelist():
                if name.startswith(f"{folder}/"):
                    archive.extract(name, tmp_path / "golden")
        made = tmp_path / "golden" / folder
        (made / "expected.safetensors").rename(made.parent / f"{folder}.expected")
        return made

    return unpack
