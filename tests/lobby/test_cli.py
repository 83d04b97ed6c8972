"""The command line: exit codes, one sentence on stderr, data on stdout, no traceback for bad input."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tailcut import __version__, cli, plugins
from tailcut.errors import InputError, MissingEnvironmentError


def tailcut(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tailcut", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_version() -> None:
    done = tailcut("--version")
    assert (done.returncode, done.stdout) == (0, f"tailcut {__version__}\n")


def test_help_names_every_command() -> None:
    done = tailcut("--help")
    assert done.returncode == 0
    for name in plugins.names("tailcut.commands"):
        assert name in done.stdout


@pytest.mark.parametrize("name", plugins.names("tailcut.commands"))
def test_every_command_has_help(name: str) -> None:
    done = tailcut(name, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


@pytest.mark.parametrize("words", [["nosuch"], ["--nosuch"], ["models", "get"], ["models", "get", "x", "--nosuch"]])
def test_wrong_usage_is_exit_2(words: list[str]) -> None:
    done = tailcut(*words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_bad_input_is_one_sentence_and_exit_2(tmp_path: Path) -> None:
    done = tailcut("models", "get", "nosuch", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    want = "tailcut: unknown model 'nosuch'; choose one of gemma3-270m, smollm2-135m, synthetic-llama"
    assert done.stderr.splitlines()[-1] == want
    assert list(tmp_path.iterdir()) == []


def test_json_goes_to_stdout_alone(tmp_path: Path) -> None:
    done = tailcut("models", "get", "synthetic-llama", "--like", "tiny", "-o", "m", "--json", cwd=tmp_path)
    assert done.returncode == 0
    assert json.loads(done.stdout)["parameters"] > 0
    assert done.stderr == ""


def test_existing_output_is_refused_then_replaced_when_asked(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine").write_text("precious")
    words = ["models", "get", "synthetic-llama", "--like", "tiny", "-o", "m"]
    assert tailcut(*words, cwd=tmp_path).returncode == 2
    assert (tmp_path / "m" / "mine").read_text() == "precious"
    assert tailcut(*words, "--overwrite", cwd=tmp_path).returncode == 0
    assert (tmp_path / "m" / "config.json").is_file()


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InputError("layer 3: wrong"), 2, "tailcut: layer 3: wrong"),
        (MissingEnvironmentError("no disk"), 4, "tailcut: no disk"),
        (KeyboardInterrupt(), 130, "tailcut: interrupted"),
        (MemoryError(), 4, "tailcut: not enough memory"),
        (torch.OutOfMemoryError("1 GiB"), 4, "tailcut: the GPU's memory is full"),
    ],
)
def test_expected_failures_are_one_sentence_with_their_code(
    error: BaseException, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def raises(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "_register", lambda: None)
    monkeypatch.setattr(cli, "app", raises)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == code
    assert capsys.readouterr().err.startswith(words)


def test_ctrl_c_while_a_dataclass_is_made_has_its_exit_code() -> None:
    code = (
        "import os, signal\n"
        "from tailcut import cli\n"
        "cli._register = lambda: None\n"
        "cli.app = lambda **_: exec('os.kill(os.getpid(), signal.SIGINT); signal.pause()')\n"
        "cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert "run the same command again" in done.stderr


def test_an_unexpected_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(**_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "_register", lambda: None)
    monkeypatch.setattr(cli, "app", raises)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main()
