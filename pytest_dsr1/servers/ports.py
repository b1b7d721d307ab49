"""Who holds a port of this machine."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path

_PROC = Path("/proc")
#: TCP_LISTEN in the column `st` of /proc/net/tcp (include/net/tcp_states.h).
_LISTEN = "0A"
#: Somebody's command line is shown in messages, and his key is not.
_SECRET = re.compile(
    r"(?i)(--?[\w-]*(?:key|secret|password|passwd|passphrase|credentials?|(?:auth|access|hf)-token)[ =])\S+"
)


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that listens on a port.

    :param command: Its command line, values of secrets left out; the bare name where it has none.
    :param started: Seconds since the epoch, true to a second.
    """

    pid: int
    command: str
    started: float


def holder_of(port: int, likely: Iterable[int] = ()) -> Holder | None:
    """Find the process that listens on `port`, on whatever address.

    Of several that share the socket, the one with the lowest pid, as a rule their parent. Where nobody listens it
    takes two reads; else the open files of one process after the other are looked through, at 2 µs a file.

    :param likely: Processes to look at first.
    :return: None if there is none, it may not be seen (another user's, outside the container), or this is not Linux.
    """
    sockets = {f"socket:[{inode}]" for table in ("tcp", "tcp6") for inode in _listening(table, port)}
    if not sockets:
        return None
    for pid in chain(likely, _pids()):
        if _has_open(pid, sockets) and (holder := _holder(pid)) is not None:
            return holder
    return None


def is_taken(host: str, port: int) -> bool:
    """Whether a server could not listen at (host, port), since another does: tried as a server does.

    Other obstacles (no such address here, a port that needs privileges) are not looked for: False.

    :param host: An address or name of this machine; empty: all of its addresses.
    """
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror:
        return False
    for family, kind, protocol, _, address in addresses:
        with suppress(OSError), socket.socket(family, kind, protocol) as candidate:
            # What ended lately, and waits in TIME_WAIT, is no obstacle; who listens is one all the same.
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                candidate.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                candidate.bind(address)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return True
    return False


def is_descendant(pid: int, ancestor: int) -> bool:
    """Whether process `pid` is `ancestor` or comes from it. One whose parent is gone comes from nobody any more."""
    seen = set()
    while pid != ancestor:
        if pid <= 1 or pid in seen:
            return False
        seen.add(pid)
        status = _status(pid)
        pid = 0 if status is None else int(status[_PPID])
    return True


def runs_with(pid: int, argv: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether a process was started with these arguments and these variables; False where it may not be seen.

    The program's own path is not compared: an interpreter may have been found by another name, or by a script.
    """
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
        variables = (_PROC / str(pid) / "environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return words[1:] == list(argv[1:]) and {f"{name}={value}" for name, value in environment.items()} <= set(variables)


def _listening(table: str, port: int) -> Iterator[str]:
    """Inodes of the sockets in /proc/net/`table` that listen on `port`."""
    wanted = f":{port:04X}"
    try:
        # Ours, in our network namespace; in bytes, since nothing else in it is needed.
        rows = (_PROC / "net" / table).read_bytes().decode("ascii", "replace").splitlines()
    except OSError:
        return
    for row in rows:
        # sl, local address, remote address, state, queues, timer, retransmits, uid, timeout, inode, …
        columns = row.split(maxsplit=10)
        if len(columns) > 9 and columns[3] == _LISTEN and columns[1].endswith(wanted):
            yield columns[9]


def _pids() -> Iterator[int]:
    with suppress(OSError), os.scandir(_PROC) as entries:
        yield from sorted(int(entry.name) for entry in entries if entry.name.isascii() and entry.name.isdigit())


def _has_open(pid: int, sockets: set[str]) -> bool:
    """Whether one of `sockets` is among the process's open files; False if they may not be seen."""
    try:
        folder = os.open(f"{_PROC}/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    # Relative to the open folder: the path would be looked up for each of 100,000 files.
                    if os.readlink(entry.name, dir_fd=folder) in sockets:
                        return True
                except OSError:
                    continue  # closed meanwhile
    except OSError:
        return False
    finally:
        os.close(folder)
    return False


def _holder(pid: int) -> Holder | None:
    """None if the process ended meanwhile."""
    status = _status(pid)
    if status is None:
        return None
    try:
        arguments = (_PROC / str(pid) / "cmdline").read_bytes()
        name = (_PROC / str(pid) / "comm").read_text(errors="replace").strip()
    except OSError:
        return None
    command = " ".join(arguments.decode(errors="replace").replace("\0", " ").split())
    started = _boot_time() + int(status[_STARTTIME]) / os.sysconf("SC_CLK_TCK")
    return Holder(pid, _SECRET.sub(r"\1…", command) or name, started)


#: Fields of /proc/PID/stat behind the name, counted from the state (proc(5): the 3rd): ppid, starttime.
_PPID = 4 - 3
_STARTTIME = 22 - 3


def _status(pid: int) -> list[str] | None:
    """/proc/PID/stat behind the process's name, which may hold blanks and parentheses itself; None if it is gone."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return fields if len(fields) > _STARTTIME else None


@cache
def _boot_time() -> int:
    """Seconds since the epoch, from the line `btime` of /proc/stat."""
    for line in (_PROC / "stat").read_text().splitlines():
        if line.startswith("btime "):
            return int(line.split()[1])
    return 0
