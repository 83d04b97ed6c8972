"""How much of a GPU's memory a search counts on."""

import pytest
import torch

from tailcut.compress.searches import _prepare

GB = 10**9


@pytest.mark.parametrize(
    ("free", "share", "reserved", "allocated", "expected"),
    [
        (60 * GB, 1.0, 10 * GB, 4 * GB, 66 * GB),  # all that is free, and what torch holds unused
        (60 * GB, 0.25, 10 * GB, 4 * GB, 16 * GB),  # a quarter of 80, less what is in use
        (3 * GB, 0.25, 10 * GB, 10 * GB, 3 * GB),  # others took the rest
        (60 * GB, 0.1, 10 * GB, 10 * GB, 0),  # the share is used up
    ],
)
def test_a_share_of_the_gpu_bounds_what_is_free(
    free: int, share: float, reserved: int, allocated: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def share_of(device: torch.device | int | None) -> float:
        if device is not None:  # torch's own refuses "cuda" without a number
            torch.cuda._utils._get_device_index(device)
        return share

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 80 * GB))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", share_of)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: allocated)
    assert _prepare._free(torch.device("cuda")) == expected
