"""The command line. Each command is one file in `commands/`; heavy imports happen when it is called."""

import signal
import sys
from types import FrameType
from typing import NoReturn

import typer

from tailcut import __version__, plugins
from tailcut.errors import EXIT_ENVIRONMENT, TailcutError

_INTERRUPTED = 130  # the shell's convention for Ctrl-C
_GPU_FULL = (
    "the GPU's memory is full: this model does not fit beside what else is on it; end other processes there, "
    "use a larger GPU, or --device cpu"
)
_GO_ON = "interrupted; nothing was left half-written, run the same command again to go on"


class _Interrupted(KeyboardInterrupt):
    """Ctrl-C. Where a plain KeyboardInterrupt passes through `exec` (a dataclass being made), caught above or not,
    Python 3.11 to 3.13 end by killing themselves with SIGINT, and the exit code that was asked for is lost."""


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise _Interrupted


app = typer.Typer(
    name="tailcut",
    no_args_is_help=True,
    add_completion=False,
    # rich markup would swallow "[default: ...]" in help texts and break paragraphs at every newline
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Cut LLM weights layer by layer, ship a sparse ONNX package, prove it is faster, gate the release.",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"tailcut {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True)) -> None:
    """Options that stand before the command."""


def _register() -> None:
    """Every file of `commands/` offers `app` (a group of sub-commands) or `command` (a function)."""
    for name in plugins.names("tailcut.commands"):
        module = plugins.load("tailcut.commands", name)
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command(name=name)(module.command)


def main() -> NoReturn:
    """Run one command; every expected failure is one sentence on stderr and its exit code."""
    _register()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # ignored where a shell put us in the background
        signal.signal(signal.SIGINT, _interrupt)
    try:
        app(prog_name="tailcut")
    except TailcutError as error:
        fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        fail(_GO_ON, _INTERRUPTED)
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:  # typer turns Ctrl-C inside a command into this, and says nothing
            fail(_GO_ON, _INTERRUPTED)
        raise
    except MemoryError:
        fail("not enough memory for this model on this machine; free some or use a larger machine", EXIT_ENVIRONMENT)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
            raise
        fail(_GPU_FULL, EXIT_ENVIRONMENT)
    sys.exit(0)


def fail(sentence: str, code: int) -> NoReturn:
    """Print one sentence to stderr and leave with `code`."""
    print(f"tailcut: {sentence}", file=sys.stderr)
    sys.exit(code)
