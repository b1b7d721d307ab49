"""The batch folders of a session: state and summary, right after any crash.

`batch.json` is the state, `summary.txt` shows it. Both are replaced as a whole and flushed to the disk at each change.
A result is written before anything is said about it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from pytest_dsr1.batch import SUMMARY_NAME, read_result, write_atomically
from pytest_dsr1.core.config import Mode, Point, Scenario, SweepConfig
from pytest_dsr1.core.ledger import Ledger, PointEnd
from pytest_dsr1.core.server import Served
from pytest_dsr1.core.summary import Batch, PointState, Status, render_summary
from pytest_dsr1.core.text import convert, parse_json, shown

# Format history of batch.json:
# 1 - _State
SCHEMA_VERSION = 1
STATE_NAME = "batch.json"

Clock: TypeAlias = Callable[[], float]


class JournalError(ValueError):
    """A batch that cannot be resumed or measured; the message says why."""


class _State(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The content of batch.json; engine and model once a server has answered."""

    schema_version: int
    options: dict[str, Any]
    batch: Batch
    engine: str | None = None
    model: str | None = None


class Journal:
    """One batch folder being written; the only thing that changes its state."""

    def __init__(self, folder: Path, batch: Batch, options: Mapping[str, Any], now: Clock) -> None:
        self.folder = folder
        self.batch = batch
        self.options = options
        self._served: tuple[str, str] | None = None  # engine and model
        self._now = now
        self._lock: int | None = None

    @classmethod
    def create(
        cls, reports: Path, scenario: Scenario, mode: Mode, options: Mapping[str, Any], now: Clock = time.time
    ) -> Journal:
        """Begin a batch without points, in a folder of its own.

        :raises OSError: The folder cannot be made.
        """
        started = now()
        reports.mkdir(parents=True, exist_ok=True)
        stamp = time.strftime("%Y%m%d_%H%M%S", time.localtime(started))
        name = f"batch_isl{scenario.isl}_osl{scenario.osl}_{stamp}"
        for number in count(1):
            folder = reports / (name if number == 1 else f"{name}_{number}")
            with suppress(FileExistsError):
                folder.mkdir()
                break
        return cls(folder, Batch(isl=scenario.isl, osl=scenario.osl, mode=mode, started=started), options, now)

    @classmethod
    def reopen(cls, folder: Path, now: Clock = time.time) -> Journal:
        """Go on with an interrupted batch; what was measured completely counts.

        :raises JournalError: It is no batch folder.
        """
        try:
            document = parse_json((folder / STATE_NAME).read_text(encoding="utf-8"), STATE_NAME)
            version = document.get("schema_version") if isinstance(document, dict) else None
            if version is not None and version != SCHEMA_VERSION:
                raise ValueError(f"it has schema version {shown(version)}, this version reads {SCHEMA_VERSION}")
            state = convert(document, _State, STATE_NAME)
        except OSError as error:
            raise JournalError(f"{folder} is no batch folder: {STATE_NAME} cannot be read ({error.strerror})") from None
        except ValueError as error:
            raise JournalError(f"{folder} cannot be resumed: {error}") from None
        journal = cls(folder, state.batch, state.options, now)
        if state.engine and state.model:
            journal._served = state.engine, state.model
        # A result counts, too, that was written when the state did not say so yet.
        for point in state.batch.points:
            began = point.started if point.status in (Status.STARTED, Status.INTERRUPTED) else None
            result = None if began is None else read_result(folder, Point(state.batch.scenario, point.conc))
            # An earlier result is the one that this start of the point was to replace.
            if result is not None and result.status is not None and began is not None and result.written >= began:
                ended = point.ended(Status(result.status), result.written, result.reason)
                journal.batch = journal.batch.with_point(ended)
        return journal

    def select(self, tests: Mapping[int, tuple[str, ...]]) -> None:
        """Set the points of the batch, in sweep order: CONC to the names of its tests.

        Points that are there already keep their state; one that is left out is forgotten.
        """
        known = {state.conc: state for state in self.batch.points}
        points = tuple(known.get(conc, PointState(conc=conc, tests=names)) for conc, names in tests.items())
        self.batch = replace(self.batch, points=points)
        self._write()
        partial = self.folder.parent / ".latest.partial"
        # A convenience: a file system without links, or a file of that name, is no reason to stop.
        with suppress(OSError):
            if tests:
                partial.unlink(missing_ok=True)
                partial.symlink_to(self.folder.name)
                partial.replace(self.folder.parent / "latest")

    def lock(self) -> None:
        """Keep other sessions from resuming this batch, until `unlock`.

        Writes the state: a crash may have come between a result, the state and the summary.

        :raises JournalError: Another session measures it.
        """
        self._lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JournalError(f"{self.folder} is being measured by another session; wait until it has ended") from None
        self._write()

    def unlock(self) -> None:
        """Let other sessions resume the batch before this process ends."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def serve(self, engine: str, model: str) -> None:
        """Keep what the batch is measured on.

        :raises JournalError: It was begun on another engine or model.
        """
        if self._served is None:
            self._served = engine, model
            self._write()
        # Who started a server does not matter: one that was launched may be found running by a resumed run.
        elif (self._served[0] == "reference", self._served[1]) != (engine == "reference", model):
            raise JournalError(
                f"{self.folder} was begun on {' / '.join(self._served)} (engine / model), "
                f"now {engine} / {model} serves; all points of a batch are measured on one model"
            )

    def start(self, conc: int) -> None:
        """Say that a point is being measured."""
        self._set(self.batch.point(conc).started_at(self._now()))

    def end(self, conc: int, status: Status, reason: str = "", *, lost: bool = False) -> None:
        """Say how a point ended.

        :param lost: The server was gone: a resumed run measures it again.
        """
        self._set(self.batch.point(conc).ended(status, self._now(), reason, lost=lost))

    def note(self, line: str, instead_of: str = "") -> None:
        """Add a line at the end of the summary; see `Batch.with_note`."""
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
        engine, model = self._served or (None, None)
        state = _State(
            schema_version=SCHEMA_VERSION, options=dict(self.options), batch=self.batch, engine=engine, model=model
        )
        # The state first: it is what a resumed run believes.
        write_atomically(self.folder / STATE_NAME, msgspec.json.format(msgspec.json.encode(state), indent=1) + b"\n")
        write_atomically(self.folder / SUMMARY_NAME, render_summary(self.batch, self.folder.name))


class Batches:
    """The journals of one session, one for each pair of lengths.

    :param texts: The options of a scenario's batch, as a resumed run needs them.
    :param resumed: The batches that are completed; none: new ones are made.
    """

    def __init__(
        self, config: SweepConfig, texts: Callable[[Scenario], Mapping[str, Any]], resumed: Sequence[Journal]
    ) -> None:
        self._config = config
        self._texts = texts
        self._journals = {journal.batch.scenario: journal for journal in resumed}
        self._served: Served | None = None

    def __iter__(self) -> Iterator[Journal]:
        return iter(self._journals.values())

    @property
    def folders(self) -> dict[Scenario, Path]:
        """The folder of each scenario."""
        return {scenario: journal.folder for scenario, journal in self._journals.items()}

    def folder_of(self, point: Point) -> Path:
        """The folder of a point's batch."""
        return self._journals[point.scenario].folder

    def open(self) -> None:
        """Lock the batches that are resumed, or make new ones.

        :raises JournalError: Another session measures one.
        :raises OSError: A folder cannot be made.
        """
        for journal in self:
            journal.lock()
        for scenario in self._config.scenarios:
            self.of(scenario)

    def of(self, scenario: Scenario) -> Journal:
        """The journal of a scenario, made where there is none.

        :raises OSError: Its folder cannot be made.
        """
        if scenario not in self._journals:
            config = self._config
            journal = Journal.create(config.reports_dir, scenario, config.mode, self._texts(scenario))
            journal.lock()
            if not config.accuracy:
                journal.note("accuracy off: it was not checked that the server serves this model")
            if self._served is not None:
                journal.serve(self._served.engine, self._served.model)
            self._journals[scenario] = journal
        return self._journals[scenario]

    def serve(self, served: Served) -> None:
        """Keep with every batch what it is measured on.

        :raises JournalError: A resumed batch was begun on another engine or model.
        """
        self._served = served
        for journal in self:
            journal.serve(served.engine, served.model)

    def select(self, ledger: Ledger) -> None:
        """Put the points that have tests into the batches; known ones keep theirs."""
        points = dict.fromkeys((*self._config.points, *ledger.points))
        for scenario in {point.scenario: None for point in ledger.points}:
            self.of(scenario)
        for scenario, journal in self._journals.items():
            kept = {state.conc: state.tests for state in journal.batch.points}
            tests = {p.conc: kept.get(p.conc) or ledger.tests_of(p) for p in points if p.scenario == scenario}
            journal.select({conc: names for conc, names in tests.items() if names})

    def start(self, points: Iterable[Point]) -> None:
        """Say that points are being measured."""
        for point in points:
            self._journals[point.scenario].start(point.conc)

    def end(self, end: PointEnd) -> Journal:
        """Say what has become of a point."""
        journal = self._journals[end.point.scenario]
        journal.end(end.point.conc, end.status, end.reason, lost=end.lost)
        return journal

    def discard_empty(self) -> None:
        """Remove the folders to which no point was selected."""
        self._journals = {
            scenario: journal for scenario, journal in self._journals.items() if not journal.discard_if_empty()
        }

    def close(self) -> None:
        """Let other sessions resume the batches; remove those without points."""
        self.discard_empty()
        for journal in self:
            journal.unlock()

    @property
    def any_failed(self) -> bool:
        """Whether a point failed, in this session or before it was resumed."""
        return any(journal.batch.count(Status.FAILED) for journal in self)
