"""The servers of a session: chosen, asked, locked, handed to workers, stopped."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from pytest_dsr1.core.config import Point, SweepConfig
from pytest_dsr1.core.server import changes_between
from pytest_dsr1.servers import Reporter, Served, ServerError
from pytest_dsr1.servers.choose import choose
from pytest_dsr1.servers.launch import shell_line


class ServerPool:
    """The session's server, itself a `Server`; or several external ones.

    It lives in the process that owns the session: the only one, or xdist's controller.

    :param purpose: Shown to another session that finds the server locked.
    :param on_served: Called with each server that answers, and the point that it was asked for; it may raise a
        ServerError, which refuses the server.
    :param concurrent: Number of servers that are measured at the same time.
    :ivar choice: Which servers, and why.
    """

    def __init__(
        self,
        config: SweepConfig,
        environ: Mapping[str, str],
        reporter: Reporter,
        *,
        purpose: str,
        on_served: Callable[[Served, Point | None], None],
        concurrent: int = 1,
    ) -> None:
        self._purpose = purpose
        self._on_served = on_served
        self._concurrent = concurrent
        self.choice = choose(config, environ, config.reports_dir / "servers", reporter)
        self._locks: dict[str, IO[str]] = {}
        self._served: dict[int, Served] = {}
        self._free = list(range(concurrent))
        self._bound: dict[object, int] = {}
        self._failure: ServerError | None = None
        self._results: dict[Any, Mapping[str, Any]] = {}

    @property
    def served(self) -> tuple[Served, ...]:
        """The servers that have answered."""
        return tuple(self._served.values())

    def ask_all(self) -> tuple[Served, ...]:
        """Ask every server that will be measured.

        :raises ServerError: One does not answer, or they serve different models.
        """
        found = tuple(self._serve(place, None) for place in range(self._concurrent))
        for other in found[1:]:
            if (other.model, other.engine) != (found[0].model, found[0].engine):
                raise ServerError(
                    f"{found[0].url} serves {found[0].model} ({found[0].engine}) and {other.url} {other.model} "
                    f"({other.engine}), but a sweep measures one model; choose it with --model, or drop a --server-url"
                )
        return found

    # -- Server, for measurements in this process ---------------------------------------------------------------

    def serve(self, point: Point | None = None) -> Served:
        return self._serve(0, point)

    def inspect(self) -> Served:
        return self._complete(self.choice.servers[0].inspect())

    def flush_cache(self) -> None:
        self.choice.servers[0].flush_cache()

    def problem(self, patience_s: float) -> str:
        return self.choice.servers[0].problem(patience_s)

    def stop(self) -> None:
        for server in self.choice.servers:
            server.stop()
        for lock in self._locks.values():
            lock.close()
        self._locks.clear()

    # -- for workers ----------------------------------------------------------------------------------------------

    def bind(self, worker: object, point: Point) -> Served:
        """Give an xdist worker a server that no other worker has.

        A worker that replaces a crashed one has another name and gets the same server.

        :raises ServerError: It does not answer.
        """
        place = self._free.pop(0)
        self._bound[worker] = place
        return self._serve(place, point)

    def release(self, worker: object) -> None:
        """Take back a worker's server."""
        if worker in self._bound:
            self._free.insert(0, self._bound.pop(worker))

    # -- at the end -----------------------------------------------------------------------------------------------

    def closing_lines(self, *, interrupted: bool) -> Sequence[str]:
        return self.choice.servers[0].closing_lines(interrupted=interrupted)

    def changes_since_last(self, server: Mapping[str, Any]) -> str:
        """What others changed of a server since its last result; else empty.

        :param server: The `server` object of a result.
        """
        url = server.get("url")
        before, self._results[url] = self._results.get(url), server
        # Our own launches are noted elsewhere.
        if before is None or before.get("launch") != server.get("launch"):
            return ""
        return "; ".join(changes_between(before, server))

    def _serve(self, place: int, point: Point | None) -> Served:
        # A start that failed would fail again, after the same time.
        if self._failure is not None:
            raise self._failure
        try:
            served = self._complete(self.choice.servers[place].serve(point))
            if served.url not in self._locks:
                self._locks[served.url] = lock_server(served.url, self._purpose)
            self._on_served(served, point)
        except ServerError as error:
            self._failure = error
            raise
        self._served[place] = served
        return served

    def _complete(self, served: Served) -> Served:
        return replace(served, concurrent_servers=self._concurrent)


def launch_note(launch: Mapping[str, Any]) -> str:
    """A launch in one line of a summary: recipe, command line for a shell, log."""
    command = shell_line(launch["command"], launch["environment"])
    return f"launched by recipe {launch['recipe']} in {launch['start_s']:.0f} s: {command}; log: {launch['log']}"


def lock_server(url: str, purpose: str) -> IO[str]:
    """Take the lock of a server; closing the returned file releases it.

    :param purpose: Shown to a session that finds the server locked.
    :raises ServerError: Another session holds it, which the message names, or it cannot be taken.
    """
    try:
        file = _lock_file(url)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = file.read(300) or "another session"
            file.close()
            raise ServerError(f"{url} is being measured by {holder}; wait for its end, or stop it") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')} ({purpose})")
        file.flush()
    except OSError as error:
        raise ServerError(f"the server cannot be locked: {error.filename}: {error.strerror}") from None
    return file


def _lock_file(url: str) -> IO[str]:
    # One folder for all users of the machine, since they share the server. O_NOFOLLOW: any of them may put links there.
    folder = Path(tempfile.gettempdir()) / "pytest-dsr1-locks"
    folder.mkdir(exist_ok=True)
    if folder.is_symlink():
        raise NotADirectoryError(errno.ENOTDIR, "it is a symbolic link; remove it", str(folder))
    if folder.stat().st_uid == os.getuid():
        folder.chmod(0o1777)
    same = url.replace("//localhost", "//127.0.0.1")
    path = folder / f"{hashlib.sha256(same.encode()).hexdigest()[:24]}.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except PermissionError:
        # Linux forbids O_CREAT on another user's file in a sticky folder (fs.protected_regular).
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    if os.fstat(descriptor).st_uid == os.getuid():
        os.fchmod(descriptor, 0o666)
    return os.fdopen(descriptor, "r+", encoding="utf-8")
