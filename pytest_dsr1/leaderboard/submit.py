"""Sends a batch's results: asks the leaderboard first, writes down before it sends, and never sends twice unasked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pytest_dsr1.core.config import Point
from pytest_dsr1.core.result import Result
from pytest_dsr1.core.server import is_loopback
from pytest_dsr1.core.summary import PointState, Status
from pytest_dsr1.journal import Journal, result_path
from pytest_dsr1.leaderboard.accepted import accept, is_accepted
from pytest_dsr1.leaderboard.client import Leaderboard, LeaderboardError
from pytest_dsr1.leaderboard.eligibility import objections
from pytest_dsr1.leaderboard.events import Outcome, State
from pytest_dsr1.leaderboard.outbox import Outbox, Record
from pytest_dsr1.leaderboard.payload import Entry, PayloadError, make_entry
from pytest_dsr1.leaderboard.schema import ASSUMED, Schema, SchemaError, match, side_by_side

#: Seconds that a leaderboard may take to answer before a run: a Space that sleeps is asked again at the end.
LOOK_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How a user wants his results sent.

    :param reports: The folder that remembers which labels he accepted.
    :param patience_s: For one submission, from its first attempt to its outcome.
    :param ask: A question to yes or no.
    """

    reports: Path
    token: str = field(default="", repr=False)
    accept_schema: bool = False
    patience_s: float = 300.0
    ask: Callable[[str], bool] = lambda _question: False


@dataclass(frozen=True)
class Report:
    """What became of one point's submission.

    :param state: None: it is nothing to be sent, for the reason given.
    """

    conc: int
    state: State | None
    message: str
    event_id: str = ""

    @property
    def words(self) -> str:
        """For the summary's line."""
        if self.state is None:
            return f"refused: {self.message}"
        if self.state is State.ACCEPTED:
            event = f", event {self.event_id}" if self.event_id else ""
            return f"submitted{event}{': ' + self.message if self.message else ''}"
        if self.state is State.REFUSED:
            return f"refused by the leaderboard: {self.message}"
        if self.state is State.UNKNOWN:
            event = f" (event {self.event_id})" if self.event_id else ""
            return f"unknown: {self.message}{event}; look at the leaderboard before you send it again"
        return f"pending: {self.message}"


class UnrecognisedError(SchemaError):
    """A leaderboard has labels that nobody recognises, and nobody accepted them."""


def look(board: Leaderboard, terms: Terms, patience_s: float) -> Schema:
    """Ask a leaderboard how it is filled.

    :raises LeaderboardError: It cannot be asked.
    :raises SchemaError: It does not take what we send, or its labels must be accepted first.
    """
    schema = match(board.labels(patience_s))
    if schema.unknown and not is_accepted(terms.reports, board.url, schema.labels):
        if not terms.accept_schema:
            raise UnrecognisedError(
                f"{len(schema.unknown)} of the leaderboard's labels are not known; if both sides mean the same in each "
                f"line, type --accept-schema once\n{side_by_side(schema.labels, schema.fields)}"
            )
        accept(terms.reports, board.url, schema.labels)
    return schema


def submit_batch(journal: Journal, team: str, url: str, terms: Terms) -> list[Report]:
    """Send what may be sent of a batch, in the order of CONC; every outcome is in the outbox and in the summary."""
    outbox = Outbox(journal.folder)
    sender = _Sender(outbox, Leaderboard(url, terms.token), terms)
    due, reports = _due(journal, team, url)
    reports_of_due = [sender.write_down(entry) for entry in due]
    for report in (*reports_of_due, *reports):
        _note(journal, url, report)
    for entry in due:
        reports.append(sender.send(entry))
        _note(journal, url, reports[-1])
    return sorted(reports, key=lambda report: report.conc)


def keep_pending(journal: Journal, team: str, url: str, why: str) -> list[Report]:
    """Write down what could be sent, and send nothing."""
    outbox = Outbox(journal.folder)
    sender = _Sender(outbox, Leaderboard(url), Terms(reports=journal.folder))
    due, reports = _due(journal, team, url)
    reports += [sender.write_down(entry, why) for entry in due]
    for report in reports:
        _note(journal, url, report)
    return sorted(reports, key=lambda report: report.conc)


def _note(journal: Journal, url: str, report: Report) -> None:
    subject = f"submission to {url}, CONC={report.conc}: "
    journal.note(subject + report.words, instead_of=subject)


