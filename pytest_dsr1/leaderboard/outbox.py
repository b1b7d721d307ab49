"""What a batch has sent, or is to send: one line for each change, on the disk before anything else happens."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pytest_dsr1.leaderboard.events import State

# Format history:
# 1 - {"version", "time", "key", "url", "conc", "state", "message", "event_id", "data"}, one object a line
VERSION = 1
NAME = "submissions.jsonl"


@dataclass(frozen=True, kw_only=True)
class Record:
    """A change of one submission.

    :param key: Same row, same leaderboard: same key.
    :param data: What was sent, or would be, in the leaderboard's order.
    :param time: Epoch seconds.
    """

    key: str
    url: str
    conc: int
    state: State
    message: str = ""
    event_id: str = ""
    data: Sequence[object] = ()
    time: float = field(default_factory=time.time)


class Outbox:
    """`submissions.jsonl` of one batch folder. Who holds the lock of its journal may write."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def append(self, record: Record) -> None:
        """Write a change down; it is on the disk when this returns."""
        line = json.dumps({"version": VERSION, **asdict(record)}, ensure_ascii=True) + "\n"
        new = not self.path.exists()
        with self.path.open("ab+") as file:
            if file.tell() and not self._ends_whole(file.fileno(), file.tell()):
                # A killed process left half a line; it must not swallow this one.
                line = "\n" + line
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        if new:
            directory = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    @staticmethod
    def _ends_whole(descriptor: int, size: int) -> bool:
        return os.pread(descriptor, 1, size - 1) == b"\n"

    def records(self) -> Iterator[Record]:
        """Every change, oldest first; half a line, or one of another version, is left out."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        for line in content.split(b"\n"):
            try:
                fields = json.loads(line)
                if fields.pop("version") == VERSION:
                    yield Record(**{**fields, "state": State(fields["state"])})
            except (ValueError, TypeError, KeyError, AttributeError):
                continue

    def latest(self) -> dict[str, Record]:
        """The last record of each key. One that was being sent when its process ended is unknown."""
        found = {record.key: record for record in self.records()}
        lost = "the process ended before there was an answer"
        return {
            key: Record(**{**asdict(record), "state": State.UNKNOWN, "message": lost})
            if record.state is State.SENDING
            else record
            for key, record in found.items()
        }
