"""Paired losses, and the arguments that the benchmarks share."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def common(load_script: Callable[[str], Any]) -> Any:
    return load_script("bench_common")


def test_differences_are_nats_a_scored_token(common: Any) -> None:
    # 4 tokens are scored of 5: differences of 1, 2 and 3 nats a token, spread 1 over three windows
    mean, error = common.nats_above([8.0, 12.0, 16.0], [4.0, 4.0, 4.0], 5)
    assert (mean, error) == pytest.approx((2.0, 1.0 / math.sqrt(3.0)))


def test_the_same_losses_differ_by_nothing(common: Any) -> None:
    assert common.nats_above([3.0, 5.0], [3.0, 5.0], 512) == (0.0, 0.0)


def test_one_window_has_no_error(common: Any) -> None:
    mean, error = common.mean_and_error(np.array([0.25]))
    assert mean == 0.25
    assert math.isnan(error)


def test_scripts_state_their_own_defaults(common: Any) -> None:
    action = argparse.ArgumentParser()
    common.add_model_and_text(action, samples=7, seqlen=9, output=Path("here.json"))
    common.add_scoring(action, context=11, windows=None, batch_tokens=13)
    common.add_device(action)
    given = action.parse_args(["m", "--calibration", "c", "--work", "w", "--text", "t", "--seed", "3"])
    assert (given.samples, given.seqlen, given.output, given.seed) == (7, 9, Path("here.json"), 3)
    assert (given.context, given.windows, given.batch_tokens, given.device) == (11, None, 13, "cpu")
    assert common.calibration_of(given) == {"file": "c", "samples": 7, "seqlen": 9, "seed": 3}
