"""Clients without their environments: what each says, what its lock holds, what an install refuses."""

import json
import re
import stat
from pathlib import Path

import pytest

from tailcut.bench import clients
from tailcut.bench.clients import web
from tailcut.errors import MissingEnvironmentError

LOCKS = sorted(Path(clients.__file__).parent.glob("*.lock"))
WITH_RECIPE = [name for name in clients.names() if clients.load(name).RECIPE is not None]


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TAILCUT_ENGINES", str(tmp_path / "engines"))
    return tmp_path / "engines"


@pytest.mark.parametrize("name", WITH_RECIPE)
def test_a_client_that_is_not_installed_says_the_command(name: str, nowhere: Path) -> None:
    client = clients.load(name)
    assert client.RECIPE is not None
    assert f"tailcut engines install {client.RECIPE.name}" in str(client.available())


@pytest.mark.parametrize("name", WITH_RECIPE)
def test_a_lock_pins_every_package_exactly(name: str) -> None:
    recipe = clients.load(name).RECIPE
    assert recipe is not None
    lines = [line for line in recipe.lock.read_text().splitlines() if line and not line.startswith("#")]
    assert lines
    assert [
        line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.!]+(\+cpu)?( ;.*|;.*)?", line)
    ] == []


def test_the_npm_lock_has_a_hash_for_every_package_and_no_address() -> None:
    packages = json.loads(web.LOCK.read_bytes())["packages"]
    found = {name: entry for name, entry in packages.items() if name}
    assert "node_modules/onnxruntime-web" in found
    assert all(entry["integrity"].startswith("sha512-") for entry in found.values())
    assert not [name for name, entry in found.items() if "resolved" in entry]


def program(directory: Path, name: str, body: str) -> None:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_a_machine_without_node_is_told_what_to_install(
    nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert "node is not on the path; install Node 18 or newer with npm" in str(web.available())
    with pytest.raises(MissingEnvironmentError, match="node is not on the path"):
        web.install()
    program(tmp_path / "bin", "node", "echo v16.20.0")
    assert "is version 16; install Node 18" in str(web.available())
    program(tmp_path / "bin", "node", "exit 1")
    assert "does not run" in str(web.available())
    program(tmp_path / "bin", "node", "echo v20.1.0")
    assert "tailcut engines install web" in str(web.available())
    with pytest.raises(MissingEnvironmentError, match="npm is not on the path"):
        web.install()


def test_a_failed_npm_leaves_nothing_and_its_words(
    nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin", "node", "echo v20.1.0")
    program(tmp_path / "bin", "npm", "echo 'npm error code EINTEGRITY' >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(MissingEnvironmentError, match="could not install the lock list: npm error code EINTEGRITY"):
        web.install()
    assert not web.home().exists()


def test_an_install_is_made_from_the_lock_and_noticed_when_it_is_another(
    nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin", "node", "echo v20.1.0")
    program(tmp_path / "bin", "npm", 'echo "$*" > said')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    made = web.install()
    assert (made / "package-lock.json").read_bytes() == web.LOCK.read_bytes()
    assert (made / "said").read_text().split() == ["ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    assert web.available() is None
    assert web.install() == made  # there already
    (made / "installed.json").write_text('{"lock_sha256": "0"}')
    assert "another lock list" in str(web.available())
    (made / "installed.json").write_text("[")
    assert "damaged" in str(web.available())
