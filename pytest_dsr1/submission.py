"""Mode submit within a session: the leaderboard is asked before anything runs, and gets the results at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from pytest_dsr1.core.baselines import B200Table
from pytest_dsr1.core.config import Point, Scenario, SweepConfig
from pytest_dsr1.core.server import is_loopback
from pytest_dsr1.journal import Journal
from pytest_dsr1.leaderboard.client import Leaderboard, LeaderboardError
from pytest_dsr1.leaderboard.eligibility import lacks_baseline
from pytest_dsr1.leaderboard.events import State
from pytest_dsr1.leaderboard.routing import leaderboard_for
from pytest_dsr1.leaderboard.schema import SchemaError
from pytest_dsr1.leaderboard.submit import LOOK_S, Report, Terms, keep_pending, look, submit_batch
from pytest_dsr1.resources import baseline_text
from pytest_dsr1.session import Sweep

#: A session that ended by itself; whatever else ended it, its user wanted it to stop.
_ENDED = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
TOKEN_VARIABLE = "HF_TOKEN"
B200_FILE = "b200_nv1126.json"


def terms_of(config: SweepConfig, environ: Mapping[str, str]) -> Terms:
    """How a session sends: it asks nobody, so what may have arrived is not sent again."""
    return Terms(
        reports=config.reports_dir,
        token=environ.get(TOKEN_VARIABLE, "").strip(),
        accept_schema=config.accept_schema,
        patience_s=config.submit_timeout_s,
    )


class Submission:
    """The plugin object of a session in mode submit, in the process that owns it."""

    def __init__(self, config: pytest.Config, sweep: Sweep, environ: Mapping[str, str]) -> None:
        self._pytest = config
        self._sweep = sweep
        self._terms = terms_of(sweep.config, environ)
        self._b200 = B200Table.from_json(baseline_text(B200_FILE), name=B200_FILE)
        self._header: list[str] = []
        self._closing: list[str] = []

    # -- before -----------------------------------------------------------------------------------------------

    # tryfirst, and registered after the sweep: before it starts a server.
    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        if self._sweep.measures or self._sweep.config.preflight:
            self._header = [self._look(scenario) for scenario in self._sweep.config.scenarios]

    def _look(self, scenario: Scenario) -> str:
        """A line about the leaderboard of `scenario`."""
        config = self._sweep.config
        url = leaderboard_for(scenario, config.leaderboard_url)
        if url is None:
            return f"dsr1: nothing to submit to: there is no leaderboard for ISL/OSL {scenario} (--leaderboard-url)"
        try:
            schema = look(Leaderboard(url, self._terms.token), self._terms, min(LOOK_S, self._terms.patience_s))
        except SchemaError as error:
            raise pytest.UsageError(f"{url}: {error}") from None
        except LeaderboardError as error:
            return f"dsr1: WARNING the leaderboard cannot be asked now, and will be at the end: {error}"
        concs = [conc for conc in config.concurrencies if lacks_baseline(Point(scenario, conc), schema, self._b200)]
        if len(concs) == len(config.concurrencies):
            raise pytest.UsageError(
                f"{url} wants the figures of B200, and none are published for ISL/OSL {scenario} at "
                f"CONC {', '.join(map(str, concs))}: nothing of it could be submitted"
            )
        rehearsal = " (a rehearsal on this machine)" if is_loopback(url) else ""
        but = f", but not CONC {', '.join(map(str, concs))}: B200 was not measured there" if concs else ""
        return f"dsr1: submits to {url}{rehearsal}{but}"

    def pytest_report_header(self) -> list[str]:
        return self._header

    # -- after ------------------------------------------------------------------------------------------------

    # trylast: what others write at the end is written before anybody waits for a leaderboard.
    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not self._sweep.begun:
            return
        self._sweep.stop_server()
        ended = session.exitstatus in _ENDED
        journals = list(self._sweep.journals)
        failed = False
        for place, journal in enumerate(journals):
            try:
                failed |= self._submit(journal, ended=ended)
            except KeyboardInterrupt:
                ended, session.exitstatus = False, pytest.ExitCode.INTERRUPTED
                for rest in journals[place:]:
                    self._submit(rest, ended=False)
                return
        if failed and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _submit(self, journal: Journal, *, ended: bool) -> bool:
        """Send a batch, or keep it; whether anything that was to be sent was not accepted."""
        config = self._sweep.config
        url = leaderboard_for(journal.batch.scenario, config.leaderboard_url)
        if url is None:
            line = f"nothing to submit to: there is no leaderboard for ISL/OSL {journal.batch.scenario}"
            journal.note(line)
            self._closing.append(line)
            return False
        assert config.team is not None, "mode submit has a team"
        if ended:
            reports = submit_batch(journal, config.team, url, self._terms)
        else:
            reports = keep_pending(journal, config.team, url, "the session was interrupted")
        self._closing += lines(reports, url, self._sweep.shown(journal.folder))
        return any(report.state is not State.ACCEPTED for report in reports)

    # trylast: below the sweep's own section.
    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self._closing:
            terminalreporter.write_line(line)


def lines(reports: Sequence[Report], url: str, folder: str) -> list[str]:
    """What is said on the terminal about one batch."""
    if not reports:
        return [f"nothing to submit to {url}: no point was measured to its end"]
    said = [f"submission to {url}"]
    said += [f"CONC {report.conc}: {report.words}" for report in reports]
    if any(report.state in (State.PENDING, State.UNKNOWN) for report in reports):
        said.append(f"send what is pending with: pytest --submit-pending {folder}")
    return said
