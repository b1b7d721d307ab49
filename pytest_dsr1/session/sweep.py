"""One sweep from start to end, in the process that owns the session.

That process is the only one, or the controller of xdist. It knows tests only by their reports, so it does not matter
which process runs them.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pytest_dsr1 import preflight, pytest_internals
from pytest_dsr1.batch import read_result
from pytest_dsr1.batch.journal import Batches, Journal, JournalError
from pytest_dsr1.bench import Watch
from pytest_dsr1.collection import point_tests
from pytest_dsr1.core.config import Point, SweepConfig
from pytest_dsr1.core.ledger import Ledger, PointEnd, PointReport, PointTest
from pytest_dsr1.core.server import Served
from pytest_dsr1.core.text import first_line
from pytest_dsr1.servers import Reporter, Server, ServerError
from pytest_dsr1.servers.pool import ServerPool, launch_note

#: Exit status that a shell reports for a process that SIGTERM ended.
EXIT_TERMINATED = 143
#: Options of pytest that show something and run no test.
_SHOWS_ONLY = ("collectonly", "setupplan", "showfixtures", "show_fixtures_per_test", "cacheshow")
#: Longest wait, in seconds, for the cause of a server's end.
_CAUSE_S = 5.0


class Sweep:
    """The plugin object of a session that measures, in the process that owns it.

    :param complete: Whether the resumed batches have all their results, so that no test is run.
    :param workers: Number of xdist workers.
    :ivar begun: Whether the session has batches.
    :ivar terminated: Whether SIGTERM ended it.
    :ivar stopped_by_user: Whether Ctrl+C or `pytest.exit` ended it.
    :ivar cause: Why the server ended, if a worker found that it does not answer.
    """

    def __init__(
        self,
        config: pytest.Config,
        sweep: SweepConfig,
        batches: Batches,
        reporter: Reporter,
        watch: Watch,
        *,
        complete: bool = False,
        workers: int = 0,
    ) -> None:
        self.config = sweep
        self.batches = batches
        self.ledger = Ledger()
        self.pool: ServerPool | None = None
        self.begun = self.terminated = self.stopped_by_user = False
        self.cause = ""
        self._pytest = config
        self.reporter = reporter
        self.watch = watch
        self._complete = complete
        self._workers = workers
        self._ran = False
        self._old_handler: Any = None

    @property
    def measures(self) -> bool:
        """Whether tests are run; not for --collect-only, --preflight and the like."""
        shows = self.config.preflight or self.config.print_launch
        return not (shows or any(getattr(self._pytest.option, name, False) for name in _SHOWS_ONLY))

    @property
    def journals(self) -> tuple[Journal, ...]:
        """The batches in sweep order; at the end, those that have points."""
        return tuple(self.batches)

    def shown(self, folder: Path) -> str:
        """The path of a folder as the user can type it."""
        here = self._pytest.invocation_params.dir
        return str(folder.relative_to(here)) if folder.is_relative_to(here) else str(folder)

    # -- the session's beginning --------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        if not self.measures:
            return
        own_server = preflight.brings_own_server(self._pytest, self.config, self._workers)
        checks = preflight.checks(self._pytest, self.config)
        if problems := [check.message for check in checks if not check.passed]:
            raise pytest.UsageError("; ".join(problems))
        try:
            if not own_server:
                self.pool = self._choose(self.config)
            self.batches.open()
            if self.pool is not None:
                for served in self.pool.served:
                    self._note_server(served, None)
        except (ServerError, JournalError) as error:
            raise pytest.UsageError(str(error)) from None
        except OSError as error:
            reports = self.config.reports_dir
            raise pytest.UsageError(f"--reports-dir: {reports} cannot be written to ({error.strerror})") from None
        self.begun = True
        if threading.current_thread() is threading.main_thread():
            self._old_handler = signal.signal(signal.SIGTERM, self._terminate)
        for journal in self.batches:
            self._pytest.hook.pytest_dsr1_batch_started(config=self._pytest, batch=journal.batch, folder=journal.folder)

    def _choose(self, config: SweepConfig) -> ServerPool:
        return preflight.choose_server(
            self._pytest, config, self.reporter, on_served=self._note_server, workers=self._workers
        )

    def _terminate(self, _number: int, _frame: object) -> None:
        """End as Ctrl+C does, with the same cleaning up."""
        self.terminated = True
        # Raised, since background jobs of a shell ignore SIGINT.
        raise KeyboardInterrupt

    # -- for the fixtures ---------------------------------------------------------------------------------------

    def serve(self) -> Served:
        """The session's server.

        :raises ServerError: It does not answer.
        """
        if self.pool is None:
            # The user's fixture dsr1_server requests ours.
            self.pool = self._choose(self.config)
        # It is started for the first point that is measured.
        due, points = self.ledger.points, self.config.launch_points
        return self.pool.serve(next((point for point in points if point in due), points[0]))

    def server_of(self, served: Served) -> tuple[Server, Served]:
        """The server that `dsr1_server` gave, and its description.

        :raises ServerError: It cannot be measured.
        """
        config = preflight.with_server(self.config, served, "the fixture dsr1_server")
        known = [one.url for one in self.pool.served] if self.pool is not None else []
        if known and config.server_urls[0] not in known:
            raise pytest.UsageError(
                f"the fixture dsr1_server gave {served.url}, but the session measures {known[0]}; define the fixture "
                "in the conftest.py of the rootdir without a request of dsr1_server, and drop --server-url"
            )
        if self.pool is None or not known:
            self.pool = self._choose(config)
            served = self.serve()
        return self.pool, served

    def folder_of(self, point: Point) -> Path:
        """The batch folder of a point."""
        return self.batches.folder_of(point)

    def join(self, nodeid: str, point: Point, test: str) -> None:
        """Record that a test measures a point."""
        if test not in self.ledger.tests_of(point):
            self.ledger.select([PointTest(nodeid, point, test)])
            self.batches.select(self.ledger)
            self.batches.start(self.ledger.start(nodeid))

    # -- the server ---------------------------------------------------------------------------------------------------

    def _note_server(self, served: Served, point: Point | None) -> None:
        """Record in the batches what they are measured on.

        :raises ServerError: A resumed batch was begun on another engine or model.
        """
        try:
            self.batches.serve(served)
        except JournalError as error:
            raise ServerError(str(error)) from None
        if point is not None and served.launch is not None and served.launch.get("recipe"):
            self.batches.of(point.scenario).note(launch_note(served.launch))

    def stop_server(self) -> None:
        """End a server that the session started; any other is left alone."""
        if self.pool is not None:
            self.pool.stop()

    # -- the tests ----------------------------------------------------------------------------------------------------

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if session.items:
            self.select(point_tests(session.items))

    def select(self, tests: Iterable[PointTest]) -> None:
        """Put the selected tests into the batches."""
        if self.begun:
            self.ledger.select(test for test in tests if test.point in self.config.points)
            self.batches.select(self.ledger)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.batches.start(self.ledger.start(nodeid))

    # trylast: after pytest's --lf, which counts a skipped test as one that did not fail.
    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        remarks: Mapping[str, Any] = getattr(report, "dsr1", {})
        if hasattr(report, "dsr1") and report.when == "call" and not report.skipped:
            self._ran = True
        said = PointReport(
            nodeid=report.nodeid,
            outcome=report.outcome,
            when=report.when,
            reason="" if report.passed else self._reason(report, remarks),
            gated=remarks.get("gated", False),
            lost=remarks.get("lost", False),
        )
        for end in self.ledger.take(said):
            self._end(end)
        if said.gated:
            pytest_internals.count_as_failed(self._pytest, report.nodeid)

    def _reason(self, report: pytest.TestReport, remarks: Mapping[str, Any]) -> str:
        """Why a test did not pass, in one line."""
        if remarks.get("lost") and self._workers and self.pool is not None and self.pool.choice.plan is not None:
            # A worker knows only that the server does not answer; this process started it and has its log.
            self.cause = self.pool.problem(_CAUSE_S)
            if self.cause:
                return first_line(self.cause)
        last = [line.strip() for line in report.longreprtext.splitlines() if line.strip()][-1:]
        return str(remarks.get("reason") or "".join(last) or "failed")

    def _end(self, end: PointEnd) -> None:
        journal = self.batches.end(end)
        result = read_result(journal.folder, end.point)
        if result is not None:
            if self.pool is not None and (changes := self.pool.changes_since_last(result.fields.get("server", {}))):
                journal.note(f"CONC {end.point.conc}: the server changed since the point before: {changes}")
            for finding in result.findings:
                if finding.severity == "warn":
                    journal.note(f"CONC {end.point.conc}: warning {finding.check}: {finding.message}")
        state = journal.batch.point(end.point.conc)
        self._pytest.hook.pytest_dsr1_point_ended(config=self._pytest, point=end.point, state=state, result=result)

    # -- the session's end --------------------------------------------------------------------------------------------

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        # Also called where `shouldstop` ended the session, with an exception of pytest or xdist.
        self.stopped_by_user = type(excinfo.value) is KeyboardInterrupt or excinfo.errisinstance(pytest.exit.Exception)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not self.begun:
            return
        if session.exitstatus == pytest.ExitCode.INTERRUPTED and not self.stopped_by_user and self.ledger.any_failed:
            # The server was lost, and no user stopped the session: that is a failure, not an interruption.
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        interrupted = self.terminated or session.exitstatus == pytest.ExitCode.INTERRUPTED
        for end in self.ledger.close(interrupted=interrupted):
            self.batches.end(end)
        self.batches.discard_empty()
        for journal in self.batches:
            self._pytest.hook.pytest_dsr1_batch_ended(config=self._pytest, batch=journal.batch, folder=journal.folder)
        session.exitstatus = self._exit_status(session.exitstatus)

    def _exit_status(self, status: int) -> int:
        """Never 0 with a failed point, or where nothing was measured."""
        if self.terminated:
            return EXIT_TERMINATED
        if status == pytest.ExitCode.NO_TESTS_COLLECTED and self._complete:
            # The batch had all its results.
            status = pytest.ExitCode.OK
        elif status == pytest.ExitCode.OK and self.measured_nothing:
            status = pytest.ExitCode.TESTS_FAILED
        return pytest.ExitCode.TESTS_FAILED if status == pytest.ExitCode.OK and self.batches.any_failed else status

    @property
    def measured_nothing(self) -> bool:
        """Whether no test of the sweep was run, although a sweep was asked for."""
        return self.begun and not self._ran and not self._complete and not self.stopped_by_user

    def pytest_unconfigure(self) -> None:
        if self.begun:
            self.batches.close()
        # After a second Ctrl+C the server has ended, and there is nothing left to interrupt.
        with suppress(KeyboardInterrupt):
            self.stop_server()
        if self._old_handler is not None:
            signal.signal(signal.SIGTERM, self._old_handler)
