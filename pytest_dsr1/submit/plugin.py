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
from pytest_dsr1.core.config import Point, Scenario, SweepConfig, leaderboard_for
from pytest_dsr1.core.result import Result
from pytest_dsr1.core.server import Served, is_loopback, server_problem
from pytest_dsr1.options import reading
from pytest_dsr1.submit.client import Leaderboard, LeaderboardError
from pytest_dsr1.submit.events import SubmissionState
from pytest_dsr1.submit.schema import B200_FIELDS, SchemaError
from pytest_dsr1.submit.send import Objections, Sender, own_objections

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


class SubmitPlugin:
    """The plugin object of mode submit, in the process that owns the sweep."""

    def __init__(
        self, sweep: SubmittingSweep, environ: Mapping[str, str], objections: Objections = own_objections
    ) -> None:
        self._sweep = sweep
        self._sender = _sender(sweep.config, environ, objections)
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
            board = Leaderboard(url, self._sender.token)
            schema = self._sender.read_schema(board, min(FIRST_LOOK_S, config.submit_timeout_s))
        except SchemaError as error:
            raise pytest.UsageError(f"{url}: {error}") from None
        except LeaderboardError as error:
            return f"dsr1: WARNING the leaderboard cannot be asked now; it is asked again at the end: {error}"
        unpublished = [conc for conc in config.concurrencies if b200_table().row(Point(scenario, conc)) is None]
        lacking = unpublished if B200_FIELDS & set(schema.required) else []
        concs = ", ".join(map(str, lacking))
        if len(lacking) == len(config.concurrencies):
            raise pytest.UsageError(
                f"{url} requires B200's figures, and none are published for ISL/OSL {scenario} at CONC {concs}: "
                "no result could be submitted; name another leaderboard with --leaderboard-url, or drop --submit-team"
            )
        exception = f", except CONC {concs}: no B200 figures are published there" if lacking else ""
        return f"dsr1: submits to {url}{_rehearsal(url)}{exception}"

    def pytest_report_header(self) -> list[str]:
        return self._header

    # trylast: the files that others write at the end are written before this waits for a leaderboard.
    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not self._sweep.begun:
            return
        # GPUs are not kept busy while a leaderboard is waited for.
        self._sweep.stop_server()
        interrupted = "the session was interrupted"
        postponed = "" if session.exitstatus in _ENDED else interrupted
        failed = False
        for journal in self._sweep.journals:
            try:
                failed |= self._submit(journal, postponed)
            except KeyboardInterrupt:
                session.exitstatus, postponed = pytest.ExitCode.INTERRUPTED, interrupted
                self._submit(journal, postponed)
        if failed and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _submit(self, journal: Journal, postponed: str) -> bool:
        """Send a batch; returns whether anything was not accepted."""
        lines, states = _send(journal, self._sender, self._sweep.shown(journal.folder), postponed)
        self._closing += lines
        return not states <= {SubmissionState.ACCEPTED}

    # trylast: below the sweep's own section.
    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self._closing:
            terminalreporter.write_line(line)


def _send(journal: Journal, sender: Sender, retry: str, postponed: str = "") -> tuple[list[str], set[SubmissionState]]:
    """Send a batch; returns lines for the terminal, and the states of its points.

    :param retry: What to type after `--submit-pending` in order to send the rest.
    :param postponed: Why nothing is sent now; empty to send.
    """
    url = leaderboard_for(journal.batch.scenario, sender.config.leaderboard_url)
    if url is None:
        line = f"nothing to submit to: there is no leaderboard for ISL/OSL {journal.batch.scenario}"
        journal.note(line)
        return [line], set()
    deliveries = sender.submit(journal, url, postponed=postponed)
    if not deliveries:
        return [f"nothing to submit to {url}: no point was measured to its end"], set()
    lines = [f"submission to {url}{_rehearsal(url)}"]
    lines += [f"CONC {conc}: {delivery.words}" for conc, delivery in deliveries.items()]
    states = {delivery.state for delivery in deliveries.values()}
    if states & {SubmissionState.PENDING, SubmissionState.UNKNOWN}:
        lines.append(f"send what is pending with: pytest --submit-pending {retry}")
    return lines, states


def _sender(config: SweepConfig, environ: Mapping[str, str], objections: Objections) -> Sender:
    """A sender that asks no questions: a row that may have arrived is not sent again."""
    return Sender(config=config, token=environ.get(TOKEN_VARIABLE, "").strip(), objections=objections)


def _rehearsal(url: str) -> str:
    return " (a rehearsal on this machine)" if is_loopback(url) else ""


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
        journal.lock()
    except JournalError as error:
        raise pytest.UsageError(f"--submit-pending: {error}") from None
    try:
        config = reading.make_config({**reading.parse(journal.options, {}), **asked}, typed, journal.folder)
        if config.team is None:
            raise pytest.UsageError(
                f"--submit-pending: {journal.folder} was measured in mode {config.mode}; only mode submit can be sent"
            )
        config = replace(config, reports_dir=journal.folder.parent)
        ask = (lambda _question: True) if asked.get("--yes") else _ask
        sender = replace(_sender(config, environ, objections), ask=ask)
        elsewhere = f" --leaderboard-url {asked['--leaderboard-url']}" if "--leaderboard-url" in asked else ""
        lines, states = _send(journal, sender, f"{asked['--submit-pending']}{elsewhere}")
    finally:
        journal.unlock()
    print("\n".join(lines))
    done = {SubmissionState.ACCEPTED, SubmissionState.INELIGIBLE}
    return pytest.ExitCode.OK if states <= done else pytest.ExitCode.TESTS_FAILED


def _ask(question: str) -> bool:
    if not sys.stdin.isatty():
        print(f"{question} No: there is no terminal to ask on; type --yes")
        return False
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
