"""The interoperability table: what is compared, and that a failure is never shown as anything else."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"
WANTED = {"tokens": [5, 6, 7, 8], "seconds": [1, 2, 3, 4], "margins": [0.5, 0.25, 1e-6, 2.0]}


@pytest.fixture
def interop(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("interop", SCRIPTS / "interop.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "interop", module)
    spec.loader.exec_module(module)
    return module


def result(*rows: dict[str, Any]) -> dict[str, Any]:
    base = {"client": "web", "target": "web", "layout": "bitmask", "model": "s50", "message": "", "equal": None}
    machine = {"cpu": "a cpu", "commit": "abc"}
    about = {"machine": machine, "model": "m", "prompt_ids": [1], "count": 4, "threads": 2, "calibration": "t"}
    return about | {"rows": [base | {"loads": False, "ran": True} | row for row in rows]}


def test_tokens_are_compared_with_the_first_difference_and_its_margin(interop: ModuleType) -> None:
    assert interop.compared([5, 6, 7, 8], WANTED) == {"equal": True}
    found = interop.compared([5, 6, 3, 9], WANTED)
    assert found == {"equal": False, "first_difference": 2, "margin": 1e-6, "runner_up": True}
    assert interop.compared([9, 6, 7, 8], WANTED)["runner_up"] is False
    assert interop.compared([5, 6], WANTED) == {"equal": False}  # too few, however equal


def test_a_failure_is_shown_with_the_client_s_words_and_a_cause(interop: ModuleType) -> None:
    shown = interop.interop_table.render(
        result(
            {"message": "engine web could not open: no | kernel\nfor X"},
            {"message": "engine web gave no answer to 'greedy' in 300 s"},
            {"message": "its environment is not installed; run it", "ran": False},
        )
    )
    assert "| no |" in shown
    assert "| not run |" in shown
    assert "no \\| kernel for X | not looked into |" in shown
    assert "a statement about this run, not a refusal" in shown
    assert "| yes |" not in shown


def test_rounded_activations_are_compared_with_a_client_that_rounds_them(
    interop: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from argparse import Namespace
    from types import SimpleNamespace

    import numpy as np

    class Worker:
        def __init__(self, launch: object, timeout_s: float) -> None: ...
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...
        def ask(self, command: str, arrays: Any = None, **body: Any) -> Any:
            if command == "logits":
                assert arrays["tokens"].tolist() == [[9, 8, 2]]
                return {}, {"logits": np.array([[[0.0, 0, 0], [1, 2, 5], [4, 3, 1]]], np.float32)}
            return {"tokens": [2, 1]}, {}

    monkeypatch.setattr(interop, "Worker", Worker)
    monkeypatch.setattr(interop, "written", lambda options, target, model, layout, report: tmp_path / model)
    monkeypatch.setattr(
        interop.clients, "load", lambda name: SimpleNamespace(launch=lambda *_: SimpleNamespace(settings={}))
    )
    found = interop.reference(Namespace(threads=1, timeout=5), "w8a8", [9, 8], None)
    # the second token is not the likeliest of the whole pass: its runner-up is, by a negative margin
    assert found == {"tokens": [2, 1], "seconds": [1, 0], "margins": [3.0, -1.0]}


def test_a_sparse_kernel_is_claimed_only_for_a_cut_model_and_by_proof(interop: ModuleType) -> None:
    proof = {"kernels": "its own", "sparse_kernel": True, "supported_fraction": 1.0}
    loaded = {"loads": True, "equal": True, "proof": proof, "tokens": [1], "tokens_per_s": 2.5, "bytes": 2_000_000}
    shown = interop.interop_table.render(result(loaded, loaded | {"model": "dense"}, loaded | {"proof": {}}))
    assert "| yes | yes | yes: its own, supported fraction 1.0 | 2.5 | 2 |" in shown
    assert shown.count("yes: its own") == 1
    assert "Every row loaded." in shown


def test_only_quantised_models_are_written_as_compressed_tensors(interop: ModuleType) -> None:
    from argparse import Namespace

    models = ["dense", "s50", "int8", "int4", "w8a8"]
    options = Namespace(clients=["compressed-tensors", "vllm-packed", "web", "transformers"], models=models)
    plan = interop.plan(options)
    assert [row for row in plan if row[0] == "compressed-tensors"] == [
        ("compressed-tensors", "int8", "compressed-tensors"),
        ("compressed-tensors", "int4", "compressed-tensors"),
    ]
    assert ("vllm-packed", "w8a8", "compressed-tensors") in plan  # compressed-tensors itself is the reference of that
    assert ("web", "w8a8", "dense") not in plan
    assert ("web", "s50", "bitmask") in plan
    assert ("web", "s50", "dense") in plan
    assert ("transformers", "int4", "safetensors") not in plan
