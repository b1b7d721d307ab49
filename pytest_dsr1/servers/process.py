"""A server's process under its supervisor, and who listens on a port."""

from __future__ import annotations

import errno
import json
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pytest_dsr1.servers import ServerError, supervisor

#: For the start of the supervisor: an interpreter and one fork.
_START_TIMEOUT_S = 30.0
#: After the grace, for SIGKILL, reaping and /dev/shm.
_END_TIMEOUT_S = 20.0
#: Command lines of other people's processes are shown in messages, and their keys must not be.
_SECRET = re.compile(
    r"(?i)(--?[\w-]*(?:key|secret|password|passwd|passphrase|credentials?|(?:auth|access|hf)-token)[ =])\S+"
)


@dataclass
class ServerProcess:
    """One server process and its supervisor.

    :param environment: Variables that are added to ours.
    :param grace_s: Seconds between SIGTERM and SIGKILL.
    :ivar pid: Of the server.
    :ivar log_error: Why the log is no longer written; empty while it is.
    :ivar ended: How it ended: `exit status 3`, `killed by SIGKILL`; empty while it runs.
    :ivar kept: Whether the server was left running.
    """

    argv: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    grace_s: float
    pid: int = 0
    log_error: str = ""
    ended: str = ""
    kept: bool = False
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

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
        packages, script = Path(psutil.__file__).parents[1], Path(supervisor.__file__).resolve()
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            # The supervisor's own errors are written to the log, too.
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    # Isolated: PYTHON… variables are meant for the server.
                    [sys.executable, "-I", str(script), str(packages), json.dumps(order)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    bufsize=0,
                    start_new_session=True,
                )
        except OSError as error:
            raise ServerError(
                f"the server's log {self.log} cannot be written ({error.strerror}); see --reports-dir"
            ) from None
        self._next_event(_START_TIMEOUT_S)
        if not self.pid:
            why = self.ended or "its supervisor does not answer"
            self.stop()
            raise ServerError(f"{self.argv[0]} cannot be started: {why}; see {self.log}")

    def poll(self, timeout_s: float = 0.0) -> str:
        """How it ended, if it has ended or ends within `timeout_s`; else empty."""
        until = time.monotonic() + timeout_s
        while not self.ended and self._next_event(until - time.monotonic()):
            pass
        return self.ended

    def ready(self) -> None:
        """Say that it serves, so that the supervisor notes its files in /dev/shm."""
        self._tell(b"ready\n")

    def keep(self) -> None:
        """Leave it running when this process ends."""
        self._tell(b"keep\n")
        self.kept = True
        self._close()

    def stop(self) -> None:
        """End all of its processes: SIGTERM, and SIGKILL after the grace."""
        if self._process is None:
            return
        self._process.terminate()
        # A stopped supervisor (SIGSTOP) would not handle it.
        self._process.send_signal(signal.SIGCONT)
        try:
            self.poll(self.grace_s + _END_TIMEOUT_S)
        except KeyboardInterrupt:
            # A second Ctrl+C: no grace.
            self._process.terminate()
            self.poll(_END_TIMEOUT_S)
            raise
        finally:
            self._close()

    def _close(self) -> None:
        assert self._process is not None
        process, self._process = self._process, None
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        if self.kept:
            # The supervisor outlives this process; without a status, subprocess would warn of it.
            process.returncode = 0
            return
        if not self.ended:
            self._kill()
            process.kill()
        process.wait(_END_TIMEOUT_S)

    def _kill(self) -> None:
        """Kill the server, whose supervisor does not answer."""
        self.ended = "how is unknown, since its supervisor is gone"
        if self.pid:
            supervisor.signal_group(self.pid, signal.SIGKILL)

    def _tell(self, order: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        # If the supervisor is gone, the next `poll` finds out.
        with suppress(OSError):
            self._process.stdin.write(order)

    def _next_event(self, timeout_s: float) -> bool:
        """Read one event; False if none came in time, or the supervisor is gone."""
        if self._process is None or self._process.stdout is None:
            return False
        if not select.select([self._process.stdout], [], [], max(timeout_s, 0.0))[0]:
            return False
        # An event is written at once, so its line is complete.
        event, _, value = self._process.stdout.readline().decode().rstrip("\n").partition(" ")
        match event:
            case "started":
                self.pid = int(value)
            case "log_error":
                self.log_error = value
            case "failed":
                self.ended = value
            case "ended":
                self.ended = _how(int(value))
            case _:
                self._kill()
        return True


def _how(status: int) -> str:
    """`exit status 3`, `killed by SIGKILL`."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


# -- any process ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that listens on a port.

    :param command: Its command line without the values of secrets; the bare name where it has no command line.
    :param started: Seconds since the epoch.
    """

    pid: int
    command: str
    started: float


def holder_of(port: int) -> Holder | None:
    """Find the process that listens on `port`, at whatever address.

    Of several that share a socket it is the one with the lowest pid, as a rule their parent.

    :return: None if there is none, or if it may not be seen (another user's, outside the container).
    """
    try:
        sockets = psutil.net_connections(kind="tcp")
    except (psutil.Error, OSError):
        return None
    listening = (each for each in sockets if each.status == psutil.CONN_LISTEN and each.laddr[1:] == (port,))
    for pid in sorted({each.pid for each in listening if each.pid is not None}):
        with suppress(psutil.Error):
            process = _remembered(pid)
            command = " ".join(" ".join(process.cmdline()).split())
            return Holder(pid, _SECRET.sub(r"\1…", command) or process.name(), process.create_time())
    return None


#: Of the processes that were asked for. psutil computes a process's start from the time of boot, which changes by a
#: second when the clock is adjusted; one object keeps the start that it computed first.
_processes: dict[int, psutil.Process] = {}


def _remembered(pid: int) -> psutil.Process:
    """:raises psutil.NoSuchProcess: It has ended."""
    if pid not in _processes or not _processes[pid].is_running():
        _processes[pid] = psutil.Process(pid)
    return _processes[pid]


def is_descendant(pid: int, ancestor: int) -> bool:
    """Whether process `pid` is `ancestor` or one of its descendants."""
    try:
        return pid == ancestor or ancestor in (each.pid for each in psutil.Process(pid).parents())
    except psutil.Error:
        return False


def runs_with(pid: int, argv: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether a process has these arguments and variables, as far as can be seen.

    The program's own path is not compared: an interpreter may have been found by another name, or by a script.
    """
    try:
        process = psutil.Process(pid)
        return process.cmdline()[1:] == list(argv[1:]) and environment.items() <= process.environ().items()
    except psutil.Error:
        return False


def is_taken(host: str, port: int) -> bool:
    """Whether another server listens at (host, port): tried by listening.

    Other obstacles (no such address here, a port that needs privileges) are not looked for: False.

    :param host: An address or name of this machine; empty: all of its addresses.
    """
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror:
        return False
    for family, _, _, _, address in addresses:
        try:
            # With SO_REUSEADDR: a connection in TIME_WAIT is no obstacle, a listener is.
            socket.create_server(address, family=family).close()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return True
    return False


def free_port() -> int:
    """A port of loopback on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
