"""What became of each point of a batch, and summary.txt as its reader sees it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from pytest_dsr1.core.config import Mode, Scenario
from pytest_dsr1.core.text import one_line

_RULER = "=" * 44


class Status(StrEnum):
    """Where a point stands; the words of summary.txt."""

    NOT_RUN = "NOT RUN"
    STARTED = "STARTED"
    PASSED = "PASSED"
    FAILED = "FAILED"
    INTERRUPTED = "INTERRUPTED"

    @property
    def finished(self) -> bool:
        """Whether something became of it."""
        return self in (Status.PASSED, Status.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class PointState:
    """One line of the summary.

    :param tests: Names of the selected tests, which a resumed run selects again.
    :param started: Epoch seconds of the first set-up; None before it.
    :param elapsed_s: From first set-up to last teardown; None before its end.
    :param reason: Why it failed, in one line.
    :param lost: Whether it failed because the server was gone, so that it was not measured.
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
        """Whether a resumed run leaves it alone."""
        return self.status.finished and not self.lost

    def started_at(self, now: float) -> PointState:
        return replace(self, status=Status.STARTED, started=now, elapsed_s=None, reason="", lost=False)

    def ended(self, status: Status, now: float, reason: str = "", *, lost: bool = False) -> PointState:
        elapsed_s = max(0.0, now - self.started) if self.started is not None else 0.0
        return replace(self, status=status, elapsed_s=elapsed_s, reason=one_line(reason), lost=lost)

    @property
    def words(self) -> str:
        """What stands behind the colon."""
        if self.status is Status.NOT_RUN:
            return "NOT RUN"
        if self.status is Status.STARTED:
            return f"STARTED {time.strftime('%H:%M:%S', time.localtime(self.started))}"
        words = f"{self.status} ({self.elapsed_s or 0.0:.0f}s)"
        return f"{words} {self.reason}" if self.status is Status.FAILED and self.reason else words


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One scenario's part of a sweep: everything that summary.txt says.

    :param folder: Name of the batch folder.
    :param started: Epoch seconds of the first start, which a resumed run keeps.
    :param points: In sweep order.
    :param notes: What other parts have to say, one line each.
    """

    scenario: Scenario
    mode: Mode
    folder: str
    started: float
    points: tuple[PointState, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def point(self, conc: int) -> PointState:
        return next(state for state in self.points if state.conc == conc)

    def with_point(self, state: PointState) -> Batch:
        return replace(self, points=tuple(state if old.conc == state.conc else old for old in self.points))

    def with_note(self, note: str, instead_of: str = "") -> Batch:
        """Add a note, once.

        :param instead_of: How a note begins whose place it takes.
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

    def to_fields(self) -> dict[str, Any]:
        """The JSON that `from_fields` reads."""
        return {
            "isl": self.scenario.isl,
            "osl": self.scenario.osl,
            "mode": str(self.mode),
            "started": self.started,
            "points": [
                {
                    "conc": state.conc,
                    "tests": list(state.tests),
                    "status": str(state.status),
                    "started": state.started,
                    "elapsed_s": state.elapsed_s,
                    "reason": state.reason,
                    "lost": state.lost,
                }
                for state in self.points
            ],
            "notes": list(self.notes),
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any], folder: str) -> Batch:
        """:raises KeyError, ValueError, TypeError: The fields are not those of a batch."""
        return cls(
            scenario=Scenario(int(fields["isl"]), int(fields["osl"])),
            mode=Mode(fields["mode"]),
            folder=folder,
            started=float(fields["started"]),
            points=tuple(
                PointState(
                    conc=int(point["conc"]),
                    tests=tuple(point["tests"]),
                    status=Status(point["status"]),
                    started=point["started"],
                    elapsed_s=point["elapsed_s"],
                    reason=point["reason"],
                    lost=bool(point.get("lost", False)),
                )
                for point in fields["points"]
            ),
            notes=tuple(fields["notes"]),
        )


def render_summary(batch: Batch) -> str:
    """The text of summary.txt, right for whatever has happened so far."""
    isl, osl, total = batch.scenario.isl, batch.scenario.osl, len(batch.points)
    return "\n".join(
        [
            "Multi-Concurrency Test Results",
            f"ISL: {isl}, OSL: {osl}",
            f"Mode: {batch.mode}",
            f"Time: {time.ctime(batch.started)}",
            _RULER,
            "",
            *(
                f"[{place}/{total}] ISL={isl} OSL={osl} CONC={state.conc}: {state.words}"
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
            f"Results saved in: {batch.folder}/",
            _RULER,
            *batch.notes,
            "",
        ]
    )
