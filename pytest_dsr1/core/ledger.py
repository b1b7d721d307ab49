"""From the reports of tests to the states of points.

A point has several tests, and a user's own test may measure several points.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pytest_dsr1.core.config import Point
from pytest_dsr1.core.summary import Status


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
    :param when: setup, call or teardown; anything else for the one report of a test whose worker crashed.
    :param reason: Why it did not pass, in one line.
    :param gated: Whether it was skipped because the accuracy is outside the gate, which fails the point.
    :param lost: Whether it failed because the server was gone: the point was not measured.
    """

    nodeid: str
    outcome: str
    when: str
    reason: str = ""
    gated: bool = False
    lost: bool = False

    @property
    def final(self) -> bool:
        """Whether no other phase of the test follows."""
        return self.when not in ("setup", "call")

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
            elif report.when == "call" or report.outcome == "skipped":
                account.outcomes[report.nodeid] = report.outcome
            # A set-up that passed says nothing yet; a test without a call, as under --setup-only, has measured nothing.
            elif report.final and not account.outcomes[report.nodeid]:
                account.outcomes[report.nodeid] = "skipped"
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
