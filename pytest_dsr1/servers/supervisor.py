"""A process between pytest and a server: it ends the server when pytest is gone.

It is run as a script by an isolated Python, which may not find packages of the user: it imports the standard library
only. The kernel closes its standard input when pytest dies, by SIGKILL too. (PR_SET_PDEATHSIG on the server would not
be enough: that signal is also sent when only the thread that started the server ends.)

Standard input: one JSON object (`argv`, `environment` to add, `log`, `grace_s`), then lines: `ready`, `stop`, `keep`;
`kill` after `stop` ends the grace.
Standard output: JSON objects, one a line: `started` (the server's pid) or `failed` (why), `log_error` (why the log
cannot be written; the server goes on), `kept`, and at the end `ended` (status as in subprocess, negative for a signal)
with `tail` (the last lines of the output) and `removed` (files in /dev/shm).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

#: <linux/prctl.h>
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_SHM = Path("/dev/shm")
#: How SGLang and its libraries name their files there. The name is only one of the conditions for removing a file.
_SHM_PREFIXES = ("sglang_", "sgl_shm_", "multi_tokenizer_args_", "nccl-", "cuda.shm.", "psm_", "torch_")
#: Of the output, kept for the report of the end.
TAIL_LINES = 100
LINE_LENGTH = 300
#: After SIGKILL: processes that wait for a GPU driver take a moment to end.
_REAP_S = 10.0


class Supervisor:
    """One server, from its start to the end of its last process."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self._log: int | None = None
        self._log_failed = False
        self._output_open = True
        self._partial = b""
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._status: int | None = None
        self._kept = False
        self._shm_before = set(_names(_SHM))
        self._shm_seen: set[int] = set()

    def run(self) -> None:
        """Start the server, wait for its end or for the order to end it, and remove what it leaves."""
        # Descendants that lose their parent become children of this process, which finds them at the end.
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        woken, waker = os.pipe()
        for end in (woken, waker):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(waker)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        try:
            self._log = os.open(self._order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            server = subprocess.Popen(
                self._order["argv"],
                env=os.environ | self._order["environment"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                # In its own session, it does not get a terminal's Ctrl+C, which pytest handles.
                start_new_session=True,
                # If this process is killed, the server gets a SIGTERM. This process has one thread only.
                preexec_fn=lambda: _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),
            )
        except OSError as error:
            _say(failed=f"{error.filename or self._order['argv'][0]}: {error.strerror}")
            return
        assert server.stdout is not None
        output = server.stdout.fileno()
        os.set_blocking(output, False)
        _say(started=server.pid)
        orders = b""
        listening = True
        while self._status is None:
            sources = [woken, *([output] if self._output_open else []), *([0] if listening else [])]
            ready, _, _ = select.select(sources, [], [])
            if output in ready:
                self._drain(output)
            if woken in ready:
                numbers = os.read(woken, 64)
                self._reap(server.pid)
                if self._status is None and any(number != signal.SIGCHLD for number in numbers):
                    break
            if 0 in ready:
                data = os.read(0, 4096)
                *lines, orders = (orders + data).split(b"\n")
                if b"stop" in lines:
                    break
                if b"ready" in lines:
                    self._look_at_shm(server.pid)
                if b"keep" in lines:
                    self._keep(server.pid)
                    listening = False
                elif not data:
                    break  # pytest is gone
        if self._status is None:
            self._look_at_shm(server.pid)
            self._end(server.pid, output)
        self._kill_rest(server.pid)
        self._drain(output)
        _say(ended=self._status, tail=[*self._tail], removed=self._remove_shm())

    def _keep(self, pid: int) -> None:
        """Continue without pytest, until the server ends or this process gets a SIGTERM."""
        self._kept = True
        _say(kept=pid)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1):
            os.dup2(nowhere, descriptor)

    # -- its output -------------------------------------------------------------------------------------------

    def _drain(self, output: int) -> None:
        """Read the output. A log that cannot be written must not stop the server."""
        for _ in range(64):
            try:
                data = os.read(output, 1 << 16)
            except BlockingIOError:
                return
            if not data:
                self._output_open = False
                return
            *lines, self._partial = (self._partial + data).split(b"\n")
            self._tail.extend(line[: LINE_LENGTH * 4].decode(errors="replace")[:LINE_LENGTH] for line in lines)
            self._partial = self._partial[-LINE_LENGTH * 4 :]
            self._write(data)

    def _write(self, data: bytes) -> None:
        if self._log is None:
            return
        try:
            while data:
                data = data[os.write(self._log, data) :]
        except OSError as error:
            if not self._log_failed:
                self._log_failed = True
                _say(log_error=error.strerror)

    # -- its end ----------------------------------------------------------------------------------------------

    def _reap(self, server: int) -> None:
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                if found[0] == server:
                    self._status = os.waitstatus_to_exitcode(found[1])

    def _end(self, server: int, output: int) -> None:
        """SIGTERM, and SIGKILL after the grace."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(server, signal.SIGTERM)
            # A stopped process (SIGSTOP) would not handle SIGTERM.
            os.killpg(server, signal.SIGCONT)
        deadline = time.monotonic() + self._order["grace_s"]
        while self._status is None and time.monotonic() < deadline:
            select.select([output] if self._output_open else [], [], [], 0.05)
            self._drain(output)
            self._reap(server)
            if self._was_told_to_kill():
                break
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server, signal.SIGKILL)

    def _was_told_to_kill(self) -> bool:
        """Whether the grace was ended."""
        with contextlib.suppress(BlockingIOError):
            os.set_blocking(0, False)
            return b"kill" in os.read(0, 4096)
        return False

    def _kill_rest(self, server: int) -> None:
        """Kill its process group and every descendant that left the group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(server, signal.SIGKILL)
        deadline = time.monotonic() + _REAP_S
        while time.monotonic() < deadline:
            self._reap(server)
            children = list(_descendants(os.getpid()))
            if not children:
                break
            for pid in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        self._reap(server)

    # -- what it leaves in /dev/shm ---------------------------------------------------------------------------

    def _look_at_shm(self, server: int) -> None:
        """Note the files that its processes have mapped. Not called while it is measured, since it takes time."""
        for pid in (server, *_descendants(server)):
            self._shm_seen |= _mapped(pid)

    def _remove_shm(self) -> list[str]:
        """Remove its files that no process uses: a killed server cannot remove them itself."""
        ours: dict[str, int] = {}
        for name in set(_names(_SHM)) - self._shm_before:
            with contextlib.suppress(OSError):
                found = (_SHM / name).lstat()
                known = found.st_ino in self._shm_seen or name.startswith(_SHM_PREFIXES)
                if known and found.st_uid == os.getuid():
                    ours[name] = found.st_ino
        used = set().union(*map(_mapped, _pids())) if ours else set()
        removed = []
        for name in sorted(name for name, inode in ours.items() if inode not in used):
            with contextlib.suppress(OSError):
                (_SHM / name).unlink()
                removed.append(name)
        return removed


