"""One sweep from its first second to its last: folders, server, state of each point, exit status.

Lives in the process that owns the session: the only one, or xdist's controller. It sees tests by their reports alone,
so that it need not know which process ran them.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pytest_dsr1 import collection, options, preflight, workers
from pytest_dsr1.activation import MISSING
from pytest_dsr1.core.config import Point, Scenario, SweepConfig
from pytest_dsr1.core.result import Result
from pytest_dsr1.core.summary import Status
from pytest_dsr1.core.text import first_line
from pytest_dsr1.journal import Journal, JournalError, result_path
from pytest_dsr1.progress import Terminal
from pytest_dsr1.report import closing_lines, header_lines
from pytest_dsr1.servers import Served, ServerError
from pytest_dsr1.servers.plan import print_launch
from pytest_dsr1.servers.recipe import RecipeError
from pytest_dsr1.serving import Serving, launch_note, require_measurable

#: What pytest itself exits with after an interruption, and a shell after SIGTERM.
EXIT_TERMINATED = 143
#: For a server that a worker found gone.
_PATIENCE_S = 5.0
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
        self._serving: Serving | None = None
        self._due: dict[Point, dict[str, str]] = {}
        self._failures: dict[Point, str] = {}
        self._terminated = False
        self._stopped_by_user = False
        self._obituary = ""
        self._lost: set[Point] = set()
        self._old_handler: Any = None
        self._begun = False

    # -- the session's beginning ------------------------------------------------------------------------------

    @property
    def measures(self) -> bool:
        """Whether anything will be run; not for --collect-only, --preflight and the like."""
        option = self._pytest.option
        shows_only = ("collectonly", "setupplan", "showfixtures", "show_fixtures_per_test", "cacheshow")
        shows = self.config.preflight or self.config.print_launch
        return not (shows or any(getattr(option, name, False) for name in shows_only))

    @property
    def begun(self) -> bool:
        """Whether the session came so far that there are batches."""
        return self._begun

    @property
    def terminated(self) -> bool:
        """Whether SIGTERM ends it."""
        return self._terminated

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

    @property
    def serving(self) -> Serving:
        """The session's server."""
        assert self._serving is not None, "the session has not started"
        return self._serving

    @property
    def first_point(self) -> Point:
        """The one that is measured first."""
        return next((point for point in self.config.points if point in self._due), self.config.points[0])

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        workers.refuse_surplus(self.config, self._worker_count)
        if not self.measures:
            return
        problems = [check for check in preflight.checks(self.config) if not check.passed]
        if problems:
            raise pytest.UsageError("; ".join(check.message for check in problems))
        self._choose_server()
        self._open_journals()
        for served in self.serving.served:
            self._note_server(served, None)
        self._begun = True
        if threading.current_thread() is threading.main_thread():
            self._old_handler = signal.signal(signal.SIGTERM, self._terminate)

    @property
    def _worker_count(self) -> int:
        return workers.worker_count(self._pytest)

    def _choose_server(self) -> None:
        """Find who serves, and of a server that runs find out now what else would be found wrong after minutes."""
        try:
            self._serving = serving = Serving(
                self.config,
                options.environment(),
                Terminal(self._pytest),
                purpose=f"pytest in {self._pytest.invocation_params.dir}",
                on_served=self._note_server,
                concurrent=max(self._worker_count, 1),
            )
            require_measurable(self.config, serving, self._worker_count)
        except (ServerError, RecipeError, ValueError) as error:
            raise pytest.UsageError(str(error)) from None

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
        why = self._serving.why if self._serving else ""
        served = self._serving.served if self._serving else ()
        folders = sorted(self.folders.values())
        return header_lines(self.config, why, served[0] if served else None, folders, str(self._pytest.rootpath))

    # -- the server -------------------------------------------------------------------------------------------

    def _note_server(self, served: Served, point: Point | None) -> None:
        """Keep with the batches what they are measured on.

        :raises ServerError: A resumed batch was begun on another engine or model.
        """
        for journal in self._journals.values():
            try:
                journal.serve(served.engine, served.model)
            except JournalError as error:
                message = f"--resume: {error}"
                raise (ServerError(message) if self._begun else pytest.UsageError(message)) from None
        if point is not None and served.launch is not None and served.launch.get("recipe"):
            self._journals[point.scenario].note(launch_note(served.launch))

    @property
    def _misses_nothing(self) -> bool:
        """Whether this completes batches that are complete; a selection by name that selects nothing is a mistake."""
        return bool(self.config.resume) and self._pytest.stash[MISSING] is not None and not self._due

    def stop_server(self) -> None:
        if self._serving is not None:
            self._serving.stop()

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
        if not (self.config.preflight or self.config.print_launch):
            return None
        selected = {collection.point_of(item) for item in session.items}
        points = [point for point in self.config.points if point in selected]
        if self.config.print_launch:
            if problem := print_launch(self.config, points, self._say):
                raise pytest.UsageError(problem)
        elif problem := preflight.show(self.config, points, self._say):
            self._say(problem)
            # Counted as pytest counts its own: exit status 1.
            session.testsfailed = 1
        return True

    def _say(self, line: str) -> None:
        reporter = self._pytest.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line(line)

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
            self._failures.setdefault(point, self._reason(report))
            if getattr(report, "dsr1_lost", False):
                self._lost.add(point)
            if gated:
                self._run_again_with_lf(report.nodeid)
        elif report.skipped:
            due[report.nodeid] = "skipped"
        elif report.when == "call":
            due[report.nodeid] = due[report.nodeid] or "passed"
        # A test whose worker crashed has one report, of no phase.
        if report.when not in ("setup", "call") and all(due.values()):
            self._end(point)

    def _reason(self, report: pytest.TestReport) -> str:
        """Why a test failed, in one line."""
        known = ""
        if getattr(report, "dsr1_lost", False) and hasattr(report, "node") and self.serving.plan is not None:
            # A worker knows only that nobody answers; whoever started the server knows what it died of.
            known = self._obituary = self.serving.problem(_PATIENCE_S)
        return first_line(known) or getattr(report, "dsr1_reason", "") or _last_line(report)

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
            journal.end(point.conc, Status.FAILED, self._failures.get(point, ""), lost=point in self._lost)
        elif "passed" in due.values():
            journal.end(point.conc, Status.PASSED)
        else:
            # Everything was skipped: nothing was measured, so nothing passed.
            journal.end(point.conc, Status.NOT_RUN)
        result = self._result(journal, point.conc)
        if result is not None and (changes := self.serving.changes_since_last(result.fields.get("server", {}))):
            journal.note(f"CONC {point.conc}: the server is not as it was for the point before: {changes}")
        for finding in result.findings if result is not None else ():
            if finding["severity"] == "warn":
                journal.note(f"CONC {point.conc}: warning {finding['check']}: {finding['message']}")

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        # Called for a session that stopped itself (`shouldstop`), too: with a class of pytest's own, or of xdist's.
        self._stopped_by_user = type(excinfo.value) is KeyboardInterrupt or excinfo.errisinstance(pytest.exit.Exception)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not self._begun:
            return
        if session.exitstatus == pytest.ExitCode.INTERRUPTED and not self._stopped_by_user and self._failures:
            # The server was lost, and nobody wanted to stop: that is a failure, not an interruption.
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        interrupted = self._terminated or session.exitstatus == pytest.ExitCode.INTERRUPTED
        for point in self._due:
            journal = self._journals[point.scenario]
            if journal.batch.point(point.conc).status is Status.STARTED:
                # An interrupted point is measured again, even if one of its tests had failed before.
                if point in self._failures and not interrupted:
                    journal.end(point.conc, Status.FAILED, self._failures[point], lost=point in self._lost)
                else:
                    journal.end(point.conc, Status.INTERRUPTED)
        self._journals = {
            scenario: journal for scenario, journal in self._journals.items() if not journal.discard_if_empty()
        }
        failed = any(journal.batch.count(Status.FAILED) for journal in self._journals.values())
        if self._terminated:
            session.exitstatus = EXIT_TERMINATED
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
            for line in closing_lines(journal.batch, results, self.shown(journal.folder), self._again):
                terminalreporter.write_line(line)
        for line in self._obituary.splitlines():
            terminalreporter.write_line(line)
        if self._serving is not None:
            for line in self._serving.farewell(interrupted=self._stopped_by_user):
                terminalreporter.write_line(line)

    @property
    def _again(self) -> str:
        """What is to be typed beside --resume."""
        return " -n auto" if len(self.config.server_urls) > 1 else ""

    def _result(self, journal: Journal, conc: int) -> Result | None:
        try:
            path = result_path(journal.folder, Point(journal.batch.scenario, conc))
            return Result.from_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def pytest_unconfigure(self) -> None:
        # Of a session that was interrupted before it had any tests.
        for journal in self._journals.values() if self._begun else ():
            journal.discard_if_empty()
        for journal in self._journals.values():
            journal.unlock()
        # A second Ctrl+C has ended the server at once, and there is nothing left to interrupt.
        with suppress(KeyboardInterrupt):
            self.stop_server()
        if self._old_handler is not None:
            signal.signal(signal.SIGTERM, self._old_handler)


def _test_name(nodeid: str) -> str:
    return nodeid.rpartition("::")[2].partition("[")[0]


def _last_line(report: pytest.TestReport) -> str:
    return next((line.strip() for line in reversed(report.longreprtext.splitlines()) if line.strip()), "failed")


def _shown(folder: Path, here: Path) -> str:
    return str(folder.relative_to(here)) if folder.is_relative_to(here) else str(folder)
