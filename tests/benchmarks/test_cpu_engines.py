"""The side-by-side benchmark: which rows and sessions it plans, what it keeps, and what its tables say."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tailcut.bench.machine import describe_machine
from tailcut.bench.many import Measured, Plan, Session
from tailcut.errors import InputError
from tailcut.manifest import Manifest, write_manifest
from tailcut.results import PackageFacts

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    import cpu_engines

    yield cpu_engines
    for name in ("cpu_engines", "cpu_engines_table"):
        sys.modules.pop(name, None)


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    for name in ("dense", "dense-int8", "s80", "s80-int8", "s80-int4"):
        (tmp_path / name).mkdir()
        manifest = Manifest("package", "test", {"name": name}, {}, 1000, {})
        write_manifest(manifest, tmp_path / name)
    return tmp_path


def planned(script: ModuleType, packages: Path, *words: str) -> list[tuple[str, Plan, list[str]]]:
    options = script.parse([*words, "--packages", str(packages)])
    found = []
    for group, plan in script.plans(options):
        found.append((group, plan, [row.label for row in script.rows_of(options, group, plan)]))
    return found


def test_a_sparse_group_has_tailcut_the_sparse_engines_and_the_references(script: ModuleType, packages: Path) -> None:
    ((group, plan, labels),) = planned(script, packages, "decode", "--groups", "s80", "--threads", "2")
    assert (group, plan.workload.context, plan.workload.threads) == ("s80", 512, 2)
    assert labels == [
        "tailcut float32 s80",
        "tailcut int8 s80-int8",
        "tailcut int4 s80-int4",
        "deepsparse float32 s80",
        "deepsparse-int8 int8 s80",
        "onnxruntime-fused float32 dense",
        "onnxruntime-int4 int4 dense",
        "llamacpp-q4 int4 dense",
    ]


def test_the_dense_group_has_every_peer_and_packages_that_are_not_there_are_left_out(
    script: ModuleType, packages: Path
) -> None:
    ((_, _, labels),) = planned(script, packages, "decode", "--groups", "dense", "--threads", "1")
    assert "tailcut int8 dense-int8" in labels
    assert "tailcut int4 dense-int4" not in labels
    assert {"openvino-int8 int8 dense", "llamacpp-q8 int8 dense", "onnxruntime float32 dense"} <= set(labels)


def test_only_named_engines_run_beside_the_references(script: ModuleType, packages: Path) -> None:
    words = ("decode", "--groups", "s80", "--threads", "2", "--engines", "tailcut", "--weights", "int8,int4")
    ((_, _, labels),) = planned(script, packages, *words)
    assert labels == [
        "tailcut int8 s80-int8",
        "tailcut int4 s80-int4",
        "onnxruntime-int4 int4 dense",
        "llamacpp-q4 int4 dense",
    ]


def test_rows_that_do_not_fit_in_memory_together_share_only_the_references(script: ModuleType, packages: Path) -> None:
    for name in ("s80", "s80-int8", "s80-int4", "dense"):
        (packages / name / "model.onnx.data").write_bytes(b"1" * 1_000_000)
    options = script.parse(["decode", "--packages", str(packages), "--groups", "s80", "--threads", "2"])
    rows = list(script.rows_of(options, "s80", next(script.plans(options))[1]))
    references = [row for row in rows if script.is_reference(row)]
    whole = script.parts(rows, 1, 1 << 40)
    assert [sorted(row.label for row in part) for part in whole] == [sorted(row.label for row in rows)]
    room = sum(script.footprint(row, 1) for row in references) + script.footprint(rows[0], 1) + 1
    single = script.parts(rows, 1, room)
    assert len(single) == len(rows) - len(references)
    assert all(set(references) < set(part) for part in single)


def test_important_sessions_come_first(script: ModuleType, packages: Path) -> None:
    found = planned(script, packages, "prefill", "--groups", "s80,dense", "--prompts", "128,512", "--threads", "2,1")
    assert [(group, plan.workload.threads, plan.workload.prompt_tokens) for group, plan, _ in found[:4]] == [
        ("s80", 2, 128),
        ("s80", 2, 512),
        ("s80", 1, 128),
        ("s80", 1, 512),
    ]
    batches = planned(script, packages, "decode", "--groups", "s80", "--batches", "1,4,64", "--threads", "2")
    assert [plan.workload.batch for _, plan, _ in batches] == [1, 4, 64]


def test_a_group_that_is_not_there_is_said(script: ModuleType, packages: Path) -> None:
    with pytest.raises(InputError, match="s70: no such package"):
        planned(script, packages, "decode", "--groups", "s70")


def facts(sparsity: float) -> PackageFacts:
    return PackageFacts("0" * 64, 1000, sparsity, sparsity, 1000)


def session(plan: Plan, **changes: Any) -> Session:
    """Dense float32 at 100 ms, dense int4 at 25 ms, DeepSparse at 40 ms, tailcut at 10 ms (int8)."""
    rows = (
        Measured("tailcut", "s80-int8", "int8", facts(0.8), ms=((10.0,) * 4,) * 3, version="1"),
        Measured("deepsparse-int8", "s80", "int8", facts(0.8), ms=((40.0,) * 4,) * 3),
        Measured("llamacpp-q4", "dense", "int4", facts(0.0), ms=((25.0,) * 4,) * 3),
        Measured("onnxruntime-int4", "dense", "int4", facts(0.0), ms=((30.0,) * 4,) * 3),
        Measured("onnxruntime-fused", "dense", "float32", facts(0.0), ms=((100.0,) * 4,) * 3),
        Measured("openvino-int4", "dense", "int4", facts(0.0), reason="its environment is not installed"),
    )
    made = Session(describe_machine(), plan.workload, plan.phase, 3, 4, "s80", (20.0,) * 3, rows)
    return replace(made, **changes)


def test_ratios_are_those_of_the_session(script: ModuleType, packages: Path) -> None:
    ((_, plan, _),) = planned(script, packages, "decode", "--groups", "s80", "--threads", "2")
    lines = script.render([session(plan)]).splitlines()
    (row,) = [line for line in lines if "tailcut" in line]
    assert [cell.strip().split()[0] for cell in row.split("|")[4:9]] == ["10.0", "100.00", "10.00x", "2.50x", "4.00x"]
    (absent,) = [line for line in lines if "openvino" in line]
    assert "not measured" in absent
    assert "not installed" in absent


def test_a_file_round_trips_and_known_rows_are_kept(script: ModuleType, packages: Path, tmp_path: Path) -> None:
    options = script.parse(["decode", "--packages", str(packages), "--groups", "s80", "--threads", "2"])
    options.rounds = 3
    ((group, plan),) = script.plans(options)
    row = next(row for row in script.rows_of(options, group, plan) if row.label == "tailcut int8 s80-int8")
    from tailcut.bench.run import package_facts

    held = session(plan)
    own = replace(held.rows[0], facts=package_facts(row.package))
    held = replace(held, rows=(own, *held.rows[1:]))
    script.write(tmp_path / "result.json", [held])
    again = script.read(tmp_path / "result.json")
    assert again == [held]
    assert script.known(again, "s80", plan, row)
    assert not script.known(again, "s80", replace(plan, steps=5), row)
    assert not script.known(again, "s80", plan, replace(row, engine="deepsparse"))
    (row.package / "manifest.json").write_text((row.package / "manifest.json").read_text() + "\n")
    assert not script.known(again, "s80", plan, row)


def test_load_rows_state_time_memory_and_size(script: ModuleType, packages: Path) -> None:
    ((_, plan, labels),) = planned(script, packages, "load", "--groups", "s80", "--threads", "2")
    assert "onnxruntime float32 s80" in labels  # the same file without the library
    row = Measured(
        "tailcut", "s80", "float32", ms=((1.0,),), load_seconds=2.5, peak_rss_bytes=10**9, bytes_on_disk=5 * 10**8
    )
    text = script.render([session(plan, rounds=1, steps=1, rows=(row,))])
    assert "| s80 | tailcut | float32 | 2.5 | 1000 | 500 |" in text
