"""The files of submissions: a batch's outbox, and the labels that a user accepted.

A submission is in the outbox before it is sent. Whatever ends the process, the file says what may have been sent.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from pytest_dsr1.batch import write_atomically
from pytest_dsr1.submit.events import Delivery, SubmissionState

OUTBOX_NAME = "submissions.jsonl"
ACCEPTED_NAME = "accepted_schemas.json"


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
    data: list[str | int | float | None] = msgspec.field(default_factory=list)
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

    def records(self) -> Iterator[Record]:
        """All records, oldest first, without incomplete lines and other versions."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        for line in content.split(b"\n"):
            try:
                yield msgspec.json.decode(line, type=Record)
            except ValueError:
                continue

    def latest(self) -> dict[str, Record]:
        """The last record of each key; UNKNOWN if the process ended while sending."""
        latest = {record.key: record for record in self.records()}
        for key, record in latest.items():
            if record.state is SubmissionState.SENDING:
                latest[key] = msgspec.structs.replace(
                    record, state=SubmissionState.UNKNOWN, message="the process ended before there was an answer"
                )
        return latest


def is_accepted(reports: Path, url: str, labels: Sequence[str]) -> bool:
    """Whether the user accepted exactly these labels for the leaderboard at `url`."""
    return _accepted(reports).get(url) == list(labels)


def accept(reports: Path, url: str, labels: Sequence[str]) -> None:
    """Store that the user accepted these labels for the leaderboard at `url`.

    :raises OSError: The file cannot be written.
    """
    reports.mkdir(parents=True, exist_ok=True)
    accepted = _accepted(reports) | {url: list(labels)}
    write_atomically(reports / ACCEPTED_NAME, msgspec.json.format(msgspec.json.encode(accepted), indent=1) + b"\n")


def _accepted(reports: Path) -> dict[str, list[str]]:
    """Labels by URL. If the file is damaged, the user has to accept them once more."""
    try:
        return msgspec.json.decode((reports / ACCEPTED_NAME).read_bytes(), type=dict[str, list[str]])
    except (OSError, ValueError):
        return {}
