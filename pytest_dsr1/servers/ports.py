"""Who listens on a port of this machine, and what that process is."""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

#: Command lines of other people's processes are shown in messages, and their keys must not be.
_SECRET = re.compile(
    r"(?i)(--?[\w-]*(?:key|secret|password|passwd|passphrase|credentials?|(?:auth|access|hf)-token)[ =])\S+"
)


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
    """Whether a process was started with these arguments and these variables; False where it may not be seen.

    The program's own path is not compared: an interpreter may have been found by another name, or by a script.
    """
    try:
        process = psutil.Process(pid)
        return process.cmdline()[1:] == list(argv[1:]) and environment.items() <= process.environ().items()
    except psutil.Error:
        return False


def is_taken(host: str, port: int) -> bool:
    """Whether a server could not listen at (host, port) because another one does: tried as a server does.

    Other obstacles (no such address here, a port that needs privileges) are not looked for: False.

    :param host: An address or name of this machine; empty: all of its addresses.
    """
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror:
        return False
    for family, kind, protocol, _, address in addresses:
        with suppress(OSError), socket.socket(family, kind, protocol) as candidate:
            # A connection in TIME_WAIT is then no obstacle; a listener still is.
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                candidate.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                candidate.bind(address)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return True
    return False


def free_port() -> int:
    """A port of loopback on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
