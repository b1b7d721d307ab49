"""Mode submit in a session, and `pytest --submit-pending DIR` without one.

In a session the leaderboard is asked for its labels before anything is measured, and gets the results at the end.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest

from pytest_dsr1.batch.journal import Journal, JournalError
from pytest_dsr1.batch.published import b200_table
from pytest_dsr1.core.config import Point, Scenario, SweepConfig
from pytest_dsr1.core.result import Result
from pytest_dsr1.core.routing import leaderboard_for, server_problem
from pytest_dsr1.core.server import Served, is_loopback
from pytest_dsr1.options import reading
from pytest_dsr1.submit.client import Leaderboard, LeaderboardError
from pytest_dsr1.submit.entry import Objections, lacks_baseline, own_objections
from pytest_dsr1.submit.events import Delivery, SubmissionState
from pytest_dsr1.submit.schema import SchemaError
from pytest_dsr1.submit.send import Terms, read_schema, submit_batch

#: A session that ended by itself. With any other exit status, the user or an error has interrupted it.
_ENDED = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
#: The options that `--submit-pending` can be combined with; all others are about measuring.
_COMBINABLE = frozenset({"--submit-pending", "--yes", "--leaderboard-url", "--accept-schema", "--submit-timeout"})
#: Longest wait for the labels before a sweep: a Space that is asleep is asked again at the end.
FIRST_LOOK_S = 20.0
TOKEN_VARIABLE = "HF_TOKEN"


class SubmittingSweep(Protocol):
    """What mode submit needs from the sweep.

    `measures`: whether the session measures points, and does not only collect or show them. `begun`: whether it has
    batches. `journals`: one for each batch.
    """

    @property
    def config(self) -> SweepConfig: ...

    @property
    def measures(self) -> bool: ...

    @property
    def begun(self) -> bool: ...

    @property
    def journals(self) -> tuple[Journal, ...]: ...

    def stop_server(self) -> None: ...

    def shown(self, folder: Path) -> str:
        """The path of a batch folder as the user can type it."""


def with_hook(config: pytest.Config) -> Objections:
    """Our own objections, then those of other plugins: `pytest_dsr1_objections`."""

    def objections(result: Result, loopback: bool) -> Iterator[str]:
        yield from own_objections(result, loopback)
        for reasons in config.hook.pytest_dsr1_objections(config=config, result=result, loopback=loopback):
            yield from reasons or ()

    return objections


def _terms(config: SweepConfig, environ: Mapping[str, str], objections: Objections) -> Terms:
    """Terms that ask no question, so that nothing is sent again that may have been received."""
    return Terms(
        reports=config.reports_dir,
        token=environ.get(TOKEN_VARIABLE, "").strip(),
        accept_schema=config.accept_schema,
        timeout_s=config.submit_timeout_s,
        objections=objections,
    )


class SubmitPlugin:
    """The plugin object of a session in mode submit, in the process that owns the sweep."""

    def __init__(
        self, sweep: SubmittingSweep, environ: Mapping[str, str], objections: Objections = own_objections
    ) -> None:
        self._sweep = sweep
        self._terms = _terms(sweep.config, environ, objections)
        self._header: list[str] = []
        self._closing: list[str] = []

    # tryfirst: the sweep starts a server in the same hook. Registered after the sweep, so this one comes first.
    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        if self._sweep.measures or self._sweep.config.preflight:
            self._header = [self._check_leaderboard(scenario) for scenario in self._sweep.config.scenarios]

    def pytest_dsr1_refuse_server(self, why: str, reference: bool, served: Served | None) -> str:
        gpus_known = served is None or served.num_gpus is not None
        return server_problem(self._sweep.config, why, reference=reference, gpus_known=gpus_known)

    def _check_leaderboard(self, scenario: Scenario) -> str:
        """A line for the header about the leaderboard of `scenario`.

        :raises pytest.UsageError: It would take none of the results.
        """
        config = self._sweep.config
        url = leaderboard_for(scenario, config.leaderboard_url)
        if url is None:
            return f"dsr1: nothing to submit to: there is no leaderboard for ISL/OSL {scenario} (--leaderboard-url)"
        try:
            board = Leaderboard(url, self._terms.token)
            schema = read_schema(board, self._terms, min(FIRST_LOOK_S, self._terms.timeout_s))
        except SchemaError as error:
            raise pytest.UsageError(f"{url}: {error}") from None
        except LeaderboardError as error:
            return f"dsr1: WARNING the leaderboard cannot be asked now; it is asked again at the end: {error}"
        lacking = [conc for conc in config.concurrencies if lacks_baseline(Point(scenario, conc), schema, b200_table())]
        concs = ", ".join(map(str, lacking))
        if len(lacking) == len(config.concurrencies):
            raise pytest.UsageError(
                f"{url} requires B200's figures, and none are published for ISL/OSL {scenario} at CONC {concs}: "
                "no result could be submitted; name another leaderboard with --leaderboard-url, or drop --submit-team"
            )
        rehearsal = " (a rehearsal on this machine)" if is_loopback(url) else ""
        exception = f", except CONC {concs}: no B200 figures are published there" if lacking else ""
        return f"dsr1: submits to {url}{rehearsal}{exception}"

    def pytest_report_header(self) -> list[str]:
        return self._header

    # trylast: the files that others write at the end are written before this waits for a leaderboard.
    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not self._sweep.begun:
            return
        # GPUs are not kept busy while a leaderboard is waited for.
        self._sweep.stop_server()
        ended = session.exitstatus in _ENDED
        failed = False
        for place, journal in enumerate(self._sweep.journals):
            try:
                failed |= self._submit(journal, ended=ended)
            except KeyboardInterrupt:
                session.exitstatus = pytest.ExitCode.INTERRUPTED
                for rest in self._sweep.journals[place:]:
                    self._submit(rest, ended=False)
                return
        if failed and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _submit(self, journal: Journal, *, ended: bool) -> bool:
        """Send a batch, or only write it to the outbox if the session was interrupted.

        Returns whether anything was not accepted.
        """
        config = self._sweep.config
        url = leaderboard_for(journal.batch.scenario, config.leaderboard_url)
        if url is None:
            self._closing.append(_no_leaderboard(journal.batch.scenario))
            journal.note(self._closing[-1])
            return False
        assert config.team is not None, "mode submit has a team"
        postponed = "" if ended else "the session was interrupted"
        deliveries = submit_batch(journal, config.team, url, self._terms, postponed=postponed)
        self._closing += _closing_lines(deliveries, url, self._sweep.shown(journal.folder))
        return any(delivery.state is not SubmissionState.ACCEPTED for delivery in deliveries.values())

    # trylast: below the sweep's own section.
    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self._closing:
            terminalreporter.write_line(line)


def _no_leaderboard(scenario: Scenario) -> str:
    return f"nothing to submit to: there is no leaderboard for ISL/OSL {scenario}"


def _closing_lines(deliveries: Mapping[int, Delivery], url: str, retry: str) -> list[str]:
    """What the terminal says about one batch.

    :param deliveries: By CONC.
    :param retry: What to type after `--submit-pending` in order to send the rest.
    """
    if not deliveries:
        return [f"nothing to submit to {url}: no point was measured to its end"]
    lines = [f"submission to {url}", *(f"CONC {conc}: {delivery.words}" for conc, delivery in deliveries.items())]
    if {delivery.state for delivery in deliveries.values()} & {SubmissionState.PENDING, SubmissionState.UNKNOWN}:
        lines.append(f"send what is pending with: pytest --submit-pending {retry}")
    return lines


def submit_pending(
    typed: reading.Texts, environ: Mapping[str, str], here: Path, objections: Objections = own_objections
) -> int:
    """Send what a batch has not sent, and print the outcome.

    Returns 0 if nothing is left to be sent, else 1.

    :param here: The folder that a relative path starts from.
    :raises pytest.UsageError: The options cannot be combined, the folder is no batch of mode submit, or it is in use.
    """
    if surplus := sorted(name for name in typed if name not in _COMBINABLE):
        raise pytest.UsageError(f"--submit-pending measures nothing, so {surplus[0]} has no effect with it; drop one")
    asked = reading.parse(typed, {})
    try:
        journal = Journal.reopen((here / asked["--submit-pending"]).resolve())
    except JournalError as error:
        raise pytest.UsageError(f"--submit-pending: {error}") from None
    config = reading.make_config({**reading.parse(journal.options, {}), **asked}, typed, journal.folder)
    if config.team is None:
        raise pytest.UsageError(
            f"--submit-pending: {journal.folder} was measured in mode {config.mode}; only mode submit can be sent"
        )
    url = leaderboard_for(journal.batch.scenario, config.leaderboard_url)
    if url is None:
        print(_no_leaderboard(journal.batch.scenario))
        return pytest.ExitCode.OK
    ask = (lambda _question: True) if asked.get("--yes") else _ask
    terms = replace(_terms(config, environ, objections), reports=journal.folder.parent, ask=ask)
    if is_loopback(url):
        print(f"{url} is on this machine: a rehearsal")
    try:
        journal.lock()
    except JournalError as error:
        raise pytest.UsageError(f"--submit-pending: {error}") from None
    try:
        deliveries = submit_batch(journal, config.team, url, terms)
    finally:
        journal.unlock()
    retry = f"{asked['--submit-pending']}{f' --leaderboard-url {url}' if '--leaderboard-url' in asked else ''}"
    print("\n".join(_closing_lines(deliveries, url, retry)))
    done = {SubmissionState.ACCEPTED, SubmissionState.INELIGIBLE}
    is_left = any(delivery.state not in done for delivery in deliveries.values())
    return pytest.ExitCode.TESTS_FAILED if is_left else pytest.ExitCode.OK


def _ask(question: str) -> bool:
    if not sys.stdin.isatty():
        print(f"{question} No: there is no terminal to ask on; type --yes")
        return False
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
