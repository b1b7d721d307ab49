"""From the reports of tests to the states of points, and to summary.txt.

A point has several tests, and a test of a user's own may measure several points.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from enum import StrEnum

from pytest_dsr1.core.config import Mode, Scenario
from pytest_dsr1.core.text import one_line

_RULER = "=" * 44


class Status(StrEnum):
    """The state of a point, in the words of summary.txt."""

    NOT_RUN = "NOT RUN"
    STARTED = "STARTED"
    PASSED = "PASSED"
    FAILED = "FAILED"
    INTERRUPTED = "INTERRUPTED"

    @property
    def finished(self) -> bool:
        """Whether the point has a verdict."""
        return self in (Status.PASSED, Status.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class PointState:
    """One point of the summary.

    :param tests: Names of the selected tests; a resumed run selects them again.
    :param started: Epoch seconds of the first test's setup; None before it.
    :param elapsed_s: Seconds from the first setup to the last teardown; None before its end.
    :param reason: Why it failed, in one line.
    :param lost: Whether it failed because the server ended, so that the point was not measured.
    """

    conc: int
    tests: tuple[str, ...] = ()
    status: Status = Status.NOT_RUN
    started: float | None = None
    elapsed_s: float | None = None
    reason: str = ""
    lost: bool = False

    @property
    def finished(self) -> bool:
        """Whether a resumed run does not measure it again."""
        return self.status.finished and not self.lost

    def started_at(self, now: float) -> PointState:
        return replace(self, status=Status.STARTED, started=now, elapsed_s=None, reason="", lost=False)

    def ended(self, status: Status, now: float, reason: str = "", *, lost: bool = False) -> PointState:
        elapsed_s = max(0.0, now - self.started) if self.started is not None else 0.0
        return replace(self, status=status, elapsed_s=elapsed_s, reason=one_line(reason), lost=lost)

    @property
    def words(self) -> str:
        """The state as summary.txt shows it after the colon."""
        if self.status is Status.NOT_RUN:
            return "NOT RUN"
        if self.status is Status.STARTED:
            return f"STARTED {time.strftime('%H:%M:%S', time.localtime(self.started))}"
        words = f"{self.status} ({self.elapsed_s or 0.0:.0f}s)"
        return f"{words} {self.reason}" if self.status is Status.FAILED and self.reason else words


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One scenario's part of a sweep: what summary.txt shows, as batch.json holds it.

    :param started: Epoch seconds of the first start; a resumed run keeps it.
    :param points: In sweep order.
    :param notes: Further messages for the reader, one line each.
    """

    isl: int
    osl: int
    mode: Mode
    started: float
    points: tuple[PointState, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        Scenario(self.isl, self.osl)  # refuses lengths below 1

    @property
    def scenario(self) -> Scenario:
        return Scenario(self.isl, self.osl)

    def point(self, conc: int) -> PointState:
        return next(state for state in self.points if state.conc == conc)

    def with_point(self, state: PointState) -> Batch:
        return replace(self, points=tuple(state if old.conc == state.conc else old for old in self.points))

    def with_note(self, note: str, instead_of: str = "") -> Batch:
        """Add a note, unless there is the same one already.

        :param instead_of: The first characters of an older note, which this one replaces.
        """
        line, notes = one_line(note), self.notes
        if old := next((other for other in notes if instead_of and other.startswith(instead_of)), None):
            return replace(self, notes=tuple(line if other == old else other for other in notes))
        return self if line in notes else replace(self, notes=(*notes, line))

    @property
    def complete(self) -> bool:
        return all(state.status.finished for state in self.points)

    def count(self, status: Status) -> int:
        return sum(state.status is status for state in self.points)


def render_summary(batch: Batch, folder: str) -> str:
    """The text of summary.txt for the present state, complete or not.

    :param folder: Name of the batch folder.
    """
    total = len(batch.points)
    return "\n".join(
        [
            "Multi-Concurrency Test Results",
            f"ISL: {batch.isl}, OSL: {batch.osl}",
            f"Mode: {batch.mode}",
            f"Time: {time.ctime(batch.started)}",
            _RULER,
            "",
            *(
                f"[{place}/{total}] ISL={batch.isl} OSL={batch.osl} CONC={state.conc}: {state.words}"
                for place, state in enumerate(batch.points, start=1)
            ),
            "",
            _RULER,
            f"Multi-Concurrency Test {'Complete' if batch.complete else 'Incomplete'}!",
            _RULER,
            f"Total tests: {total}",
            f"Passed: {batch.count(Status.PASSED)}",
            f"Failed: {batch.count(Status.FAILED)}",
            "",
            f"Results saved in: {folder}/",
            _RULER,
            *batch.notes,
            "",
        ]
    )
