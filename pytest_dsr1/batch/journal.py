"""The batch folder: what is written when, so that whatever kills a run, the folder tells the truth.

`batch.json` is the state, `summary.txt` its picture; both are replaced whole, and flushed to the disk, at each change.
A result is written before anything is said about it.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_dsr1.batch import SUMMARY_NAME, read_result, write_atomically
from pytest_dsr1.core.config import Mode, Point, Scenario
from pytest_dsr1.core.summary import Batch, PointState, Status, render_summary

# Format history of batch.json:
# 1 - {"schema_version", "options": {name: text}, "batch": core.summary.Batch.to_fields(), "engine", "model"}; the last
#     two once a server answered
SCHEMA_VERSION = 1
STATE_NAME = "batch.json"


class JournalError(ValueError):
    """A folder that is no batch, or one of another version."""


def new_folder(reports: Path, scenario: Scenario, started: float) -> Path:
    """Make an empty batch folder; a second one in the same second gets `_2`.

    :raises OSError: `reports` cannot be written to.
    """
    reports.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d_%H%M%S", time.localtime(started))
    name, number = f"batch_isl{scenario.isl}_osl{scenario.osl}_{stamp}", 1
    while True:
        folder = reports / (name if number == 1 else f"{name}_{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
            continue
        return folder


def _point_latest(reports: Path, folder: Path) -> None:
    partial = reports / ".latest.partial"
    # A convenience: a file system without links, or a file of that name, is no reason to stop.
    with suppress(OSError):
        partial.unlink(missing_ok=True)
        partial.symlink_to(folder.name)
        partial.replace(reports / "latest")


class Journal:
    """One batch folder being written; the only thing that changes its state."""

    def __init__(
        self, folder: Path, batch: Batch, options: Mapping[str, Any], now: Callable[[], float] = time.time
    ) -> None:
        self.folder = folder
        self.batch = batch
        self.options = options
        self.served: tuple[str, str] | None = None
        """Engine and model that the batch is measured on; None before a server answered."""
        self._now = now
        self._lock: int | None = None
        self._reopened = False

    @classmethod
    def create(
        cls,
        reports: Path,
        scenario: Scenario,
        mode: Mode,
        options: Mapping[str, Any],
        now: Callable[[], float] = time.time,
    ) -> Journal:
        """Begin a batch that has no points yet.

        :raises OSError: The folder cannot be made.
        """
        started = now()
        folder = new_folder(reports, scenario, started)
        journal = cls(folder, Batch(scenario=scenario, mode=mode, folder=folder.name, started=started), options, now)
        journal._write()
        return journal

    @classmethod
    def reopen(cls, folder: Path, now: Callable[[], float] = time.time) -> Journal:
        """Go on with an interrupted batch: what was measured counts, what was under way does not.

        :raises JournalError: It is no batch folder.
        """
        state = folder / STATE_NAME
        try:
            fields = json.loads(state.read_text(encoding="utf-8"))
            version = fields["schema_version"]
            if version != SCHEMA_VERSION:
                raise JournalError(f"{state} has schema version {version!r}, this version reads {SCHEMA_VERSION}")
            batch, options = Batch.from_fields(fields["batch"], folder.name), dict(fields["options"])
            served = (str(fields["engine"]), str(fields["model"])) if fields.get("engine") else None
        except OSError as error:
            raise JournalError(f"{folder} is no batch folder: {STATE_NAME} cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, JournalError):
                raise
            raise JournalError(f"{state} is damaged ({type(error).__name__}: {error}); it cannot be resumed") from None
        journal = cls(folder, batch, options, now)
        journal.served = served
        journal._reopened = True
        journal._adopt_finished()
        return journal

    def _adopt_finished(self) -> None:
        """Count points whose result was on disk when the run was killed, before the summary could say so."""
        for state in self.batch.points:
            if state.status not in (Status.STARTED, Status.INTERRUPTED):
                continue
            result = read_result(self.folder, Point(self.batch.scenario, state.conc))
            # Not a result that this start of the point was to replace.
            if result is None or state.started is None or result.written < state.started:
                continue
            if result.status is not None:
                status = Status.PASSED if result.status == "PASSED" else Status.FAILED
                self.batch = self.batch.with_point(state.ended(status, result.written, result.reason))

    def select(self, tests: Mapping[int, tuple[str, ...]]) -> None:
        """Set what belongs to the batch: concurrency to the names of its selected tests, in sweep order.

        Points that are there already keep their state; a point that is left out is forgotten.
        """
        known = {state.conc: state for state in self.batch.points}
        if tests:
            _point_latest(self.folder.parent, self.folder)
        points = tuple(known.get(conc, PointState(conc=conc, tests=names)) for conc, names in tests.items())
        self.batch = replace(self.batch, points=points)
        self._write()

    def lock(self) -> None:
        """Keep other sessions from resuming this batch, until `unlock` or until this process ends.

        A reopened batch is brought up to date: a crash may have come between a result, the state and the summary, and
        if nothing is missing, nothing else is written.

        :raises JournalError: Another one measures it.
        """
        self._lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JournalError(f"{self.folder} is being measured by another session; wait until it has ended") from None
        if self._reopened:
            self._write()

    def unlock(self) -> None:
        """Let them, before this process ends."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def serve(self, engine: str, model: str) -> None:
        """Say what the batch is measured on.

        :raises JournalError: Something else than it was begun on.
        """
        if self.served is None:
            self.served = engine, model
            self._write()
        # Who started a server is no part of what it is: one that was launched may be found running by a resumed run.
        elif (self.served[0] == "reference", self.served[1]) != (engine == "reference", model):
            raise JournalError(
                f"{self.folder} was begun on {' / '.join(self.served)} (engine / model), "
                f"now {engine} / {model} serves; a batch is of one"
            )

    def add(self, conc: int, tests: tuple[str, ...]) -> None:
        """Add a point that only a test of the user's own asked for."""
        if all(state.conc != conc for state in self.batch.points):
            known = {state.conc: state.tests for state in self.batch.points}
            self.select({**known, conc: tests})

    def start(self, conc: int) -> None:
        self._set(self.batch.point(conc).started_at(self._now()))

    def end(self, conc: int, status: Status, reason: str = "", *, lost: bool = False) -> None:
        """Say how a point ended.

        :param lost: The server was gone: a resumed run measures it again.
        """
        self._set(self.batch.point(conc).ended(status, self._now(), reason, lost=lost))

    def note(self, line: str, instead_of: str = "") -> None:
        """Add a line after the summary's last ruler, once; in the place of the one that begins with `instead_of`."""
        self.batch = self.batch.with_note(line, instead_of)
        self._write()

    def discard_if_empty(self) -> bool:
        """Remove the folder of a batch to which no point was selected."""
        if self.batch.points:
            return False
        for name in (STATE_NAME, SUMMARY_NAME):
            (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()
        return True

    def _set(self, state: PointState) -> None:
        self.batch = self.batch.with_point(state)
        self._write()

    def _write(self) -> None:
        state = {"schema_version": SCHEMA_VERSION, "options": dict(self.options), "batch": self.batch.to_fields()}
        if self.served is not None:
            state["engine"], state["model"] = self.served
        # The state first: it is what a resumed run believes.
        write_atomically(self.folder / STATE_NAME, json.dumps(state, indent=1, ensure_ascii=False) + "\n")
        write_atomically(self.folder / SUMMARY_NAME, render_summary(self.batch))
