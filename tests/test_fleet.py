"""`tailcut fleet` on a local cluster of several Ray nodes: one task a machine, alone there, and nobody's loss but one's own.

What needs Ray is skipped where it is absent (it is an extra); what it would be sent and answered is tested without.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tailcut import codec, fleet
from tailcut.bench.store import Store
from tailcut.errors import MissingEnvironmentError
from tailcut.fleet import BenchTask, Heard, Node, SweepTask, everywhere, nodes, perform
from tailcut.sweep_grid import make_grid

NODE = Node("0123456789", "10.0.0.1", 4)
TASK = BenchTask("/dense", "/sparse", ("onnxruntime",), {"blocks": 2})
Perform = Callable[[str, str], dict[str, Any]]


def test_without_ray_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingEnvironmentError, match=r"install tailcut\[fleet\]"), fleet.cluster(None):
        pass


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {"results": [["BenchResult", "{}"]]},
        {"results": [["os.system", "ls"]]},
        {"results": [["SweepPoint", "[" * 100_000]]},
        {"results": [["SweepPoint"]]},
        {"results": 3},
        {"results": [[[], "{}"]]},
    ],
)
def test_an_answer_of_another_form_is_a_reason(answer: object) -> None:
    heard = fleet._checked(answer, NODE)
    assert heard.results == ()
    assert "same version everywhere" in heard.reason


def test_what_fails_on_a_machine_comes_back_as_its_sentence(tmp_path: Path) -> None:
    task = BenchTask(str(tmp_path / "dense"), str(tmp_path / "sparse"), ("onnxruntime",), {"threads": 1})
    answer = perform("BenchTask", codec.to_json(task))
    assert fleet._checked(answer, NODE).reason.startswith(str(tmp_path))
    assert "not valid JSON" in perform("SweepTask", "{")["reason"]


def test_tasks_are_json_and_back() -> None:
    grid = make_grid({"model": "m", "allocator": ["alpha"], "pattern": ["unstructured", "2:4"]}, "test")
    for task in (TASK, SweepTask(grid, "/out")):
        assert codec.from_json(type(task), codec.to_json(task)) == task


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """(ray, cluster): a head and two more nodes as processes of this machine, one CPU each."""
    ray = pytest.importorskip("ray", reason="Ray is not installed (tailcut[fleet])")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=small | {"include_dashboard": False})
    for _ in range(2):
        cluster.add_node(**small)
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    yield ray, cluster
    ray.shutdown()
    cluster.shutdown()


def noting(directory: Path, seconds: float) -> Perform:
    """Work that notes when and where it ran. Defined in a function: Ray then sends its code."""

    def work(kind: str, task: str) -> dict[str, Any]:
        import ray

        began = time.time()
        time.sleep(seconds)
        node = ray.get_runtime_context().get_node_id()
        name = f"{node}-{os.getpid()}-{began}"
        (directory / name).write_text(json.dumps([node, began, time.time()]))
        return {"model": node, "results": []}

    return work


@pytest.mark.timeout(300)
def test_every_machine_runs_the_task_once_and_alone(three: tuple[Any, Any], tmp_path: Path) -> None:
    """Two fleets at once: on each machine their tasks take turns."""
    ray, _ = three
    found: list[tuple[Heard, ...]] = []

    def go() -> None:
        found.append(everywhere(ray, TASK, heard=lambda _: None, work=noting(tmp_path, 0.5)))

    both = [threading.Thread(target=go) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    everyone = {node.id for node in nodes(ray)}
    assert [{heard.model for heard in answers} for answers in found] == [everyone, everyone]
    assert all(heard.model == heard.node.id and not heard.reason for answers in found for heard in answers)
    spans: dict[str, list[tuple[float, float]]] = {}
    for path in tmp_path.iterdir():
        node, began, ended = json.loads(path.read_text())
        spans.setdefault(node, []).append((began, ended))
    assert {len(times) for times in spans.values()} == {2}
    for times in spans.values():
        (_, first_ended), (second_began, _) = sorted(times)
        assert second_began >= first_ended


@pytest.mark.timeout(300)
def test_a_machine_that_fails_crashes_or_hangs_costs_only_its_own(three: tuple[Any, Any]) -> None:
    ray, _ = three
    failing, crashing, fine = (node.id for node in nodes(ray))

    def work(kind: str, task: str) -> dict[str, Any]:
        node = ray.get_runtime_context().get_node_id()
        if node == failing:
            raise RuntimeError("the memory is burning")
        if node == crashing:
            os._exit(17)
        return {"model": node}

    told: list[Heard] = []
    answers = {heard.node.id: heard for heard in everywhere(ray, TASK, heard=told.append, work=work)}
    assert "the memory is burning" in answers[failing].reason
    assert answers[crashing].reason
    assert (answers[fine].reason, answers[fine].model) == ("", fine)
    assert len(told) == 3

    def hang(kind: str, task: str) -> dict[str, Any]:
        node = ray.get_runtime_context().get_node_id()
        time.sleep(600 if node == failing else 0)
        return {"model": node}

    answers = {heard.node.id: heard for heard in everywhere(ray, TASK, heard=told.append, timeout_s=15, work=hang)}
    assert "gave no answer in 15 s" in answers[failing].reason
    assert (answers[crashing].reason, answers[fine].reason) == ("", "")


@pytest.mark.timeout(300)
def test_a_machine_that_dies_loses_nobody_elses_results(
    three: tuple[Any, Any], tmp_path: Path, sweep_point: Callable[..., Any]
) -> None:
    ray, cluster = three
    extra = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    cluster.wait_for_nodes()
    doomed, point = extra.node_id, codec.to_json(sweep_point("alpha", 0.5, (1.0, 1.1), None))
    store = Store(tmp_path / "results.sqlite")

    def work(kind: str, task: str) -> dict[str, Any]:
        node = ray.get_runtime_context().get_node_id()
        if node == doomed:
            (tmp_path / "at work").touch()
            time.sleep(600)
        return {"results": [["SweepPoint", point.replace("alpha 0.5", node)]]}

    def pull_the_plug() -> None:
        while not (tmp_path / "at work").exists():
            time.sleep(0.1)
        cluster.remove_node(extra, allow_graceful=False)

    thread = threading.Thread(target=pull_the_plug)
    thread.start()
    answers = everywhere(ray, TASK, heard=lambda heard: store.append(heard.results), work=work)
    thread.join()
    lost = [heard.node.id for heard in answers if heard.reason]
    assert lost == [doomed]
    assert len(store.rows()) == len(answers) - 1 == 3


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_on_every_machine_ends_in_one_store(
    three: tuple[Any, Any],
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    tailcut: Callable[..., tuple[int, str, str]],
) -> None:
    """Real work. The nodes are one machine here: the directory's lock lets the others find the first one's points."""
    recipe = tmp_path / "sweep.yaml"
    recipe.write_text(
        f"model: {tiny_model('llama')}\nallocator: uniform\nsparsity: 0.5\nengines: onnxruntime\nbaselines: none\n"
        "samples: 4\nseqlen: 32\nthreads: 1\nprompt_tokens: 8\ncontext: 32\nnew_tokens: 4\nblocks: 1\n"
        "text_context: 32\nwindows: 4\n"
    )
    place = tmp_path / "results.sqlite"
    code, out, errors = tailcut("fleet", "sweep", recipe, "-o", tmp_path / "out", "--store", place, "--json")
    assert code == 0, errors
    rows = json.loads(out)
    assert [row["results"] for row in rows] == [3, 3, 3]
    assert len(Store(place).rows()) == 3
    code, out, _ = tailcut("fleet", "bench", tmp_path / "none", tmp_path / "none", "--store", place)
    assert code == 4
    assert out.count("no result") == 3