def _due(journal: Journal, team: str, url: str) -> tuple[list[Entry], list[Report]]:
    """What is to be sent, by CONC; and why the rest is not."""
    entries, reports = [], []
    for state in sorted(journal.batch.points, key=lambda state: state.conc):
        if not state.status.finished:
            continue
        point = Point(journal.batch.scenario, state.conc)
        reasons = list(_reasons(state, result := _result(journal.folder, point), loopback=is_loopback(url)))
        if result is not None and not reasons:
            try:
                entries.append(make_entry(result, team))
            except PayloadError as error:
                reasons.append(str(error))
        if reasons:
            reports.append(Report(state.conc, None, reasons[0]))
    return entries, reports


def _reasons(state: PointState, result: Result | None, *, loopback: bool) -> Iterator[str]:
    if result is None:
        yield "it has no result that can be read"
        return
    yield from objections(result, loopback=loopback)
    if state.status is Status.FAILED:
        yield f"the point failed{': ' + state.reason if state.reason else ''}"


def _result(folder: Path, point: Point) -> Result | None:
    try:
        return Result.from_json(result_path(folder, point).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


class _Sender:
    """One leaderboard and one outbox; asked about its labels once."""

    def __init__(self, outbox: Outbox, board: Leaderboard, terms: Terms) -> None:
        self._outbox, self._board, self._terms = outbox, board, terms
        self._known = outbox.latest()
        self._schema: Schema | None = None
        #: Why nothing more is sent in this session.
        self._stopped = ""

    def write_down(self, entry: Entry, why: str = "not sent yet") -> Report:
        """Have it in the outbox, whatever comes."""
        key = entry.key(self._board.url)
        if key not in self._known:
            self._write(entry, Outcome(State.PENDING, why), [entry.values.get(field) for field in ASSUMED.fields])
            self._known = self._outbox.latest()
        known = self._known[key]
        message = why if known.state is State.PENDING else known.message
        return Report(entry.conc, known.state, message, known.event_id)

    def send(self, entry: Entry) -> Report:
        """Send it, unless that is done, or it may be done and nobody says that it is to be done again."""
        known = self._known[entry.key(self._board.url)]
        if known.state is State.ACCEPTED:
            return Report(entry.conc, State.ACCEPTED, known.message, known.event_id)
        if known.state in (State.UNKNOWN, State.REFUSED):
            question = {
                State.UNKNOWN: f"CONC={entry.conc} was sent, and nobody knows whether it arrived ({known.message}).",
                State.REFUSED: f"CONC={entry.conc} was refused by the leaderboard ({known.message}).",
            }[known.state]
            if not self._terms.ask(f"{question} Send it again?"):
                return Report(entry.conc, known.state, known.message, known.event_id)
        data: list[str | int | float | None] = []
        outcome = Outcome(State.PENDING, self._stopped)
        if not self._stopped:
            try:
                self._schema = self._schema or look(self._board, self._terms, self._terms.patience_s)
                data = entry.data(self._schema)
            except (LeaderboardError, SchemaError) as error:
                self._stopped = str(error)
                outcome = Outcome(State.PENDING, str(error).partition("\n")[0])
            except PayloadError as error:
                return Report(entry.conc, None, str(error))
            else:
                outcome = self._board.submit(
                    data,
                    self._terms.patience_s,
                    lambda state, message: self._log(entry, known, Outcome(state, message), data),
                )
                if outcome.state is State.PENDING:
                    self._stopped = outcome.message
        self._log(entry, known, outcome, data or known.data)
        return Report(entry.conc, outcome.state, outcome.message, outcome.event_id)

    # What was before still stands where nothing was sent this time.
    def _log(self, entry: Entry, before: Record, outcome: Outcome, data: Sequence[object]) -> None:
        if outcome.state is State.PENDING and before.state is not State.PENDING:
            outcome = Outcome(before.state, before.message, before.event_id)
        self._write(entry, outcome, data)

    def _write(self, entry: Entry, outcome: Outcome, data: Sequence[object]) -> None:
        self._outbox.append(
            Record(
                key=entry.key(self._board.url),
                url=self._board.url,
                conc=entry.conc,
                state=outcome.state,
                message=outcome.message,
                event_id=outcome.event_id,
                data=list(data),
            )
        )
