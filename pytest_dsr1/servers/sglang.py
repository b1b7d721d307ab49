"""SGLang, launched: from the check of its port to the end of its last process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_dsr1.core.config import Point
from pytest_dsr1.core.server import Served
from pytest_dsr1.core.text import duration
from pytest_dsr1.servers import ServerError, Voice, joined, probe
from pytest_dsr1.servers.launch import Launch
from pytest_dsr1.servers.launch_log import cause_of_death, progress_of, telling_lines
from pytest_dsr1.servers.ports import holder_of, is_descendant, is_taken
from pytest_dsr1.servers.supervised import Ended, Supervised

#: Between SIGTERM and SIGKILL. Idle it takes 3 to 6 s; what is in flight it finishes first, and nothing is by then.
STOP_GRACE_S = 20.0
#: Longest time between two looks whether it is ready. Each is a prefill in SGLang, and a line in its log.
POLL_S = 1.0
#: For one answer while it starts.
_ANSWER_S = 5.0
#: From its closed connections to its end being known.
_DYING_S = 3.0
#: A start that is shorter than this is no loss.
LONG_START_S = 60.0
#: Of the log, for messages.
_TAIL_BYTES = 64 * 1024
_LINE_LENGTH = 4096


class SglangServer:
    """A server that is launched, and launched anew where a point's recipe wants other arguments.

    :param launch_for: The command line for a point.
    :param logs: Folder of logs; each start makes one.
    :param timeout_s: Longest wait for readiness.
    :param keep: Whether `stop` leaves it running, if it serves.
    """

    def __init__(
        self, launch_for: Callable[[Point], Launch], logs: Path, voice: Voice, *, timeout_s: float, keep: bool = False
    ) -> None:
        self._launch_for = launch_for
        self._logs, self._voice = logs, voice
        self._timeout_s, self._keep = timeout_s, keep
        self._launch: Launch | None = None
        self._process: Supervised | None = None
        self._start_s: float | None = None

    @property
    def pid(self) -> int | None:
        """Of the running server."""
        return self._process.pid if self._process is not None and self._process.ended is None else None

    @property
    def url(self) -> str | None:
        """Where it serves, once it does."""
        return self._launch.url if self._launch is not None and self._start_s is not None else None

    def serve(self, point: Point | None = None) -> Served:
        assert point is not None, "a launch is made for a point"
        launch = self._launch_for(point)
        if self._launch is not None and launch != self._launch:
            self._voice.line(f"restarting SGLang for {point.id}: {launch.changes(self._launch)}")
            self._end()
        if self._process is None:
            self._start(launch)
        elif problem := self._death():
            raise ServerError(problem)
        return self.inspect()

    def inspect(self) -> Served:
        assert self._launch is not None, "it was never started"
        if problem := self._death():
            raise ServerError(problem)
        try:
            served = probe.inspect(self._launch.url, self._launch.model)
        except ServerError as error:
            raise ServerError(self._death(_DYING_S) or str(error)) from None
        return replace(served, engine="sglang" if not served.is_reference else served.engine, launch=self._described())

    def flush_cache(self) -> None:
        """:raises ServerError: It cannot be emptied, so what is measured next might not be the model."""
        if self._launch is not None and (problem := probe.flush_cache(self._launch.url)):
            raise ServerError(f"{self._launch.url}: {problem}")

    def problem(self, patience_s: float) -> str:
        if self._launch is None or self._process is None:
            return ""
        if problem := self._death():
            return problem
        if not (silence := probe.silence(self._launch.url, patience_s)):
            return ""
        return self._death(_DYING_S) or f"{silence}; see {self._log}{joined(telling_lines(self._tail()))}"

    def stop(self) -> None:
        if self.kept:
            return
        if self._keep and self.pid is not None and self._start_s is not None:
            assert self._process is not None
            self._process.keep()
            if self._process.kept:
                return
        self._end()

    def farewell(self, *, interrupted: bool) -> Sequence[str]:
        if self._process is None:
            return ()
        self._process.poll()
        error = self._process.log_error
        lines = [f"the server's log was not written to its end: {error}"] if error else []
        if self._start_s is None or self.pid is None:
            return lines
        if self._keep:
            return [*lines, kept_line(self.url, self.pid)]
        if interrupted and self._start_s >= LONG_START_S:
            return [*lines, lost_start_line(self._start_s)]
        return lines

    @property
    def kept(self) -> bool:
        """Whether it was left running."""
        return self._process is not None and self._process.kept

    # -- its start --------------------------------------------------------------------------------------------

    def _start(self, launch: Launch) -> None:
        require_port(launch)
        self._log = new_log(self._logs, str(launch.port))
        self._voice.line(f"starting SGLang by recipe {launch.recipe}; log: {self._log}")
        process = Supervised(launch.argv, dict(launch.environment), self._log, STOP_GRACE_S)
        self._launch, self._process, self._start_s = launch, process, None
        began, self._started = time.monotonic(), time.time()
        try:
            process.start()
            self._wait(launch, process, began)
        except BaseException:
            self._end()
            raise
        self._start_s = time.monotonic() - began
        process.ready()

    def _wait(self, launch: Launch, process: Supervised, began: float) -> None:
        """Until it is ready: our process lives, it is the one that listens, healthy, and names our model."""
        log = _Reader(self._log)
        said = "starting"
        while True:
            if ended := process.poll():
                raise ServerError(self._obituary("SGLang did not start", ended))
            for line in log.lines():
                said = progress_of(line) or said
            elapsed = time.monotonic() - began
            self._voice.progress(f"SGLang: {said}, {elapsed:.0f} s")
            if self._is_ready(launch, process):
                # Not by its log, which would have said so of anybody's server; and once more, since it may be dying.
                if process.poll() is None:
                    return
                continue
            if elapsed > self._timeout_s:
                raise ServerError(
                    f"SGLang was not ready within {self._timeout_s:g} s ({said}); give it more with --launch-timeout, "
                    f"or see {self._log}{joined(telling_lines(self._tail()))}"
                )
            # A small server is ready soon, and a big one not for long.
            time.sleep(min(max(elapsed / 10, 0.1), POLL_S))

    def _is_ready(self, launch: Launch, process: Supervised) -> bool:
        if not probe.is_healthy(launch.url, _ANSWER_S):
            return False
        # Somebody may have the same port of another address.
        holder = holder_of(launch.port, likely=(process.pid,))
        if holder is not None and not is_descendant(holder.pid, process.pid):
            raise ServerError(
                f"port {launch.port} was taken by process {holder.pid} ({holder.command[:80]}) while SGLang was "
                "starting; stop it, or choose another with --port"
            )
        models = probe.served_models(launch.url, _ANSWER_S)
        if launch.model not in models:
            raise ServerError(
                f"SGLang serves {', '.join(models)} and not {launch.model}; see --model, --recipe and --server-arg"
            )
        return True

    # -- its end ----------------------------------------------------------------------------------------------

    def _death(self, timeout_s: float = 0.0) -> str:
        """What it died of; empty while it lives."""
        ended = None if self._process is None else self._process.poll(timeout_s)
        return "" if ended is None else self._obituary("SGLang has ended", ended)

    def _obituary(self, what: str, ended: Ended) -> str:
        lines = list(ended.tail) or self._tail()
        cause = cause_of_death(lines)
        why = f": {cause.what}; {cause.advice}" if cause is not None else ""
        unwritten = self._process.log_error if self._process is not None else ""
        log = f"log: {self._log}" + (f" (not written to its end: {unwritten})" if unwritten else "")
        return f"{what}: {ended.words}{why}; {log}{joined(telling_lines(lines))}"

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.stop()
        self._launch, self._start_s = None, None

    def _tail(self) -> list[str]:
        try:
            with self._log.open("rb") as log:
                log.seek(max(log.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
                return log.read().decode(errors="replace").splitlines()
        except OSError:
            return []

    def _described(self) -> dict[str, Any]:
        """How it was started, for a result."""
        assert self._launch is not None
        return {
            "recipe": self._launch.recipe,
            "command": list(self._launch.argv),
            "environment": dict(self._launch.environment),
            "log": str(self._log),
            "started": round(self._started, 1) if self._start_s is not None else None,
            "start_s": round(self._start_s, 1) if self._start_s is not None else None,
        }


def require_port(launch: Launch) -> None:
    """Look whether a launch's port is free: SGLang does so only after its whole start, and says "ready" all the same.

    :raises ServerError: It is taken; says by whom.
    """
    if not is_taken(launch.host, launch.port):
        return
    holder = holder_of(launch.port)
    by = f"by process {holder.pid} ({holder.command[:80]})" if holder is not None else "by a process not to be seen"
    if holder is None and not probe.answers(launch.url, _ANSWER_S):
        raise ServerError(
            f"port {launch.port} cannot be bound, though nobody answers there: an outgoing connection may have it, up "
            "to a minute after its end; wait, or choose another with --port"
        )
    try:
        models = ", ".join(probe.served_models(launch.url, _ANSWER_S))
        serves = f", which serves {models}: measure it with --server-url {launch.url}, stop it,"
    except ServerError:
        serves = "; stop it,"
    raise ServerError(f"port {launch.port} is taken {by}{serves} or choose another with --port")


class _Reader:
    """The lines that were appended to a log since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = 0
        self._partial = ""

    def lines(self) -> list[str]:
        try:
            with self._path.open("rb") as log:
                # The end of it: a server may write faster than anybody reads.
                self._place = log.seek(max(self._place, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
                data = log.read(_TAIL_BYTES)
        except OSError:
            return []
        self._place += len(data)
        # A progress bar rewrites its line.
        *lines, self._partial = (self._partial + data.decode(errors="replace")).replace("\r", "\n").split("\n")
        self._partial = self._partial[-_LINE_LENGTH:]
        return lines


def kept_line(url: str | None, pid: int) -> str:
    """Where a server is that was kept, and how to be rid of it."""
    return (
        f"the server keeps running at {url} (pid {pid}); measure it again with the same command, or with "
        f"--server-url {url}; stop it with: kill {pid}"
    )


def lost_start_line(start_s: float) -> str:
    """What an interruption cost, and how it need not."""
    return (
        f"the server took {duration(start_s)} to start, and is stopped; "
        "--keep-server would have left it for the next session"
    )


def new_log(folder: Path, name: str) -> Path:
    """A name that nobody has: one server may serve many batches, and be started twice in a second."""
    stamp, number = time.strftime("%Y%m%d_%H%M%S"), 1
    while True:
        path = folder / (f"{stamp}-{name}.log" if number == 1 else f"{stamp}-{name}_{number}.log")
        if not path.exists():
            return path
        number += 1
