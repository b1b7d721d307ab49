"""A server that we launch, from the check of its port to its last process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pytest_dsr1.core.config import Point
from pytest_dsr1.core.server import Served
from pytest_dsr1.core.text import duration
from pytest_dsr1.servers import Reporter, ServerError, external
from pytest_dsr1.servers.launch import Launch
from pytest_dsr1.servers.log import cause_of_end, new_log, progress_of, tail_of, telling_lines
from pytest_dsr1.servers.process import ServerProcess, holder_of, is_descendant, is_taken

#: Between SIGTERM and SIGKILL. SGLang first finishes the requests in flight; idle, it ends within 3 to 6 s.
STOP_GRACE_S = 20.0
#: Shortest and longest time between two checks whether it is ready; in SGLang each is a prefill and a line of its log.
POLL_S = (0.02, 1.0)
#: For one answer while it starts.
_ANSWER_S = 5.0
#: From the end of its connections until the end of its process is known.
_DYING_S = 3.0
#: A shorter start is not worth mentioning when it is lost.
LONG_START_S = 60.0


class LaunchedServer:
    """A server that is launched, and restarted where a point needs other arguments.

    :param name: Of the software, for messages.
    :param launch_for: The command line for a point.
    :param logs: Folder of logs; each start makes one.
    :param timeout_s: Longest wait until it is ready.
    :param keep: Whether `stop` leaves it running, if it serves.
    """

    def __init__(
        self,
        name: str,
        launch_for: Callable[[Point], Launch],
        logs: Path,
        reporter: Reporter,
        *,
        timeout_s: float,
        keep: bool = False,
    ) -> None:
        self._name = name
        self._launch_for = launch_for
        self._logs, self._reporter = logs, reporter
        self._timeout_s, self._keep = timeout_s, keep
        self._launch: Launch | None = None
        self._process: ServerProcess | None = None
        self._start_s: float | None = None

    @property
    def pid(self) -> int | None:
        """Of the running server."""
        return self._process.pid if self._process is not None and not self._process.ended else None

    def serve(self, point: Point | None = None) -> Served:
        assert point is not None, "a launch is made for a point"
        launch = self._launch_for(point)
        if self._launch is not None and launch != self._launch:
            self._reporter.line(f"restarting {self._name} for {point.id}: {launch.changes_from(self._launch)}")
            self._end()
        if self._process is None:
            self._start(launch)
        return self.inspect()

    def inspect(self) -> Served:
        assert self._launch is not None, "it was never started"
        if problem := self._end_problem():
            raise ServerError(problem)
        try:
            served = external.inspect(self._launch.url, self._launch.model)
        except ServerError as error:
            raise ServerError(self._end_problem(_DYING_S) or str(error)) from None
        launch = {
            "recipe": self._launch.recipe,
            "command": list(self._launch.argv),
            "environment": dict(self._launch.environment),
            "log": str(self._log),
            "started": round(self._started, 1) if self._start_s is not None else None,
            "start_s": round(self._start_s, 1) if self._start_s is not None else None,
        }
        return replace(served, engine=served.engine if served.is_reference else "sglang", launch=launch)

    def flush_cache(self) -> None:
        """Empty the prefix cache.

        :raises ServerError: It was not emptied, so the next measurement might be of the cache.
        """
        if self._launch is not None and (problem := external.flush_cache(self._launch.url)):
            raise ServerError(f"{self._launch.url}: {problem}")

    def problem(self, patience_s: float) -> str:
        problem = self._end_problem()
        if self._launch is None or problem or not (silence := external.silence(self._launch.url, patience_s)):
            return problem
        return self._end_problem(_DYING_S) or f"{silence}; see {self._log}{_quoted(tail_of(self._log))}"

    def stop(self) -> None:
        if self._process is None or self._process.kept:
            return
        if self._keep and self._start_s is not None and not self._process.poll():
            self._process.keep()
        else:
            self._end()

    def closing_lines(self, *, interrupted: bool) -> Sequence[str]:
        if self._process is None or self._launch is None:
            return ()
        ended, error, url = self._process.poll(), self._process.log_error, self._launch.url
        lines = [f"the server's log is incomplete: {error}"] if error else []
        if self._start_s is None or ended:
            return lines
        if self._keep:
            lines.append(
                f"the server keeps running at {url} (pid {self.pid}); measure it again with the same command, or "
                f"with --server-url {url}; stop it with: kill {self.pid}"
            )
        elif interrupted and self._start_s >= LONG_START_S:
            lines.append(
                f"the server took {duration(self._start_s)} to start, and is stopped now; with --keep-server it stays "
                "for the next session"
            )
        return lines

    # -- its start --------------------------------------------------------------------------------------------

    def _start(self, launch: Launch) -> None:
        require_port(launch)
        self._log = new_log(self._logs, str(launch.port))
        self._reporter.line(f"starting {self._name} by recipe {launch.recipe}; log: {self._log}")
        process = ServerProcess(launch.argv, launch.environment, self._log, STOP_GRACE_S)
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

    def _wait(self, launch: Launch, process: ServerProcess, began: float) -> None:
        """Wait until our process listens on the port and serves our model."""
        said = "starting"
        while True:
            if problem := self._end_problem(what="did not start"):
                raise ServerError(problem)
            said = progress_of(tail_of(self._log)) or said
            elapsed = time.monotonic() - began
            self._reporter.progress(f"{self._name}: {said}, {elapsed:.0f} s")
            if self._is_ready(launch, process):
                # Once more, since it may have ended after it answered.
                if not process.poll():
                    return
                continue
            if elapsed > self._timeout_s:
                raise ServerError(
                    f"{self._name} was not ready within {self._timeout_s:g} s ({said}); allow more with "
                    f"--launch-timeout, or see {self._log}{_quoted(tail_of(self._log))}"
                )
            # A small server is ready within a second, a large one after minutes.
            time.sleep(min(max(elapsed / 10, POLL_S[0]), POLL_S[1]))

    def _is_ready(self, launch: Launch, process: ServerProcess) -> bool:
        models = external.healthy_models(launch.url, _ANSWER_S)
        if not models:
            return False
        # Another process may have taken the port, or the same port of another address.
        holder = holder_of(launch.port)
        if holder is not None and not is_descendant(holder.pid, process.pid):
            raise ServerError(
                f"port {launch.port} was taken by process {holder.pid} ({holder.command[:80]}) while "
                f"{self._name} was starting; stop that process, or choose another port with --port"
            )
        if launch.model not in models:
            raise ServerError(
                f"{self._name} serves {', '.join(models)} and not {launch.model}; see --model, --recipe and "
                "--server-arg"
            )
        return True

    # -- its end ----------------------------------------------------------------------------------------------

    def _end_problem(self, timeout_s: float = 0.0, what: str = "has ended") -> str:
        """Why it has ended, or ends within `timeout_s`; empty while it runs."""
        process = self._process
        if process is None or not process.poll(timeout_s):
            return ""
        lines = tail_of(self._log)
        cause = cause_of_end(lines)
        why = f": {cause.what}; {cause.advice}" if cause is not None else ""
        log = f"log: {self._log}" + (f" (incomplete: {process.log_error})" if process.log_error else "")
        return f"{self._name} {what}: {process.ended}{why}; {log}{_quoted(lines)}"

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.stop()
        self._launch, self._start_s = None, None


def require_port(launch: Launch) -> None:
    """Check that a port is free; SGLang itself checks it only after its start.

    :raises ServerError: It is taken; the message names the process that has it.
    """
    if not is_taken(launch.host, launch.port):
        return
    holder, models = holder_of(launch.port), external.healthy_models(launch.url, _ANSWER_S)
    if holder is None and models is None:
        raise ServerError(
            f"port {launch.port} cannot be opened, though nobody answers there: an outgoing connection may hold it, up "
            "to a minute after its end; wait, or choose another port with --port"
        )
    by = f"by process {holder.pid} ({holder.command[:80]})" if holder is not None else "by a process of another user"
    stop = "; stop it,"
    if models:
        stop = f", which serves {', '.join(models)}: measure it with --server-url {launch.url}, stop it,"
    raise ServerError(f"port {launch.port} is taken {by}{stop} or choose another port with --port")


def _quoted(lines: Sequence[str]) -> str:
    """The telling lines of a log, to stand below a message."""
    return "".join(f"\n    {line}" for line in telling_lines(lines))