def _prctl(option: int, value: int) -> None:
    # Absent outside Linux; only the process group is ended there.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _say(**event: Any) -> None:
    # pytest may be gone.
    with contextlib.suppress(OSError):
        os.write(1, (json.dumps(event) + "\n").encode())


def _pids() -> Iterator[int]:
    return (int(name) for name in _names(Path("/proc")) if name.isdecimal())


def _descendants(ancestor: int) -> Iterator[int]:
    """The living descendants of a process."""
    parents = dict(_parents())
    for pid in parents:
        above: int | None = parents[pid]
        while above:
            if above == ancestor:
                yield pid
                break
            above = parents.get(above)


def _parents() -> Iterable[tuple[int, int]]:
    for pid in _pids():
        with contextlib.suppress(OSError):
            # The command's name is in parentheses, and may contain parentheses itself.
            state, parent, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if state != "Z":
                yield pid, int(parent)


def _mapped(pid: int) -> set[int]:
    """Inodes in /dev/shm that a process has mapped or open; empty if it may not be inspected.

    Not names: the C library creates a semaphore under a temporary name, which is the one that the kernel shows.
    """
    found = set()
    prefix = f"{_SHM}/"
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
            if prefix in line:
                # address, permissions, offset, device, inode, path
                found.add(int(line.split(maxsplit=5)[4]))
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if str(descriptor.readlink()).startswith(prefix):
                    found.add(descriptor.stat().st_ino)
    return found


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208, names and not paths
    except OSError:
        return []


def _first_line() -> bytes:
    """One line of standard input, unbuffered: select must see the bytes that follow."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(0, 1)):
        line += byte
    return line


if __name__ == "__main__":
    if order := _first_line():
        Supervisor(json.loads(order)).run()
