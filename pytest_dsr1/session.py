"""One sweep from its first second to its last: folders, server, state of each point, exit status.

Lives in the process that owns the session: the only one, or xdist's controller. It sees tests by their reports alone,
so that it need not know which process ran them.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_dsr1 import collection, options, preflight
from pytest_dsr1.core.config import Mode, Point, Scenario, SweepConfig
from pytest_dsr1.core.result import Result
from pytest_dsr1.core.summary import Status
from pytest_dsr1.journal import Journal, result_path
from pytest_dsr1.lock import ServerBusyError, ServerLock
from pytest_dsr1.report import closing_lines, header_lines
from pytest_dsr1.servers import Served, ServerError
from pytest_dsr1.servers.choose import Choice, choose

#: What pytest itself exits with after an interruption, and a shell after SIGTERM.
_EXIT_TERMINATED = 143
_POINT_ID = re.compile(r"\[.*?isl(\d+)-osl(\d+)-conc(\d+).*?\]$")


class Sweep:
    """The plugin object of a session that measures; registered only when a sweep is asked for."""

    def __init__(
        self, config: pytest.Config, sweep: SweepConfig, values: Mapping[str, Any], resumed: Sequence[Journal]
    ) -> None:
        self.config = sweep
        self._pytest = config
        self._values = values
        self._journals = {journal.batch.scenario: journal for journal in resumed}
        self._choice: Choice | None = None
        self._served: Served | None = None
        self._start_error: ServerError | None = None
        self._lock: ServerLock | None = None
        self._due: dict[Point, dict[str, str]] = {}
        self._failures: dict[Point, str] = {}
        self._terminated = False
        self._old_handler: Any = None
        self._begun = False

    # -- the session's beginning ------------------------------------------------------------------------------

    @property
    def measures(self) -> bool:
        """Whether anything will be run; not for --collect-only, --preflight and the like."""
        option = self._pytest.option
        return not (option.collectonly or self.config.preflight or getattr(option, "setupplan", False))

    @property
    def folders(self) -> dict[Scenario, Path]:
        return {scenario: journal.folder for scenario, journal in self._journals.items()}

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        self._refuse_surplus_workers()
        if not self.measures:
            return
        problems = [check for check in preflight.checks(self.config) if not check.passed]
        if problems:
            raise pytest.UsageError("; ".join(check.message for check in problems))
        self._choice = choose(self.config, self._server_log())
        if self._choice.running:
            self._ask_running_server()
        self._open_journals()
        self._begun = True
        if threading.current_thread() is threading.main_thread():
            self._old_handler = signal.signal(signal.SIGTERM, self._terminate)

    def _ask_running_server(self) -> None:
        """Find out now what would otherwise be found wrong after minutes of accuracy."""
        from pytest_dsr1.bench import endpoint_of, prompt_plan

        try:
            served = self.start_server()
            if self.config.mode is not Mode.ACC:
                prompt_plan(self.config, endpoint_of(served))
        except (ServerError, ValueError) as error:
            raise pytest.UsageError(str(error)) from None

    def _server_log(self) -> Path:
        """One log per start: a server may serve many batches."""
        stamp = time.strftime("%Y%m%d_%H%M%S")
        return self.config.reports_dir / "servers" / f"{stamp}-{os.getpid()}.log"

    def _refuse_surplus_workers(self) -> None:
        # xdist's own list of the workers it will start; absent without it, empty without -n.
        workers = len(getattr(self._pytest.option, "tx", None) or ())
        if workers > 1:
            raise pytest.UsageError(
                f"-n {workers}: {workers} workers would measure one server at once, and several servers are not "
                "supported yet; use -n 1, or none"
            )
        if workers and self.config.preflight:
            raise pytest.UsageError("--preflight runs nothing, so it needs no -n; drop it")

    def _open_journals(self) -> None:
        if self._journals:
            return
        reports, mode = self.config.reports_dir, self.config.mode
        try:
            for scenario in self.config.scenarios:
                kept = options.storable(self._values, scenario)
                self._journals[scenario] = Journal.create(reports, scenario, mode, kept)
        except OSError as error:
            raise pytest.UsageError(f"--reports-dir: {reports} cannot be written to ({error.strerror})") from None

    def _terminate(self, _number: int, _frame: object) -> None:
        """End as Ctrl+C does, so that everything that is undone then is undone now."""
        self._terminated = True
        signal.raise_signal(signal.SIGINT)

    def pytest_report_header(self) -> list[str]:
        why = self._choice.why if self._choice else ""
        return header_lines(self.config, why, self._served, sorted(self.folders.values()), str(self._pytest.rootpath))

    # -- the server -------------------------------------------------------------------------------------------

    def start_server(self) -> Served:
        """The session's server, started by the first who asks.

        :raises ServerError: It does not start, now and for whoever asks again; or another session measures it.
        """
        assert self._choice is not None, "the session has not started"
        if self._start_error is not None:
            raise self._start_error
        if self._served is None:
            try:
                served = self._choice.server.start()
                self._lock = ServerLock(served.url)
                self._lock.acquire(f"pytest in {self._pytest.invocation_params.dir}")
            except (ServerError, ServerBusyError) as error:
                self._start_error = error if isinstance(error, ServerError) else ServerError(str(error))
                raise self._start_error from None
            self._served = served
        return self._served

    def flush_cache(self) -> None:
        if self._choice is not None:
            self._choice.server.flush_cache()

    def stop_server(self) -> None:
        if self._choice is not None:
            self._choice.server.stop()
        if self._lock is not None:
            self._lock.release()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Hand an xdist worker what the controller owns."""
        from pytest_dsr1.bench import served_to_json

        try:
            served = self.start_server()
        except ServerError as error:
            raise pytest.UsageError(str(error)) from None
        node.workerinput["dsr1"] = {
            "prompt_seed": self.config.prompt_seed,
            "served": served_to_json(served),
            "folders": {str(scenario): str(folder) for scenario, folder in self.folders.items()},
        }

    # -- which tests ------------------------------------------------------------------------------------------

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if self._begun and session.items:
            self._select([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        if self._begun and not self._due:
            self._select(ids)

    def _select(self, nodeids: Iterable[str]) -> None:
        for nodeid in nodeids:
            if (point := self._point_of(nodeid)) is not None:
                self._due.setdefault(point, {})[nodeid] = ""
        for scenario, journal in self._journals.items():
            tests = {
                point.conc: tuple(dict.fromkeys(_test_name(nodeid) for nodeid in self._due[point]))
                for point in self.config.points
                if point.scenario == scenario and point in self._due
            }
            # A resumed batch keeps its points, in its own order.
            kept = {state.conc: state.tests for state in journal.batch.points}
            order = [point.conc for point in self.config.points if point.scenario == scenario]
            everything = kept | {conc: names for conc, names in tests.items() if conc not in kept}
            journal.select({conc: everything[conc] for conc in order if conc in everything})

    def _point_of(self, nodeid: str) -> Point | None:
        match = _POINT_ID.search(nodeid)
        if match is None:
            return None
        isl, osl, conc = map(int, match.groups())
        point = Point(Scenario(isl, osl), conc)
        return point if point in self.config.points and point.scenario in self._journals else None

    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        if not self.config.preflight:
            return None
        selected = {collection.point_of(item) for item in session.items}
        points = [point for point in self.config.points if point in selected]
        checks = preflight.checks(self.config)
        reporter = self._pytest.pluginmanager.get_plugin("terminalreporter")
        for line in preflight.lines(self.config, points, checks):
            if reporter is not None:
                reporter.write_line(line)
        if not all(check.passed for check in checks):
            raise pytest.exit.Exception("preflight failed", returncode=1)
        return True

    # -- what becomes of them ---------------------------------------------------------------------------------

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        point = self._point_of(nodeid)
        if point is None or point not in self._due:
            return
        journal = self._journals[point.scenario]
        if all(not outcome for outcome in self._due[point].values()):
            journal.start(point.conc)

    # trylast: pytest's own --lf must have had its say about a skipped test first.
    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        point = self._point_of(report.nodeid)
        if point is None or report.nodeid not in self._due.get(point, {}):
            return
        due = self._due[point]
        gated = getattr(report, "dsr1_gated", False)
        if report.failed or gated:
            due[report.nodeid] = "failed"
            self._failures.setdefault(point, getattr(report, "dsr1_reason", "") or _first_line(report))
            if gated:
                self._run_again_with_lf(report.nodeid)
        elif report.skipped:
            due[report.nodeid] = "skipped"
        elif report.when == "call":
            due[report.nodeid] = due[report.nodeid] or "passed"
        if report.when == "teardown" and all(due.values()):
            self._end(point)

    def _run_again_with_lf(self, nodeid: str) -> None:
        """Have --lf select a performance test that the gate skipped.

        pytest counts a skipped test as not failed, and offers no call to say otherwise; `lastfailed` is what its cache
        plugin stores.
        """
        plugin = self._pytest.pluginmanager.get_plugin("lfplugin")
        if plugin is not None:
            plugin.lastfailed[nodeid] = True

    def _end(self, point: Point) -> None:
        due, journal = self._due[point], self._journals[point.scenario]
        if "failed" in due.values():
            journal.end(point.conc, Status.FAILED, self._failures.get(point, ""))
        elif "passed" in due.values():
            journal.end(point.conc, Status.PASSED)
        else:
            # Everything was skipped: nothing was measured, so nothing passed.
            journal.end(point.conc, Status.NOT_RUN)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not self._begun:
            return
        for point in self._due:
            journal = self._journals[point.scenario]
            if journal.batch.point(point.conc).status is Status.STARTED:
                if point in self._failures:
                    journal.end(point.conc, Status.FAILED, self._failures[point])
                else:
                    journal.end(point.conc, Status.INTERRUPTED)
        self._journals = {
            scenario: journal for scenario, journal in self._journals.items() if not journal.discard_if_empty()
        }
        failed = any(journal.batch.count(Status.FAILED) for journal in self._journals.values())
        if self._terminated:
            session.exitstatus = _EXIT_TERMINATED
        elif session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and self.config.resume and not self._due:
            # Nothing was missing: what the batch says is what there is to say.
            session.exitstatus = pytest.ExitCode.TESTS_FAILED if failed else pytest.ExitCode.OK
        elif session.exitstatus == pytest.ExitCode.OK and failed:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._journals:
            return
        terminalreporter.section("dsr1")
        for journal in self._journals.values():
            results = {state.conc: self._result(journal, state.conc) for state in journal.batch.points}
            for line in closing_lines(
                journal.batch, results, _shown(journal.folder, self._pytest.invocation_params.dir)
            ):
                terminalreporter.write_line(line)

    def _result(self, journal: Journal, conc: int) -> Result | None:
        try:
            path = result_path(journal.folder, Point(journal.batch.scenario, conc))
            return Result.from_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def pytest_unconfigure(self) -> None:
        self.stop_server()
        if self._old_handler is not None:
            signal.signal(signal.SIGTERM, self._old_handler)


def _test_name(nodeid: str) -> str:
    return nodeid.rpartition("::")[2].partition("[")[0]


def _first_line(report: pytest.TestReport) -> str:
    return next((line.strip() for line in reversed(report.longreprtext.splitlines()) if line.strip()), "failed")


def _shown(folder: Path, here: Path) -> str:
    return str(folder.relative_to(here)) if folder.is_relative_to(here) else str(folder)
