"""A process between pytest and a server: it ends the server when pytest is gone.

It is run as a script by an isolated Python. Its arguments are the folder of psutil, which that Python may not find, and
a JSON object: `argv`, `environment` (variables to add), `log` (path), `grace_s` (from SIGTERM to SIGKILL, in seconds).

Standard input: the lines `ready` (the server serves) and `keep` (let it run without pytest). The kernel closes it when
pytest dies, by SIGKILL too; that ends the server. (PR_SET_PDEATHSIG on the server would not be enough: that signal is
also sent when only the thread that started the server ends.) SIGTERM ends the server too; a second one ends the grace.

Standard output: an event a line: `started PID` or `failed WHY`, `log_error WHY` (the log cannot be written; the server
goes on), `ended STATUS` (as in subprocess, negative for a signal).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

if __name__ == "__main__":
    sys.path.append(sys.argv[1])

import psutil

#: <linux/prctl.h>
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_SHM = Path("/dev/shm")
#: How SGLang and its libraries name their files there. The name is only one of the conditions for removing a file.
_SHM_PREFIXES = ("sglang_", "sgl_shm_", "multi_tokenizer_args_", "nccl-", "cuda.shm.", "psm_", "torch_")
#: Each of these ends the server.
_ENDING = (signal.SIGTERM, signal.SIGINT)
#: After SIGKILL: processes that wait for a GPU driver take a moment to end.
_REAP_S = 10.0


def supervise(order: dict[str, Any]) -> None:
    """Start the server, wait for its end or end it, and remove what it leaves."""
    # Descendants that lose their parent become children of this process, which finds them at the end.
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    events: SimpleQueue[str] = SimpleQueue()
    for number in _ENDING:
        signal.signal(number, lambda *_: events.put("signal"))
    shm = _SharedMemory()
    try:
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        server = subprocess.Popen(
            order["argv"],
            env=os.environ | order["environment"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # In its own session, it does not get a terminal's Ctrl+C, which pytest handles.
            start_new_session=True,
            # If this process is killed, the server gets a SIGTERM. There are no other threads yet.
            preexec_fn=lambda: _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),
        )
    except OSError as error:
        _say(f"failed {error.filename or order['argv'][0]}: {error.strerror}")
        return
    _say(f"started {server.pid}")
    # Threads inherit it: only the main thread runs handlers, so only it may get the signals.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    copier = threading.Thread(target=_copy, args=(server, log), daemon=True)
    for thread in (
        copier,
        threading.Thread(target=_listen, args=(events,), daemon=True),
        threading.Thread(target=_wait, args=(server, events), daemon=True),
    ):
        thread.start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    kept = False
    while (event := events.get()) not in ("ended", "signal") and (kept or event != "closed"):
        kept = kept or event == "keep"
        if event == "ready":
            shm.look_at(server.pid)
    if event != "ended":
        shm.look_at(server.pid)
        server.terminate()
        # A stopped process (SIGSTOP) would not handle SIGTERM.
        signal_group(server.pid, signal.SIGCONT)
        event = _next(events, {"ended", "signal"}, order["grace_s"])
    signal_group(server.pid, signal.SIGKILL)
    if event != "ended" and _next(events, {"ended"}, _REAP_S) != "ended":
        return
    _kill_descendants()
    copier.join(_REAP_S)
    shm.remove()
    _say(f"ended {server.returncode}")


def _say(event: str) -> None:
    # pytest may be gone.
    with contextlib.suppress(OSError):
        os.write(1, f"{event}\n".encode())


def _copy(server: subprocess.Popen[bytes], log: int) -> None:
    """Append its output to the log; an error of the log does not stop the server."""
    assert server.stdout is not None
    failed = False
    while data := os.read(server.stdout.fileno(), 1 << 16):
        try:
            while data:
                data = data[os.write(log, data) :]
        except OSError as error:
            if not failed:
                _say(f"log_error {error.strerror}")
            failed = True


def _listen(events: SimpleQueue[str]) -> None:
    while orders := os.read(0, 4096):
        for order in orders.decode().split():
            events.put(order)
    events.put("closed")


def _wait(server: subprocess.Popen[bytes], events: SimpleQueue[str]) -> None:
    server.wait()
    events.put("ended")


def _next(events: SimpleQueue[str], wanted: set[str], timeout_s: float) -> str:
    """The next event of `wanted`; empty if there is none within `timeout_s`."""
    until = time.monotonic() + timeout_s
    with contextlib.suppress(Empty):
        while (event := events.get(timeout=max(until - time.monotonic(), 0.0))) not in wanted:
            pass
        return event
    return ""


def signal_group(group: int, number: signal.Signals) -> None:
    # The group is empty, or has processes of another user.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _kill_descendants() -> None:
    """Kill until this process has no child left.

    /proc alone may miss a process that gets a new parent.
    """
    until = time.monotonic() + _REAP_S
    while time.monotonic() < until:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for each in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                each.kill()
        time.sleep(0.01)


class _SharedMemory:
    """The files that a killed server leaves in /dev/shm."""

    def __init__(self) -> None:
        self._before = set(_SHM.glob("*"))
        self._seen: set[int] = set()

    def look_at(self, pid: int) -> None:
        """Note what the server has mapped; not while it is measured: it takes time."""
        with contextlib.suppress(psutil.Error):
            server = psutil.Process(pid)
            for each in (server, *server.children(recursive=True)):
                self._seen |= _mapped(each.pid)

    def remove(self) -> None:
        """Remove this user's new files of the server, unless a process uses them."""
        ours: dict[Path, int] = {}
        for path in set(_SHM.glob("*")) - self._before:
            with contextlib.suppress(OSError):
                found = path.lstat()
                known = found.st_ino in self._seen or path.name.startswith(_SHM_PREFIXES)
                if known and found.st_uid == os.getuid():
                    ours[path] = found.st_ino
        used = set().union(*map(_mapped, psutil.pids())) if ours else set()
        for path, inode in ours.items():
            if inode not in used:
                path.unlink(missing_ok=True)


def _mapped(pid: int) -> set[int]:
    """Inodes in /dev/shm that a process has mapped or open, if that can be seen.

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


def _prctl(option: int, value: int) -> None:
    # Absent outside Linux; only the process group is ended there.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    supervise(json.loads(sys.argv[2]))
