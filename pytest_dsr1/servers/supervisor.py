"""Stands between pytest and a server that it started, and ends that server when pytest is gone, however it went.

A process of its own, run by file name under any Python: it needs the standard library and nothing of this package. The
kernel closes its standard input when pytest dies, by SIGKILL too; a signal upon a parent's death would not do, since it
also comes when only the thread ends that launched the server.

Standard input: one JSON object (`argv`, `environment` to add, `log`, `grace_s`), then lines: `ready`, `stop`, `keep`,
and `kill` to one that was told to stop.
Standard output: JSON objects, one a line: `started` (the server's pid) or `failed` (why it was not), `log_error`
(the log cannot be written; the server is not disturbed by that), `kept`, and at the end `ended` (status as subprocess
has it, negative for a signal) with `tail` (the output's last lines) and `removed` (files in /dev/shm).
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
#: What SGLang, and the libraries that it uses, call their files there; a name alone is never enough to remove one.
_SHM_PREFIXES = ("sglang_", "sgl_shm_", "multi_tokenizer_args_", "nccl-", "cuda.shm.", "psm_", "torch_")
#: Kept for the report of its end: what can be told without the log.
TAIL_LINES = 100
LINE_LENGTH = 300
#: After SIGKILL: processes in an uninterruptible wait (a GPU driver's) need a moment.
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
        self._started = time.time()

    def run(self) -> None:
        """Start it, wait for its end or for the order to end it, and leave nothing behind."""
        # Whatever its descendants detach from becomes a child of this process, and is found at the end.
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        woken, waker = os.pipe()
        for end in (woken, waker):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(waker)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        try:
            self._log = os.open(self._order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            # stderr into stdout: one stream, so that lines stay in order.
            server = subprocess.Popen(
                self._order["argv"],
                env=os.environ | self._order["environment"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                # Its own session and process group: a terminal's Ctrl+C is pytest's to handle.
                start_new_session=True,
                # Should this process be killed itself, the server ends in good order. There are no threads here.
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
        """Go on without pytest, until the server ends or this process gets a SIGTERM."""
        self._kept = True
        _say(kept=pid)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1):
            os.dup2(nowhere, descriptor)

    # -- its output -------------------------------------------------------------------------------------------

    def _drain(self, output: int) -> None:
        """Read what it has written: never blocked on a full disk, it must not stop for its log."""
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
        """Ask it to end, and make it end after the grace."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(server, signal.SIGTERM)
            # One that was stopped can only then do as it is asked.
            os.killpg(server, signal.SIGCONT)
        deadline = time.monotonic() + self._order["grace_s"]
        while self._status is None and time.monotonic() < deadline:
            select.select([output] if self._output_open else [], [], [], 0.05)
            self._drain(output)
            self._reap(server)
            if self._is_in_a_hurry():
                break
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server, signal.SIGKILL)

    def _is_in_a_hurry(self) -> bool:
        """Whether it was told not to wait for the grace."""
        with contextlib.suppress(BlockingIOError):
            os.set_blocking(0, False)
            return b"kill" in os.read(0, 4096)
        return False

    def _kill_rest(self, server: int) -> None:
        """Its process group, and whatever left the group: no process of it goes on."""
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
        """Note the files there that its processes have mapped; not while it is measured, since that takes time."""
        for pid in (server, *_descendants(server)):
            self._shm_seen |= _mapped(pid)

    def _remove_shm(self) -> list[str]:
        """Remove those files of it that nobody alive uses: a killed server cannot do it itself."""
        ours: dict[str, int] = {}
        for name in set(_names(_SHM)) - self._shm_before:
            with contextlib.suppress(OSError):
                found = (_SHM / name).lstat()
                mine = found.st_uid == os.getuid() and found.st_ctime >= self._started - 1.0
                if mine and (found.st_ino in self._shm_seen or name.startswith(_SHM_PREFIXES)):
                    ours[name] = found.st_ino
        used = set().union(*map(_mapped, _pids())) if ours else set()
        removed = []
        for name in sorted(name for name, inode in ours.items() if inode not in used):
            with contextlib.suppress(OSError):
                (_SHM / name).unlink()
                removed.append(name)
        return removed


def _prctl(option: int, value: int) -> None:
    # Absent outside Linux; then the process group is all that is ended.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _say(**event: Any) -> None:
    # Nobody may be left to hear it.
    with contextlib.suppress(OSError):
        os.write(1, (json.dumps(event) + "\n").encode())


def _pids() -> Iterator[int]:
    return (int(name) for name in _names(Path("/proc")) if name.isdecimal())


def _descendants(ancestor: int) -> Iterator[int]:
    """Every living process below `ancestor`."""
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
            # The command's name stands in brackets, and may hold anything.
            state, parent, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if state != "Z":
                yield pid, int(parent)


def _mapped(pid: int) -> set[int]:
    """Inodes in /dev/shm that a process has mapped or open; empty for one that may not be looked at.

    Not names: the C library makes a semaphore under another one, which is what the kernel goes on to show.
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
    """One line of standard input, and not a byte more: what follows is for select to wait for."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(0, 1)):
        line += byte
    return line


if __name__ == "__main__":
    if order := _first_line():
        Supervisor(json.loads(order)).run()
