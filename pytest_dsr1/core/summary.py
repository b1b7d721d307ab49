"""From the reports of tests to the states of points, and to summary.txt.

A point has several tests, and a test of a user's own may measure several points.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from pytest_dsr1.core.config import Mode, Point, Scenario
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


@dataclass(frozen=True, slots=True)
class PointTest:
    """A test of a point.

    :param nodeid: The test's id, a mere key: nothing is read from it.
    :param name: The name of its function, which a resumed run selects by.
    """

    nodeid: str
    point: Point
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PointReport:
    """What one phase of a test says of its points.

    :param outcome: passed, failed or skipped.
    :param final: Whether no other phase of the test follows.
    :param reason: Why it did not pass, in one line.
    :param gated: Whether it was skipped because the accuracy is outside the gate, which fails the point.
    :param lost: Whether it failed because the server was gone: the point was not measured.
    """

    nodeid: str
    outcome: str
    final: bool
    reason: str = ""
    gated: bool = False
    lost: bool = False

    @property
    def failed(self) -> bool:
        """Whether it fails its points."""
        return self.gated or self.outcome == "failed"


@dataclass(frozen=True, slots=True)
class PointEnd:
    """What has become of a point."""

    point: Point
    status: Status
    reason: str = ""
    lost: bool = False


@dataclass(slots=True)
class _Account:
    """One point: names of its tests, outcomes by test id, and what failed."""

    tests: dict[str, None] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)
    failures: list[PointReport] = field(default_factory=list)
    started: bool = False
    ended: bool = False

    def end_of(self, point: Point) -> PointEnd:
        if self.failures:
            return PointEnd(point, Status.FAILED, self.failures[0].reason, any(report.lost for report in self.failures))
        # Where every test was skipped nothing was measured, so nothing passed.
        return PointEnd(point, Status.PASSED if "passed" in self.outcomes.values() else Status.NOT_RUN)


class Ledger:
    """The selected tests of a session, and what has become of their points.

    It knows which test belongs to which points, and takes the reports in the order in which they come.
    """

    def __init__(self) -> None:
        self._accounts: dict[Point, _Account] = {}

    def select(self, tests: Iterable[PointTest]) -> None:
        """Add tests, before or during the session."""
        for test in tests:
            account = self._accounts.setdefault(test.point, _Account())
            account.outcomes.setdefault(test.nodeid, "")
            account.tests[test.name] = None
            account.ended = False

    @property
    def points(self) -> tuple[Point, ...]:
        """The points that have tests, in the order of their first tests."""
        return tuple(self._accounts)

    def tests_of(self, point: Point) -> tuple[str, ...]:
        """The names of a point's tests; none for a point without."""
        return tuple(self._accounts[point].tests) if point in self._accounts else ()

    @property
    def any_failed(self) -> bool:
        """Whether a point failed."""
        return any(account.failures for account in self._accounts.values())

    def start(self, nodeid: str) -> tuple[Point, ...]:
        """The points whose first test this is."""
        found = [(point, account) for point, account in self._of(nodeid) if not account.started]
        for _, account in found:
            account.started = True
        return tuple(point for point, _ in found)

    def take(self, report: PointReport) -> tuple[PointEnd, ...]:
        """The points that end with this report."""
        ends = []
        for point, account in self._of(report.nodeid):
            if report.failed:
                account.outcomes[report.nodeid] = "failed"
                account.failures.append(report)
            # A set-up that passed says nothing yet; a teardown that passed changes nothing.
            elif report.outcome == "skipped" or not account.outcomes[report.nodeid]:
                account.outcomes[report.nodeid] = report.outcome
            if report.final and all(account.outcomes.values()):
                account.ended = True
                ends.append(account.end_of(point))
        return tuple(ends)

    def close(self, *, interrupted: bool) -> tuple[PointEnd, ...]:
        """The points that were begun and did not end.

        :param interrupted: Whether somebody stopped the session: what had failed by then is measured again, too.
        """
        return tuple(
            PointEnd(point, Status.INTERRUPTED) if interrupted or not account.failures else account.end_of(point)
            for point, account in self._accounts.items()
            if account.started and not account.ended
        )

    def _of(self, nodeid: str) -> list[tuple[Point, _Account]]:
        return [(point, account) for point, account in self._accounts.items() if nodeid in account.outcomes]
