"""Clients: what each offers, how environments are found and locked, what is refused before anything starts."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tailcut.bench import clients
from tailcut.bench.clients import HF, PACKED
from tailcut.bench.environment import Recipe
from tailcut.errors import InputError
from tailcut.export import targets

Tailcut = Callable[..., tuple[int, str, str]]
ON_MODEL_ONNX = ("tailcut", "onnxruntime", "optimum", "genai", "openvino", "openvino-sparse")


@pytest.mark.parametrize("name", clients.names())
def test_every_client_keeps_the_contract(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILCUT_ENGINES", str(tmp_path))
    client = clients.load(name)
    assert client.TARGET in (*targets.names(), HF, PACKED)
    assert client.LICENCE
    reason = client.available()
    assert reason is None or len(reason) > 20
    if client.RECIPE is not None:
        assert "tailcut engines install" in str(reason)  # nothing is installed in an empty folder


@pytest.mark.parametrize("name", clients.names())
def test_locks_pin_every_package_exactly(name: str) -> None:
    recipe = clients.load(name).RECIPE
    if not isinstance(recipe, Recipe):
        pytest.skip("has no environment made by pip")
    lines = recipe.lock.read_text().split("\n")
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins
    assert [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*(\+cpu)?", pin)] == []


@pytest.mark.parametrize("name", ON_MODEL_ONNX)
def test_a_launch_says_what_to_open(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no model\.onnx"):
        clients.load(name).launch(tmp_path, 1)
    (tmp_path / "model.onnx").touch()
    with pytest.raises(InputError, match="threads must be at least 1, got 0"):
        clients.load(name).launch(tmp_path, 0)
    launch = clients.load(name).launch(tmp_path, 2)
    assert launch.script.is_file()
    assert launch.settings["threads"] == 2
    assert json.dumps(dict(launch.settings))
    assert launch.environment["HF_HUB_OFFLINE"] == "1"  # a client looks nothing up


@pytest.mark.parametrize(("prompt", "count"), [([], 4), ([1], 0)])
def test_nothing_to_generate_is_refused(prompt: list[int], count: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="both must be at least 1"):
        clients.greedy("onnxruntime", tmp_path, prompt, count)


def test_the_command_lists_and_finds_clients(tailcut: Tailcut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILCUT_ENGINES", str(tmp_path))
    code, out, _ = tailcut("engines", "list", "--json")
    listed = [row["client"] for row in json.loads(out) if "client" in row]
    assert (code, tuple(listed)) == (0, clients.names())
    code, out, _ = tailcut("engines", "path", "genai")
    assert (code, out.strip()) == (0, str(tmp_path / "genai" / "bin" / "python"))
    code, _, error = tailcut("engines", "install", "genia")
    assert code == 2
    assert "unknown engine or client 'genia'" in error
    assert list(tmp_path.iterdir()) == []
