"""From the reports of tests to the states of points.

A point has several tests, and a test of a user's own may measure several points. The ledger knows which test belongs to
which points, takes the reports in the order in which they come, and says what each point has become.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

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
    """One point: the outcome of each of its tests, empty until it is known, and its first failure."""

    outcomes: dict[str, str]
    tests: dict[str, None]
    failure: PointReport | None = None
    lost: bool = False
    started: bool = False
    ended: bool = False


class Ledger:
    """The selected tests of a session, and what has become of their points."""

    def __init__(self) -> None:
        self._accounts: dict[Point, _Account] = {}
        self._points: dict[str, list[Point]] = {}

    def select(self, tests: Iterable[PointTest]) -> None:
        """Add tests, before or during the session."""
        for test in tests:
            account = self._accounts.setdefault(test.point, _Account({}, {}))
            account.outcomes.setdefault(test.nodeid, "")
            account.tests[test.name] = None
            account.ended = False
            points = self._points.setdefault(test.nodeid, [])
            if test.point not in points:
                points.append(test.point)

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
        return any(account.failure is not None for account in self._accounts.values())

    def start(self, nodeid: str) -> tuple[Point, ...]:
        """The points whose first test this is."""
        found = tuple(point for point in self._points.get(nodeid, ()) if not self._accounts[point].started)
        for point in found:
            self._accounts[point].started = True
        return found

    def take(self, report: PointReport) -> tuple[PointEnd, ...]:
        """The points that end with this report."""
        ends = []
        for point in self._points.get(report.nodeid, ()):
            account = self._accounts[point]
            before = account.outcomes[report.nodeid]
            if report.failed:
                account.outcomes[report.nodeid] = "failed"
                account.failure = account.failure or report
                account.lost = account.lost or report.lost
            elif report.when == "call" or report.outcome == "skipped":
                account.outcomes[report.nodeid] = report.outcome
            # A set-up that passed says nothing yet; a test without a call, as under --setup-only, has measured nothing.
            elif report.final and not before:
                account.outcomes[report.nodeid] = "skipped"
            if report.final and all(account.outcomes.values()):
                account.ended = True
                ends.append(self._end(point))
        return tuple(ends)

    def close(self, *, interrupted: bool) -> tuple[PointEnd, ...]:
        """The points that were begun and did not end.

        :param interrupted: Whether somebody stopped the session: what had failed by then is measured again, too.
        """
        left = [point for point, account in self._accounts.items() if account.started and not account.ended]
        return tuple(
            PointEnd(point, Status.INTERRUPTED)
            if interrupted or self._accounts[point].failure is None
            else self._end(point)
            for point in left
        )

    def _end(self, point: Point) -> PointEnd:
        account = self._accounts[point]
        if account.failure is not None:
            return PointEnd(point, Status.FAILED, account.failure.reason, account.lost)
        # Where every test was skipped nothing was measured, so nothing passed.
        return PointEnd(point, Status.PASSED if "passed" in account.outcomes.values() else Status.NOT_RUN)
