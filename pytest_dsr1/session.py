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
from pytest_dsr1.activation import MISSING, selects_by_name
from pytest_dsr1.core.config import Mode, Point, Scenario, SweepConfig
from pytest_dsr1.core.result import Result
from pytest_dsr1.core.summary import Status
from pytest_dsr1.journal import Journal, JournalError, result_path
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
        shows_only = ("collectonly", "setupplan", "showfixtures", "show_fixtures_per_test", "cacheshow")
        return not (self.config.preflight or any(getattr(option, name, False) for name in shows_only))

    @property
    def begun(self) -> bool:
        """Whether the session came so far that there are batches."""
        return self._begun

    @property
    def journals(self) -> tuple[Journal, ...]:
        """Of every scenario, in sweep order; at the end, of those that have points."""
        return tuple(self._journals[scenario] for scenario in self.config.scenarios if scenario in self._journals)

    def shown(self, folder: Path) -> str:
        """A folder as a user would type it where he is."""
        return _shown(folder, self._pytest.invocation_params.dir)

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
        self._refuse_unsubmittable(reference=self._choice.is_reference)
        if self._choice.running:
            self._ask_running_server()
        self._open_journals()
        if self._served is not None:
            try:
                self._note_server(self._served)
            except JournalError as error:
                raise pytest.UsageError(f"--resume: {error}") from None
        self._begun = True
        if threading.current_thread() is threading.main_thread():
            self._old_handler = signal.signal(signal.SIGTERM, self._terminate)

    def _ask_running_server(self) -> None:
        """Find out now what would otherwise be found wrong after minutes of accuracy."""
        from pytest_dsr1.accuracy import AccuracyError
        from pytest_dsr1.bench import accuracy_source, endpoint_of, prompt_plan

        try:
            served = self.start_server()
            self._refuse_unsubmittable(reference=served.is_reference, gpus_known=served.num_gpus is not None)
            for scenario in self.config.scenarios if self.config.mode is not Mode.ACC else ():
                preflight.require_context(scenario, served)
            if self.config.mode is not Mode.ACC:
                prompt_plan(self.config, endpoint_of(served))
            if self.config.accuracy:
                accuracy_source(self.config, served)
        except (ServerError, AccuracyError, ValueError) as error:
            raise pytest.UsageError(str(error)) from None

    def _refuse_unsubmittable(self, *, reference: bool, gpus_known: bool = True) -> None:
        from pytest_dsr1.leaderboard.eligibility import server_problem

        assert self._choice is not None, "the session has not started"
        if self.config.mode is Mode.SUBMIT and (
            problem := server_problem(self.config, self._choice.why, reference=reference, gpus_known=gpus_known)
        ):
            raise pytest.UsageError(problem)

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
            for journal in self._journals.values():
                try:
                    journal.lock()
                except JournalError as error:
                    raise pytest.UsageError(f"--resume: {error}") from None
            return
        reports, mode = self.config.reports_dir, self.config.mode
        try:
            for scenario in self.config.scenarios:
                kept = options.storable(self._values, scenario)
                journal = self._journals[scenario] = Journal.create(reports, scenario, mode, kept)
                journal.lock()
                if not self.config.accuracy:
                    journal.note("accuracy off: nobody checked that it is the model")
        except OSError as error:
            raise pytest.UsageError(f"--reports-dir: {reports} cannot be written to ({error.strerror})") from None

    def _terminate(self, _number: int, _frame: object) -> None:
        """End as Ctrl+C does, so that everything that is undone then is undone now."""
        self._terminated = True
        # Not by way of SIGINT, which a shell's background jobs are born to ignore.
        raise KeyboardInterrupt

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
                if self._begun:
                    self._note_server(served)
            except (ServerError, ServerBusyError, JournalError) as error:
                self._start_error = error if isinstance(error, ServerError) else ServerError(str(error))
                raise self._start_error from None
            self._served = served
        return self._served

    def _note_server(self, served: Served) -> None:
        """:raises JournalError: A resumed batch was begun on another engine or model."""
        for journal in self._journals.values():
            journal.serve(served.engine, served.model)

    @property
    def _misses_nothing(self) -> bool:
        """Whether this completes batches that are complete; a selection by name that selects nothing is a mistake."""
        return bool(self.config.resume) and self._pytest.stash[MISSING] is not None and not self._due

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
            "by_name": selects_by_name(self._pytest),
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
            self._failures.setdefault(point, getattr(report, "dsr1_reason", "") or _last_line(report))
            if gated:
                self._run_again_with_lf(report.nodeid)
        elif report.skipped:
            due[report.nodeid] = "skipped"
        elif report.when == "call":
            due[report.nodeid] = due[report.nodeid] or "passed"
        # A test whose worker crashed has one report, of no phase.
        if report.when not in ("setup", "call") and all(due.values()):
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
        result = self._result(journal, point.conc)
        for finding in result.findings if result is not None else ():
            if finding["severity"] == "warn":
                journal.note(f"CONC {point.conc}: warning {finding['check']}: {finding['message']}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not self._begun:
            return
        interrupted = self._terminated or session.exitstatus == pytest.ExitCode.INTERRUPTED
        for point in self._due:
            journal = self._journals[point.scenario]
            if journal.batch.point(point.conc).status is Status.STARTED:
                # An interrupted point is measured again, even if one of its tests had failed before.
                if point in self._failures and not interrupted:
                    journal.end(point.conc, Status.FAILED, self._failures[point])
                else:
                    journal.end(point.conc, Status.INTERRUPTED)
        self._journals = {
            scenario: journal for scenario, journal in self._journals.items() if not journal.discard_if_empty()
        }
        failed = any(journal.batch.count(Status.FAILED) for journal in self._journals.values())
        if self._terminated:
            session.exitstatus = _EXIT_TERMINATED
        elif session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and self._misses_nothing:
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
            for line in closing_lines(journal.batch, results, self.shown(journal.folder)):
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


def _last_line(report: pytest.TestReport) -> str:
    return next((line.strip() for line in reversed(report.longreprtext.splitlines()) if line.strip()), "failed")


def _shown(folder: Path, here: Path) -> str:
    return str(folder.relative_to(here)) if folder.is_relative_to(here) else str(folder)
