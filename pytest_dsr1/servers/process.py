"""A server's process, started under a supervisor that ends it when pytest is gone."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_dsr1.servers import ServerError, supervisor

#: For the start of the supervisor: an interpreter and one fork.
_START_TIMEOUT_S = 30.0
#: After the grace, for SIGKILL, reaping and /dev/shm.
_END_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Ended:
    """The end of a server.

    :param status: As in subprocess: an exit status, or minus the signal; None if it is unknown.
    :param tail: The last lines of its output.
    :param removed: Files that it left in /dev/shm, and that were removed.
    """

    status: int | None
    tail: Sequence[str] = ()
    removed: Sequence[str] = ()

    @property
    def how(self) -> str:
        """`exit status 3`, `killed by SIGKILL`."""
        if self.status is None:
            return "how is unknown, since its supervisor is gone"
        if self.status >= 0:
            return f"exit status {self.status}"
        try:
            return f"killed by {signal.Signals(-self.status).name}"
        except ValueError:
            return f"killed by signal {-self.status}"


@dataclass
class ServerProcess:
    """One server process and its supervisor.

    :param environment: Variables that are added to ours.
    :param grace_s: Seconds between SIGTERM and SIGKILL.
    :ivar pid: Of the server.
    :ivar log_error: Why the log is no longer written; empty while it is.
    :ivar kept: Whether the server was left running.
    """

    argv: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    grace_s: float
    pid: int = 0
    log_error: str = ""
    ended: Ended | None = None
    kept: bool = False
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _unread: bytes = field(default=b"", repr=False)

    def start(self) -> None:
        """Start supervisor and server.

        :raises ServerError: The log cannot be written, or the command cannot be run.
        """
        order = {
            "argv": list(self.argv),
            "environment": dict(self.environment),
            "log": str(self.log),
            "grace_s": self.grace_s,
        }
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            # The supervisor's own errors are written to the log, too.
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    # Isolated: PYTHON… variables are meant for the server.
                    [sys.executable, "-I", str(Path(supervisor.__file__).resolve())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as error:
            raise ServerError(
                f"the server's log {self.log} cannot be written ({error.strerror}); see --reports-dir"
            ) from None
        self._tell(json.dumps(order))
        until = time.monotonic() + _START_TIMEOUT_S
        while not self.pid:
            if not self._hear(until - time.monotonic()) or self.ended is not None:
                self.stop()
                raise ServerError(f"the server's supervisor did not start the server; see {self.log}")

    def poll(self, timeout_s: float = 0.0) -> Ended | None:
        """Its end, if it has ended or ends within `timeout_s`; else None."""
        until = time.monotonic() + timeout_s
        while self.ended is None and self._hear(until - time.monotonic()):
            pass
        return self.ended

    def ready(self) -> None:
        """Say that it serves, so that the supervisor notes its files in /dev/shm."""
        self._tell("ready")

    def keep(self) -> None:
        """Leave it running when this process ends."""
        self._tell("keep")
        until = time.monotonic() + _START_TIMEOUT_S
        while not self.kept and self.ended is None and self._hear(until - time.monotonic()):
            pass
        self._close()

    def stop(self) -> Ended | None:
        """End all of its processes: SIGTERM, and SIGKILL after the grace."""
        if self._process is None:
            return self.ended
        # A stopped supervisor (SIGSTOP) would not read the order.
        self._process.send_signal(signal.SIGCONT)
        self._tell("stop")
        try:
            self.poll(self.grace_s + _END_TIMEOUT_S)
        except KeyboardInterrupt:
            # A second Ctrl+C: no grace.
            self._tell("kill")
            self.poll(_END_TIMEOUT_S)
            raise
        finally:
            if self.ended is None:
                self._abandon()
            self._close()
        return self.ended

    def _abandon(self) -> None:
        """Kill the server and its supervisor, which does not answer."""
        self.ended = Ended(None)
        if self.pid:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        if self._process is not None:
            self._process.kill()

    def _close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        if not self.kept:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_TIMEOUT_S)
        # A kept supervisor outlives this process; without a status, subprocess would warn of it.
        process.returncode = process.returncode or 0

    def _tell(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        # If the supervisor is gone, the next `_hear` finds out.
        with suppress(OSError):
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def _hear(self, timeout_s: float) -> bool:
        """Read one event; False if none came in time, or the supervisor is gone."""
        process = self._process
        if process is None or process.stdout is None:
            return False
        until = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            if not select.select([process.stdout], [], [], max(until - time.monotonic(), 0.0))[0]:
                return False
            data = os.read(process.stdout.fileno(), 1 << 16)
            if not data:
                if self.ended is None:
                    self._abandon()
                return False
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        self._take(json.loads(line))
        return True

    def _take(self, event: Mapping[str, Any]) -> None:
        match event:
            case {"started": pid}:
                self.pid = int(pid)
            case {"failed": why}:
                self._close()
                raise ServerError(f"{self.argv[0]} cannot be started: {why}")
            case {"log_error": why}:
                self.log_error = str(why)
            case {"kept": _}:
                self.kept = True
            case {"ended": status, "tail": tail, "removed": removed}:
                self.ended = Ended(status, tail, removed)
