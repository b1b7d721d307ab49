"""Sends a batch's results, each at most once unless the user says otherwise.

The order is fixed: compare the leaderboard's inputs, write to the outbox, send, write the outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pytest_dsr1.batch import read_result
from pytest_dsr1.batch.journal import Journal
from pytest_dsr1.core.config import Point
from pytest_dsr1.core.server import is_loopback
from pytest_dsr1.core.summary import PointState, Status
from pytest_dsr1.submit.client import Leaderboard, LeaderboardError
from pytest_dsr1.submit.entry import Entry, EntryError, Objections, make_entry, own_objections
from pytest_dsr1.submit.events import Delivery, SubmissionState
from pytest_dsr1.submit.outbox import Outbox, Record, accept, is_accepted
from pytest_dsr1.submit.schema import ASSUMED, Schema, SchemaError, match_labels, side_by_side


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How a user wants results to be sent.

    :param reports: The folder with the file of accepted labels.
    :param token: For a private Space; empty if there is none.
    :param accept_schema: Whether labels that are not recognised are accepted now.
    :param timeout_s: For one submission, from its first attempt to its outcome.
    :param ask: Asks the user a yes-or-no question.
    :param objections: Why a result may not be sent.
    """

    reports: Path
    token: str = field(default="", repr=False)
    accept_schema: bool = False
    timeout_s: float = 300.0
    ask: Callable[[str], bool] = lambda _question: False
    objections: Objections = own_objections


def read_schema(board: Leaderboard, terms: Terms, timeout_s: float) -> Schema:
    """Ask a leaderboard for its labels, and assign our fields to them.

    :raises LeaderboardError: It cannot be asked.
    :raises SchemaError: It does not take what we send, or the user has to accept its labels first.
    """
    schema = match_labels(board.labels(timeout_s))
    if schema.unknown and not is_accepted(terms.reports, board.url, schema.labels):
        if not terms.accept_schema:
            raise SchemaError(
                f"{len(schema.unknown)} of the leaderboard's labels are not known; if both columns mean the same in "
                f"each line, type --accept-schema once\n{side_by_side(schema.labels, schema.fields)}"
            )
        accept(terms.reports, board.url, schema.labels)
    return schema


def submit_batch(journal: Journal, team: str, url: str, terms: Terms, *, postponed: str = "") -> dict[int, Delivery]:
    """Send what may be sent of a batch, in the order of CONC.

    Returns what became of each finished point, by CONC; it is also in the outbox and in the summary.

    :param postponed: Why nothing is sent now; everything is then only written to the outbox. Empty to send.
    """
    entries, deliveries = _entries(journal, team, url, terms.objections)
    sender = _Sender(journal, Leaderboard(url, terms.token), terms)
    for entry in entries:
        deliveries[entry.conc] = sender.keep(entry, postponed or "not sent yet")
    for conc, delivery in deliveries.items():
        _note(journal, url, conc, delivery)
    if not postponed:
        for entry in entries:
            deliveries[entry.conc] = sender.send(entry)
            _note(journal, url, entry.conc, deliveries[entry.conc])
    return dict(sorted(deliveries.items()))


def _note(journal: Journal, url: str, conc: int, delivery: Delivery) -> None:
    subject = f"submission to {url}, CONC={conc}: "
    journal.note(subject + delivery.words, instead_of=subject)


def _entries(journal: Journal, team: str, url: str, objections: Objections) -> tuple[list[Entry], dict[int, Delivery]]:
    """Entries of the finished points that may be sent; by CONC, why others may not."""
    entries, ineligible = [], {}
    for state in sorted(journal.batch.points, key=lambda state: state.conc):
        if not state.status.finished:
            continue
        try:
            entries.append(_entry(journal, state, team, url, objections))
        except EntryError as error:
            ineligible[state.conc] = Delivery(SubmissionState.INELIGIBLE, str(error))
    return entries, ineligible


def _entry(journal: Journal, state: PointState, team: str, url: str, objections: Objections) -> Entry:
    """The entry of a finished point.

    :raises EntryError: It may not be sent; the message is the first reason.
    """
    result = read_result(journal.folder, Point(journal.batch.scenario, state.conc))
    if result is None:
        raise EntryError("its result cannot be read")
    for reason in objections(result, is_loopback(url)):
        raise EntryError(reason)
    if state.status is Status.FAILED:
        raise EntryError(f"the point failed{': ' + state.reason if state.reason else ''}")
    return make_entry(result, team)


class _Sender:
    """Sends entries to one leaderboard and writes every change to the batch's outbox."""

    def __init__(self, journal: Journal, board: Leaderboard, terms: Terms) -> None:
        self._outbox, self._board, self._terms = Outbox(journal.folder), board, terms
        self._latest = self._outbox.latest()
        self._schema: Schema | None = None
        #: Why nothing more is sent in this run; empty while sending is possible.
        self._stopped = ""

    def keep(self, entry: Entry, why: str) -> Delivery:
        """Make sure that the outbox has the entry.

        :param why: The reason why it is not sent now.
        """
        key, pending = entry.key(self._board.url), Delivery(SubmissionState.PENDING, why)
        if key not in self._latest:
            self._latest[key] = self._write(entry, pending, [entry.values.get(field) for field in ASSUMED.fields])
        last = self._latest[key]
        return pending if last.state is SubmissionState.PENDING else last

    def send(self, entry: Entry) -> Delivery:
        """Send an entry that is in the outbox and was not accepted yet.

        If it may have been received, or the leaderboard refused it, the user is asked first.
        """
        last = self._latest[entry.key(self._board.url)]
        if not self._may_send(last):
            return last
        data = last.data
        delivery = Delivery(SubmissionState.PENDING, self._stopped)
        if not self._stopped:
            try:
                self._schema = self._schema or read_schema(self._board, self._terms, self._terms.timeout_s)
                data = entry.data(self._schema)
            except EntryError as error:
                return Delivery(SubmissionState.INELIGIBLE, str(error))
            except (LeaderboardError, SchemaError) as error:
                delivery = Delivery(SubmissionState.PENDING, str(error).partition("\n")[0])
            else:
                delivery = self._board.submit(
                    data,
                    self._terms.timeout_s,
                    lambda state, message: self._log(entry, last, Delivery(state, message), data),
                )
            if delivery.state is SubmissionState.PENDING:
                self._stopped = delivery.message
        self._log(entry, last, delivery, data)
        return delivery

    def _may_send(self, last: Record) -> bool:
        if last.state is SubmissionState.UNKNOWN:
            fact = f"CONC={last.conc} was sent, and it is unknown whether it arrived ({last.message})."
        elif last.state is SubmissionState.REFUSED:
            fact = f"CONC={last.conc} was refused by the leaderboard ({last.message})."
        else:
            return last.state is not SubmissionState.ACCEPTED
        return self._terms.ask(f"{fact} Send it again?")

    def _log(self, entry: Entry, last: Record, delivery: Delivery, data: Sequence[str | int | float | None]) -> None:
        if delivery.state is SubmissionState.PENDING and last.state is not SubmissionState.PENDING:
            # Nothing was received this time, so what was known before is still true.
            delivery = last
        self._write(entry, delivery, data)

    def _write(self, entry: Entry, delivery: Delivery, data: Sequence[str | int | float | None]) -> Record:
        record = Record(
            key=entry.key(self._board.url),
            url=self._board.url,
            conc=entry.conc,
            state=delivery.state,
            message=delivery.message,
            event_id=delivery.event_id,
            data=list(data),
        )
        self._outbox.append(record)
        return record
