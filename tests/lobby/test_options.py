"""Options that are defined once: what the commands show of them and what becomes of their values."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from tailcut import pipeline
from tailcut.commands import allocate, compress, measure, run
from tailcut.commands._options import CalibrationText, Planning, expanded
from tailcut.compress.allocators import Settings
from tailcut.compress.calibration import Calibration
from tailcut.recipe import SHAPING, Recipe

Tailcut = Callable[..., tuple[int, str, str]]


@dataclass(frozen=True, slots=True)
class Group:
    width: Annotated[float | None, typer.Option(help="How wide.")] = None
    pair: Annotated[tuple[int, int] | None, typer.Option("--pair")] = None
    sure: Annotated[bool | None, typer.Option("--sure/--unsure")] = None


def test_a_group_stands_for_its_fields() -> None:
    got: list[tuple[str, Group, int]] = []

    @expanded
    def command(name: str, group: Group, times: int = 2) -> None:
        """What it does."""
        got.append((name, group, times))

    app = typer.Typer()
    app.command()(command)
    runner = CliRunner()
    assert list(inspect.signature(command).parameters) == ["name", "width", "pair", "sure", "times"]
    assert "What it does." in runner.invoke(app, ["--help"]).stdout
    assert runner.invoke(app, ["x", "--pair", "3", "4", "--unsure", "--times", "5"]).exit_code == 0
    assert runner.invoke(app, ["y", "--width", "0.5"]).exit_code == 0
    assert got == [("x", Group(None, (3, 4), False), 5), ("y", Group(0.5), 2)]


def test_every_setting_of_an_allocator_is_a_flag_of_both_commands_and_a_key_of_a_recipe() -> None:
    settings = {item.name for item in fields(Settings)} - {"cost", "precision"}
    assert settings == set(SHAPING)
    planning = {item.name for item in fields(Planning)}
    assert set(SHAPING) < planning <= {item.name for item in fields(Recipe)}
    for command in (allocate.command, run.command):
        assert planning <= set(inspect.signature(command).parameters)


def test_the_text_is_a_flag_of_every_command_that_reads_one_and_its_defaults_are_stated_as_they_are() -> None:
    flags = {item.name for item in fields(CalibrationText)}
    for command in (measure.command, allocate.command, compress.command, run.command):
        assert flags <= set(inspect.signature(command).parameters)
    assert CalibrationText().wanted == Calibration() == Calibration("demo", 32, 512, 0)
    assert CalibrationText("x.txt", 3, 24, 7).wanted == Calibration("x.txt", 3, 24, 7)
    recipe = {item.name: item.default for item in fields(Recipe)}
    assert [recipe[name] for name in ("calibration", "samples", "seqlen", "seed")] == ["demo", 32, 512, 0]


def test_what_is_not_given_is_left_to_the_recipe() -> None:
    assert Planning().given == {}
    assert Planning(tau=0.0, compat=False, bits=3.0).given == {"tau": 0.0, "compat": False, "bits": 3.0}
    assert Planning(tau=0.0, compat=False, bits=3.0).shaping == {"tau": 0.0, "compat": False}


GIVEN: list[tuple[list[Any], dict[str, Any]]] = [
    (["--allocator", "owl", "--spread", 0.1, "--compat"], {"allocator": "owl", "spread": 0.1, "compat": True}),
    (["--allocator", "atp", "--beta", 0.01], {"beta": 0.01, "compat": False}),
    (
        ["--allocator", "als", "--solver", "qp", "--bounds", 0.2, 0.9, "--step", 0.05],
        {"solver": "qp", "bounds": (0.2, 0.9), "step": 0.05},
    ),
    (["--allocator", "nm-mixed", "--allow-dense", "--group", 4], {"allow_dense": True, "group": 4}),
    (["--bits", 3.5, "--bit-choices", "4,3", "--bit-tau", 0.2], {"bits": 3.5, "bit_choices": (4, 3), "bit_tau": 0.2}),
]


@pytest.mark.parametrize(("words", "wanted"), GIVEN)
def test_run_takes_the_flags_of_allocate(
    tailcut: Tailcut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[Any], wanted: dict[str, Any]
) -> None:
    class ReachedError(Exception):
        """In place of the run."""

    seen: list[Recipe] = []

    def stop(recipe: Recipe, *_: object) -> None:
        seen.append(recipe)
        raise ReachedError

    monkeypatch.setattr(pipeline, "run", stop)
    with pytest.raises(ReachedError):
        tailcut("run", tmp_path, "-o", tmp_path / "out", *words)
    assert {name: getattr(seen[0], name) for name in wanted} == wanted


def test_a_flag_takes_back_what_a_recipe_says(
    tailcut: Tailcut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r.yaml").write_text("model: m\nallocator: owl\ncompat: true\nspread: 0.1\n")
    seen: list[Recipe] = []

    def note(recipe: Recipe, *_: object) -> None:
        seen.append(recipe)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run", note)
    for words in ((), ("--no-compat",)):
        tailcut("run", tmp_path / "r.yaml", "-o", tmp_path / "out", *words)
    assert [(recipe.compat, recipe.spread) for recipe in seen] == [(True, 0.1), (False, 0.1)]


def test_a_setting_that_the_allocator_does_not_read_is_one_sentence(tailcut: Tailcut, tmp_path: Path) -> None:
    code, _, said = tailcut("run", tmp_path, "-o", tmp_path / "out", "--allocator", "uniform", "--spread", 0.1)
    assert code == 2
    assert "does not read spread" in said
