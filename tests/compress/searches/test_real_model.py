"""auto on SmolLM2-135M: a real model has something to find."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tailcut.allocation import Budget
from tailcut.compress.calibration import Calibration
from tailcut.compress.measure import measure
from tailcut.compress.models import smollm2_135m
from tailcut.compress.searches import Effort, Task, search


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_finds_a_better_plan_than_uniform(make_or_skip: Callable[[str, Callable[[], object]], Path]) -> None:
    model = make_or_skip("smollm2-135m", smollm2_135m.find_gguf)
    text = Calibration(samples=8, seqlen=128)
    scores = measure(model, metrics=("owl", "dlp"), calibration=text, device="cpu").scores
    effort = Effort(evaluations=60, tokens=(256, 512, 1024), final_tokens=1024, finals=3)
    found = search("auto", Task(model, scores, Budget(0.6), "wanda", text, effort, "cpu"))
    finals = {
        name: float(kl) for name, _, kl in (one.rpartition(" ") for one in found.provenance["finals"].split("; "))
    }
    assert finals[found.provenance["winner"]] == min(finals.values())
    # 60 evaluations find less than a search of minutes does, but never nothing on this model
    assert min(finals.values()) < finals["uniform"]
