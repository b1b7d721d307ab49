"""The embedded engine as a server of the session: a process of its own, which no end of ours outlives."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO

import pytest_dsr1
from pytest_dsr1.core.config import Point
from pytest_dsr1.core.server import Served
from pytest_dsr1.servers import ServerError, probe

#: It needs a second; a machine busy with other things gets much more.
START_TIMEOUT_S = 60.0
STOP_GRACE_S = 5.0
LOG_TAIL_LINES = 20


class ReferenceServer:
    """Starts the engine on a free loopback port.

    Its standard input is a pipe that only this process holds: when we die, by SIGKILL too, it reads the end and exits.

    :param log: File for what the process says; made anew at each start.
    :param weights: Hugging Face folder to serve; None: the packaged model.
    :param timeout_s: Longest wait for readiness.
    :ivar pid: Of the running process; None before and after.
    """

    def __init__(self, log: Path, weights: Path | None = None, *, timeout_s: float = START_TIMEOUT_S) -> None:
        self._log = log
        self._weights = weights
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._served: Served | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def serve(self, point: Point | None = None) -> Served:
        if self._served is None:
            self._served = self.start()
        return self.inspect()

    def inspect(self) -> Served:
        assert self._served is not None, "it was never started"
        if problem := self._ended():
            raise ServerError(problem)
        return self._complete(probe.inspect(self._served.url))

    def _complete(self, served: Served) -> Served:
        return replace(served, launch={"log": str(self._log)})

    def start(self) -> Served:
        """Start the process and wait until it answers.

        :raises ServerError: It ended, or said nothing in time; with the end of its log.
        """
        if self._process is not None:
            raise ServerError(f"the reference engine is already running (pid {self._process.pid}); stop it first")
        self._log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pytest_dsr1.reference"]
        if self._weights is not None:
            command += ["--model", str(self._weights.resolve())]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(),
                # Its own session: Ctrl+C at a terminal is ours to handle, and `stop` ours to call.
                start_new_session=True,
            )
        try:
            url = self._read_url()
            return self._complete(probe.inspect(url))
        except BaseException:
            self.stop()
            raise

    def flush_cache(self) -> None:
        """It has no prefix cache."""

    def problem(self, patience_s: float) -> str:
        if problem := self._ended():
            return problem
        assert self._served is not None, "it was never started"
        return probe.silence(self._served.url, patience_s)

    def _ended(self) -> str:
        status = None if self._process is None else self._process.poll()
        if status is None:
            return ""
        return f"the reference engine has ended with status {status}. The end of {self._log}:\n{self._log_tail()}"

    def stop(self) -> None:
        """End the process: SIGTERM, and SIGKILL after a grace. Nothing to do if there is none."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def farewell(self, *, interrupted: bool) -> Sequence[str]:
        return ()

    def __enter__(self) -> Served:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _read_url(self) -> str:
        """Where it serves, from the one line that it prints when it is ready."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = _read_line(self._process.stdout, time.monotonic() + self._timeout_s)
        try:
            return str(json.loads(line)["url"])
        except (ValueError, KeyError, TypeError):
            pass
        try:
            found = f"it ended with status {self._process.wait(0.5)}"
        except subprocess.TimeoutExpired:
            found = f"it said nothing usable within {self._timeout_s:.0f} s"
        raise ServerError(f"the reference engine did not start: {found}. The end of {self._log}:\n{self._log_tail()}")

    def _log_tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return "\n".join(lines) or "(empty)"


def _environment() -> dict[str, str]:
    """Ours, with this package importable from anywhere: a checkout that nobody installed is found by its folder."""
    package_parent = str(Path(pytest_dsr1.__file__).resolve().parent.parent)
    others = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": package_parent + (os.pathsep + others if others else "")}


def _read_line(pipe: IO[bytes], deadline: float) -> bytes:
    """A line, or what there is of it at the deadline (of `time.monotonic`) or the end of file."""
    line = b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            break
        # Unbuffered, so that select tells the truth about what is left to read.
        data = os.read(pipe.fileno(), 4096)
        if not data:
            break
        line += data
    return line
