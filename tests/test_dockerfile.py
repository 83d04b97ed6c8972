"""The Dockerfile's own lint: no Docker engine is needed to see that it keeps its promises."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
KNOWN = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "CMD", "LABEL"}
PINNED = r":\d+\.\d+\.\d+-(\w+-)?(bookworm|trixie)$"


def parse(text: str) -> list[tuple[str, str]]:
    """Dockerfile text -> (instruction, arguments), continuation lines joined."""
    joined = re.sub(r"\\\n\s*", " ", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def stages(instructions: list[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """Stage name -> its instructions, in order."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, value in instructions:
        if name == "FROM":
            match = re.fullmatch(r"(\S+) AS ([a-z]+)", value)
            assert match, f"FROM {value} does not name its stage"
            current = found.setdefault(match.group(2), [])
        current.append((name, value))
    return found


INSTRUCTIONS = parse((ROOT / "Dockerfile").read_text())
STAGES = stages(INSTRUCTIONS)
RUNS = [value for name, value in INSTRUCTIONS if name == "RUN"]


def copied() -> list[str]:
    """Every path copied from the build context."""
    words = [shlex.split(value) for name, value in INSTRUCTIONS if name == "COPY"]
    return [source for parts in words if not parts[0].startswith("--from") for source in parts[:-1]]


def test_every_instruction_is_known() -> None:
    assert {name for name, _ in INSTRUCTIONS} <= KNOWN


def test_base_images_are_pinned_to_a_full_version() -> None:
    outside = [value.split()[0] for name, value in INSTRUCTIONS if name == "FROM" and value.split()[0] not in STAGES]
    assert outside
    for image in outside:
        assert re.search(PINNED, image), f"{image}: pin major.minor.patch and the distribution"


def test_the_wheel_is_compiled_where_a_compiler_is_and_runs_on_the_same_distribution() -> None:
    images = {stage: lines[0][1].split()[0] for stage, lines in STAGES.items()}
    assert images["build"].endswith("-bookworm")
    assert "slim" not in images["build"]  # slim images have no C++ compiler
    assert images["base"].replace("-slim", "") == images["build"]


@pytest.mark.parametrize("line", RUNS)
def test_run_is_one_script(line: str) -> None:
    match = re.fullmatch(r"sh (scripts/docker/[a-z]+\.sh)", line)
    assert match, f"RUN {line}: put it in a script of scripts/docker"
    assert (ROOT / match.group(1)).is_file()


def test_every_docker_script_is_used() -> None:
    used = {Path(line.split()[1]).name for line in RUNS}
    assert used == {path.name for path in (ROOT / "scripts/docker").glob("*.sh")}


@pytest.mark.parametrize("source", sorted(set(copied())))
def test_copied_path_exists_and_reaches_the_build(source: str) -> None:
    assert (ROOT / source).exists()
    assert f"!{source}" in (ROOT / ".dockerignore").read_text().splitlines(), f".dockerignore hides {source}"


@pytest.mark.parametrize("stage", ["compress", "runtime"])
def test_final_stages_do_not_run_as_root(stage: str) -> None:
    users = [value for name, value in STAGES[stage] if name == "USER"]
    assert users
    assert not re.match(r"(root|0)\b", users[-1])
    assert [name for name, _ in STAGES[stage]].index("USER") > max(
        (i for i, (name, _) in enumerate(STAGES[stage]) if name == "RUN"), default=0
    )


def test_the_default_image_is_the_slim_one() -> None:
    assert list(STAGES)[-1] == "runtime"
    chain, stage = [], "runtime"
    while stage in STAGES:
        chain += [value for name, value in STAGES[stage] if name == "RUN"]
        stage = STAGES[stage][0][1].split()[0]
    assert not any("compress.sh" in line for line in chain)


def test_deepsparse_is_off_unless_asked_for(tmp_path: Path) -> None:
    assert ("ARG", "WITH_DEEPSPARSE=0") in INSTRUCTIONS
    settings = {"PATH": os.environ["PATH"], "TAILCUT_ENGINES": str(tmp_path), "WITH_DEEPSPARSE": "yes"}
    command = ["sh", str(ROOT / "scripts/docker/deepsparse.sh")]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "must be 0 or 1" in done.stderr


def test_nothing_secret_or_local_is_in_the_context() -> None:
    assert (ROOT / ".dockerignore").read_text().splitlines()[0] == "*"


def test_lint_notices_a_bad_line() -> None:
    """The lint itself can fail."""
    bad = parse("FROM python:latest AS base\nRUN apt-get update\n")
    assert stages(bad)["base"][1] == ("RUN", "apt-get update")
    assert not re.fullmatch(r"sh (scripts/docker/[a-z]+\.sh)", bad[1][1])
    assert not re.search(PINNED, "python:latest")
    assert not re.search(PINNED, "python:3.11.14-slim")
