"""Sends a batch's results, each at most once unless the user says otherwise.

The order is fixed: compare the leaderboard's inputs, write to the outbox, send, write the outcome. Whatever ends the
process, the outbox says what may have been sent.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from pytest_dsr1.batch import read_result, write_atomically
from pytest_dsr1.batch.journal import Journal
from pytest_dsr1.core.config import Point, SweepConfig
from pytest_dsr1.core.evidence import Severity
from pytest_dsr1.core.gate import GateStatus
from pytest_dsr1.core.result import Result
from pytest_dsr1.core.server import is_loopback
from pytest_dsr1.core.summary import PointState, Status
from pytest_dsr1.core.text import first_line
from pytest_dsr1.submit.client import Leaderboard, LeaderboardError
from pytest_dsr1.submit.events import Delivery, SubmissionState
from pytest_dsr1.submit.schema import (
    FIELDS_11,
    EntryError,
    Row,
    Schema,
    SchemaError,
    Values,
    key_of,
    match_labels,
    side_by_side,
    values_of,
)

OUTBOX_NAME = "submissions.jsonl"
ACCEPTED_NAME = "accepted_schemas.json"
#: From a result, and whether its leaderboard is on this machine, to why it may not be sent: one line for each reason.
Objections: TypeAlias = Callable[[Result, bool], Iterable[str]]


def own_objections(result: Result, loopback: bool) -> Iterator[str]:
    """Why `result` may not be sent, the most exact reason first; nothing if it may.

    :param loopback: Whether the leaderboard is on this machine, so that the submission is a rehearsal.
    """
    if result.engine == "reference" and not loopback:
        yield "it was measured on the reference engine, whose results are only sent to a leaderboard on this machine"
    elif result.engine not in ("reference", "external", "sglang"):
        yield f"it was measured on an engine that is not known: {result.engine!r}"
    if result.accuracy_validation.status is not GateStatus.PASSED:
        yield f"accuracy is {result.accuracy_validation.status}"
    if result.accuracy_task is not None and "[:" in result.accuracy_task.task:
        yield f"its accuracy was measured on a part of the task only: {result.accuracy_task.task} (--accuracy-limit)"
    requested = result.benchmark_args.num_prompts if result.benchmark_args is not None else None
    completed = result.successful_requests
    if requested is None or completed != requested:
        yield f"it is not complete: {completed or 0} of {requested or 'an unknown number of'} requests succeeded"
    for finding in result.findings:
        if finding.severity is Severity.REJECT:
            yield f"{finding.check}: {finding.message}"
    if result.server.num_gpus is None:
        yield "the number of GPUs is unknown, so there is no throughput per GPU; type --tp"
    # Last, because the verdict repeats one of the reasons above in fewer words.
    if not result.passed:
        yield f"it did not pass{': ' + result.reason if result.reason else ''}"


# Format history of submissions.jsonl:
# 1 - the fields of Record, one object a line
class Record(Delivery, frozen=True, kw_only=True):
    """One change of a submission, as a line of the outbox.

    :param key: Identifies a row on a leaderboard: the same figures on the same leaderboard have the same key.
    :param data: The values that were sent, or that would be, in the leaderboard's order.
    :param time: Seconds since the epoch.
    """

    version: Literal[1] = 1
    key: str
    url: str
    conc: int
    data: Row = msgspec.field(default_factory=list)
    time: float = msgspec.field(default_factory=time.time)


class Outbox:
    """`submissions.jsonl` of a batch folder, written under the batch's lock only."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / OUTBOX_NAME

    def append(self, record: Record) -> None:
        """Add a line; it is on the disk when this returns.

        :raises OSError: The file cannot be written.
        """
        line = msgspec.json.encode(record) + b"\n"
        if not self.path.exists():
            # Flushes the folder too: otherwise a power failure could take the whole file.
            write_atomically(self.path, b"")
        with self.path.open("ab+") as file:
            size = file.tell()
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                # A process that was killed left an incomplete line; this one must not continue it.
                line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def latest(self) -> dict[str, Record]:
        """The last record of each key; UNKNOWN if the process ended while sending.

        Incomplete lines and other versions are left out.
        """
        latest: dict[str, Record] = {}
        for line in self.path.read_bytes().split(b"\n") if self.path.exists() else ():
            try:
                record = msgspec.json.decode(line, type=Record)
            except ValueError:
                continue
            if record.state is SubmissionState.SENDING:
                message = "the process ended before there was an answer"
                record = msgspec.structs.replace(record, state=SubmissionState.UNKNOWN, message=message)
            latest[record.key] = record
        return latest


