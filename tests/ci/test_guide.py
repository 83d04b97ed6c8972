"""docs/gate-your-release.md against the code: every option, limit, input and variable in it exists."""

import inspect
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer.models
import yaml

from tailcut import plugins
from tailcut.bench.outputs import FOLDER, wanted
from tailcut.bench.policy import make_policy
from tailcut.untrusted import parse_yaml

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "gate-your-release.md"
BLOCKS = re.findall(r"```(sh|yaml)\n(.*?)```", GUIDE.read_text(), re.DOTALL)
COMMANDS = [shlex.split(line) for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
SETTINGS: list[dict[str, Any]] = [yaml.safe_load(text) for kind, text in BLOCKS if kind == "yaml"]


def options(name: str) -> set[str]:
    """The flags of `tailcut NAME`."""
    module = import_module(f"tailcut.commands.{name.replace('-', '_')}")
    function = module.command
    found = set()
    hints = get_type_hints(inspect.unwrap(function), include_extras=True) | function.__annotations__
    for parameter in inspect.signature(function).parameters.values():
        option = next(
            (one for one in get_args(hints[parameter.name]) if isinstance(one, typer.models.OptionInfo)), None
        )
        if option is not None:
            # the first of the written names is where a default used to stand
            found |= {f"--{parameter.name.replace('_', '-')}", str(option.default), *(option.param_decls or ())}
    return found


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[1] != "models"], ids=lambda words: words[1])
def test_every_option_of_every_command_exists(words: list[str]) -> None:
    assert words[0] == "tailcut"
    assert {word for word in words if word.startswith("--")} <= options(words[1])
    for place, word in enumerate(words):
        if word == "--output" and words[1] == "gate":
            wanted(words[place + 1])


def test_the_policy_is_one_and_its_formats_are_all() -> None:
    text = next(text for kind, text in BLOCKS if kind == "yaml" and text.startswith("version"))
    policy = make_policy(parse_yaml(text, "guide"), "guide")
    assert policy.stated
    listed = set(re.findall(r"`([a-z-]+)`", "".join(re.findall(r"^\| (`.*?) \|", GUIDE.read_text(), re.MULTILINE))))
    assert listed == set(plugins.names(FOLDER))


def test_the_workflow_and_the_job_use_what_the_action_and_the_template_offer() -> None:
    action = yaml.safe_load((ROOT / ".github/actions/tailcut-gate/action.yml").read_text())
    template = yaml.safe_load((ROOT / "docs/ci/gitlab.yml").read_text())
    (workflow,) = [one for one in SETTINGS if "jobs" in one]
    (step,) = [one for one in workflow["jobs"]["gate"]["steps"] if "tailcut-gate" in one["uses"]]
    assert step["uses"].split("@")[0].endswith("/.github/actions/tailcut-gate")
    assert set(step["with"]) <= set(action["inputs"])
    assert {name for name, one in action["inputs"].items() if one.get("required")} <= set(step["with"])
    (job,) = [one["gate"] for one in SETTINGS if "gate" in one]
    assert job["extends"] in template
    assert set(job["variables"]) <= set(template[job["extends"]]["variables"])


def test_every_link_of_the_guide_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", GUIDE.read_text()):
        assert (GUIDE.parent / target).exists(), target
