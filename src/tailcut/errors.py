"""Errors a user can act on. Each carries the exit code its kind has on the command line.

Exit codes (stable): 0 pass, 1 gate failed, 2 bad usage or input, 3 inconclusive, 4 environment.
A message is one sentence with the layer or file, the value, the limit and what to do.
"""

from typing import Final

EXIT_PASS: Final = 0
EXIT_GATE_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INCONCLUSIVE: Final = 3
EXIT_ENVIRONMENT: Final = 4


class TailcutError(Exception):
    """Base of every error that is shown as one sentence instead of a traceback."""

    exit_code: int = EXIT_USAGE


class InputError(TailcutError):
    """A file, a model or an option is wrong; retrying unchanged cannot help."""

    exit_code = EXIT_USAGE


class MissingEnvironmentError(TailcutError):
    """This machine lacks something: an engine, a package, disk space, memory."""

    exit_code = EXIT_ENVIRONMENT
