"""The bench's side of a worker process: start it, ask it, and turn its death into one clear sentence.

Engines may end their process (DeepSparse's asserts do), hang, or print; none of that may take the bench down
or be mistaken for a result. `ask` either returns an answer or raises WorkerError with the last lines the
worker wrote to stderr.
"""

import os
import re
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from tailcut.bench.workers import wire
from tailcut.errors import MissingEnvironmentError

SCRIPTS = Path(__file__).resolve().parent / "workers"
_TAIL_BYTES = 16000
_BACKTRACE = re.compile(r"^(\d+# |\|? ?\[?[0-9a-f]{24,}|Backtrace)")
_TELLING = re.compile(r"assert|error|exception|cannot|killed|memory", re.IGNORECASE)


class WorkerError(MissingEnvironmentError):
    """A worker died, hung, or answered with an error; the sentence says what and when."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start one worker: interpreter, script in `bench/workers/`, what its `open` command gets, environment."""

    python: str
    script: Path
    settings: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)
    drop: tuple[str, ...] = ()  # variables of this process that would disturb the other interpreter


class Worker:
    """One worker process. Use as a context manager: the process is gone when the block ends."""

    def __init__(self, launch: Launch, *, timeout_s: float = 600.0) -> None:
        self.name = launch.script.stem.removesuffix("_worker")
        self.timeout_s = timeout_s
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = _start(launch, self._stderr)
        self._resting = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, command: str, arrays: wire.Arrays | None = None, **body: object) -> wire.Frame:
        """Send one command and wait for its answer, at most `timeout_s`."""
        deadline = time.monotonic() + self.timeout_s
        self._wake()
        try:
            self._send(wire.pack({"command": command, **body}, arrays))
            reply, extra = wire.unpack(lambda size: self._read(size, deadline))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise WorkerError(self._obituary(command)) from None
        except wire.WireError as error:
            raise WorkerError(self._broken(command, error)) from error
        except TimeoutError:
            self.kill()
            raise WorkerError(f"engine {self.name} gave no answer to {command!r} in {self.timeout_s:.0f} s") from None
        if "error" in reply:
            raise WorkerError(f"engine {self.name} could not {command}: {str(reply['error'])[:2000]}")
        return reply, extra

    def close(self) -> int:
        """End the worker in good order; its peak resident set in bytes."""
        reply, _ = self.ask("close")
        self.kill()
        return int(reply["peak_rss_bytes"])

    def rest(self) -> None:
        """Stop the process until it is asked again: threads that spin after their work then disturb nobody."""
        self._signal(signal.SIGSTOP)
        self._resting = True

    def _wake(self) -> None:
        if self._resting:
            self._signal(signal.SIGCONT)
        self._resting = False

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # a worker that died says so when it is asked
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Make sure the process is gone and its pipes are closed; harmless when it already is."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None and not stream.closed:
                _close_quietly(stream)

    def _send(self, pieces: Sequence[bytes]) -> None:
        stdin = self._process.stdin
        if stdin is None or stdin.closed:
            raise EOFError
        for piece in pieces:
            stdin.write(piece)
        stdin.flush()

    def _read(self, size: int, deadline: float) -> bytes:
        """Up to `size` bytes (fewer only at the end of the stream); TimeoutError past the deadline."""
        stdout = self._process.stdout
        if stdout is None or stdout.closed:
            return b""
        parts, missing = [], size
        while missing:
            ready, _, _ = select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            chunk = os.read(stdout.fileno(), min(missing, 1 << 20))
            if not chunk:
                break
            parts.append(chunk)
            missing -= len(chunk)
        return b"".join(parts)

    def _obituary(self, command: str) -> str:
        # The pipe closes a moment before the exit status is there.
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            code = None
        tail = self._last_words()
        self.kill()
        return f"engine {self.name} ended during {command!r} ({_status(code)}){tail}"

    def _broken(self, command: str, error: wire.WireError) -> str:
        code = self._process.poll()
        tail = self._last_words()
        self.kill()
        return f"engine {self.name} answered {command!r} with a broken frame ({error}; {_status(code)}){tail}"

    def _last_words(self) -> str:
        if self._stderr.closed:
            return ""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _TAIL_BYTES))
        lines = [line.strip() for line in self._stderr.read().decode(errors="replace").splitlines()]
        return last_words(lines)


def last_words(lines: Sequence[str]) -> str:
    """The lines of a dead worker's stderr that tell most: those that name an error, else the last ones."""
    plain = [line[:300] for line in lines if line and not _BACKTRACE.match(line)]
    telling = [line for line in plain if _TELLING.search(line)][-2:] or plain[-3:]
    return f"; it said: {' | '.join(telling)}" if telling else "; it wrote nothing to stderr"


def _start(launch: Launch, stderr: IO[bytes]) -> "subprocess.Popen[bytes]":
    environment = {key: value for key, value in os.environ.items() if key not in launch.drop}
    environment |= {**launch.environment, "TAILCUT_WORKER_PARENT": str(os.getpid())}
    argv = [launch.python, "-u", str(launch.script)]
    try:
        # Its own session: Ctrl-C reaches the bench, which then ends the worker.
        return subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            bufsize=0,
            start_new_session=True,
        )
    except OSError as error:
        raise WorkerError(f"cannot start {launch.python} ({error.strerror}); install the engine again") from error


def _status(code: int | None) -> str:
    if code is None:
        return "still running"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _close_quietly(stream: IO[bytes]) -> None:
    with suppress(OSError):  # the reader is gone and unsent bytes with it: nothing to save
        stream.close()
