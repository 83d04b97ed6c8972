"""`Checkpoint.release` gives memory back and changes no value."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tailcut.checkpoint import Checkpoint

MEBIBYTE = 1 << 20


def resident_file_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssFile:")[1].split()[0]) * 1024


def test_release_drops_resident_pages_and_keeps_arrays_valid(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((2048, 4096)).astype(np.float32)  # 32 MiB
    save_file({"w": weight}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    checkpoint = Checkpoint(tmp_path)
    view = checkpoint.read("w")
    assert np.array_equal(view, weight)
    before = resident_file_bytes()
    checkpoint.release()
    # the file is 32 MiB; leave room for pages of libraries that come and go
    assert before - resident_file_bytes() > 24 * MEBIBYTE
    assert np.array_equal(view, weight)