@dataclass(frozen=True, kw_only=True)
class Sender:
    """Sends results as a user wants it.

    :param config: Of mode submit; `reports_dir` has the file of accepted labels.
    :param token: For a private Space; empty if there is none.
    :param objections: Why a result may not be sent.
    :param ask: Asks the user a yes-or-no question.
    """

    config: SweepConfig
    token: str = field(default="", repr=False)
    objections: Objections = own_objections
    ask: Callable[[str], bool] = lambda _question: False

    def read_schema(self, board: Leaderboard, timeout_s: float) -> Schema:
        """Ask a leaderboard for its labels, and assign our fields to them.

        :raises LeaderboardError: It cannot be asked.
        :raises SchemaError: It does not take what we send, or the user has to accept its labels first.
        """
        schema = match_labels(board.labels(timeout_s))
        path = self.config.reports_dir / ACCEPTED_NAME
        try:
            accepted = msgspec.json.decode(path.read_bytes(), type=dict[str, list[str]])
        except (OSError, ValueError):
            # If the file is damaged, the user has to accept the labels once more.
            accepted = {}
        if schema.unknown and accepted.get(board.url) != list(schema.labels):
            if not self.config.accept_schema:
                raise SchemaError(
                    f"{len(schema.unknown)} of the leaderboard's labels are not known; if both columns mean the same "
                    f"in each line, type --accept-schema once\n{side_by_side(schema.labels, schema.fields)}"
                )
            accepted[board.url] = list(schema.labels)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, msgspec.json.format(msgspec.json.encode(accepted), indent=1) + b"\n")
        return schema

    def submit(self, journal: Journal, url: str, *, postponed: str = "") -> dict[int, Delivery]:
        """Send what may be sent of a batch, in the order of CONC.

        Returns what became of each finished point, by CONC; it is also in the outbox and in the summary.

        :param postponed: Why nothing is sent now; everything is then only written to the outbox. Empty to send.
        """
        outbox = Outbox(journal.folder)
        latest, deliveries = outbox.latest(), dict[int, Delivery]()
        ready: list[tuple[Values, Record]] = []
        for state in sorted(journal.batch.points, key=lambda state: state.conc):
            if not state.status.finished:
                continue
            try:
                values = self._values(journal, state, url)
            except EntryError as error:
                deliveries[state.conc] = Delivery(SubmissionState.INELIGIBLE, str(error))
                continue
            if (key := key_of(values, url)) not in latest:
                row = [values.get(field) for field in FIELDS_11]
                latest[key] = Record(
                    SubmissionState.PENDING, "not sent yet", key=key, url=url, conc=state.conc, data=row
                )
                outbox.append(latest[key])
            deliveries[state.conc] = latest[key]
            ready.append((values, latest[key]))
        for conc, delivery in chain(list(deliveries.items()), self._send(ready, url, outbox, postponed)):
            subject = f"submission to {url}, CONC={conc}: "
            journal.note(subject + delivery.words, instead_of=subject)
            deliveries[conc] = delivery
        return deliveries

    def _values(self, journal: Journal, state: PointState, url: str) -> Values:
        """The values of a finished point.

        :raises EntryError: It may not be sent; the message is the first reason.
        """
        result = read_result(journal.folder, Point(journal.batch.scenario, state.conc))
        if result is None:
            raise EntryError("its result cannot be read")
        for reason in self.objections(result, is_loopback(url)):
            raise EntryError(reason)
        if state.status is Status.FAILED:
            raise EntryError(f"the point failed{': ' + state.reason if state.reason else ''}")
        return values_of(result, self.config.team or "")

    def _send(
        self, ready: Sequence[tuple[Values, Record]], url: str, outbox: Outbox, stopped: str
    ) -> Iterator[tuple[int, Delivery]]:
        """Send rows that are in the outbox; yields the outcome of each, by CONC.

        :param ready: The values of each row, and the last that is known of it.
        :param stopped: Why nothing more is sent; empty as long as sending is possible.
        """
        board, timeout_s, schema = Leaderboard(url, self.token), self.config.submit_timeout_s, None
        for values, last in ready:
            if not self._may_send(last):
                continue
            row, changes = last.data, iter([Delivery(SubmissionState.PENDING, stopped)])
            if not stopped:
                try:
                    schema = schema or self.read_schema(board, timeout_s)
                    row = schema.row(values)
                    changes = board.submit(row, timeout_s)
                except EntryError as error:
                    yield last.conc, Delivery(SubmissionState.INELIGIBLE, str(error))
                    continue
                except (LeaderboardError, SchemaError) as error:
                    changes = iter([Delivery(SubmissionState.PENDING, first_line(str(error)))])
            for delivery in changes:
                # If nothing was received this time, what was known before is still true.
                is_news = delivery.state is not SubmissionState.PENDING or last.state is SubmissionState.PENDING
                known = delivery if is_news else last
                outbox.append(
                    Record(known.state, known.message, known.event_id, key=last.key, url=url, conc=last.conc, data=row)
                )
            if delivery.state is SubmissionState.PENDING:
                stopped = delivery.message
            yield last.conc, delivery

    def _may_send(self, last: Record) -> bool:
        if last.state is SubmissionState.UNKNOWN:
            fact = f"CONC={last.conc} was sent, and it is unknown whether it arrived ({last.message})."
        elif last.state is SubmissionState.REFUSED:
            fact = f"CONC={last.conc} was refused by the leaderboard ({last.message})."
        else:
            return last.state is not SubmissionState.ACCEPTED
        return self.ask(f"{fact} Send it again?")
