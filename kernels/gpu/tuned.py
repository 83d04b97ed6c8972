"""Measured times of paths, per device, kept in the user's cache folder: dispatch/FINGERPRINT.json.

The fingerprint is of device name, CUDA driver, torch, triton and tailcut versions, so that new software measures anew.
A file that cannot be read or written means measuring again, nothing worse.
"""

import functools
import hashlib
import json
import logging
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from tailcut import __version__
from tailcut.errors import MissingEnvironmentError
from tailcut.files import write_file
from tailcut.kernels.gpu import driver
from tailcut.kernels.gpu.nvrtc import cache_folder

_LOG = logging.getLogger(__name__)
Times = dict[str, float]  # path -> microseconds


def times(device: torch.device, key: str) -> Mapping[str, float]:
    """What is known of `key` on the device: path -> microseconds; empty on a CPU."""
    return _table(_number(device)).get(key, {}) if device.type == "cuda" else {}


def keep(device: torch.device, key: str, measured: Mapping[str, float]) -> None:
    """Add to what is known, here and in the file (with what other processes have written since)."""
    table = _table(_number(device))
    table[key] = {**table.get(key, {}), **measured}
    path = _path(_number(device))
    if path is None:
        return
    fresh = _read(path)
    fresh[key] = {**fresh.get(key, {}), **table[key]}
    body = json.dumps({"fingerprint": fingerprint(device), "times_us": fresh}, indent=1, sort_keys=True)
    try:
        write_file(path, body.encode())
    except (OSError, MissingEnvironmentError) as error:
        _LOG.info("going on without keeping measured times: %s", error)


def forget() -> None:
    """Drop what this process remembers; the files stay."""
    _table.cache_clear()
    _path.cache_clear()


def fingerprint(device: torch.device) -> dict[str, str]:
    """What the times depend on beside the matrix."""
    return {
        "device": torch.cuda.get_device_name(device),
        "driver": driver.version(),
        "torch": torch.__version__,
        "triton": _triton(),
        "tailcut": __version__,
    }


@functools.cache
def _table(device: int) -> dict[str, Times]:
    path = _path(device)
    return _read(path) if path is not None else {}


@functools.cache
def _path(device: int) -> Path | None:
    folder = cache_folder("dispatch")
    what = json.dumps(fingerprint(torch.device("cuda", device)), sort_keys=True)
    return folder / f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.json" if folder else None


def _read(path: Path) -> dict[str, Times]:
    try:
        found = json.loads(path.read_text())["times_us"]
        return {str(key): {str(name): float(us) for name, us in entry.items()} for key, entry in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        _LOG.info("%s: not readable, measuring again (%s)", path, error)
        return {}


def _number(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _triton() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:
        return "none"
