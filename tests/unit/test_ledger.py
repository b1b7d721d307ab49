"""From the reports of tests to the states of points."""

from __future__ import annotations

import pytest

from pytest_dsr1.core.config import Point, Scenario
from pytest_dsr1.core.summary import Ledger, PointEnd, PointReport, PointTest, Status

FOUR, EIGHT = (Point(Scenario(8, 4), conc) for conc in (4, 8))


@pytest.fixture
def ledger() -> Ledger:
    """Two tests of one point, and one of the user's own that measures two points."""
    ledger = Ledger()
    ledger.select([PointTest("accuracy[4]", FOUR, "test_accuracy"), PointTest("perf[4]", FOUR, "test_perf")])
    ledger.select([PointTest("slo", FOUR, "test_slo"), PointTest("slo", EIGHT, "test_slo")])
    return ledger


def phases(ledger: Ledger, nodeid: str, *outcomes: str, reason: str = "", lost: bool = False) -> list[PointEnd]:
    """What ends with the reports of set-up, call and teardown."""
    ends: list[PointEnd] = []
    for place, outcome in enumerate(outcomes, start=1):
        final = place == len(outcomes)
        ends += ledger.take(PointReport(nodeid=nodeid, outcome=outcome, final=final, reason=reason, lost=lost))
    return ends


def test_points_and_the_names_of_their_tests(ledger: Ledger) -> None:
    """In the order of their first tests."""
    assert ledger.points == (FOUR, EIGHT)
    assert ledger.tests_of(FOUR) == ("test_accuracy", "test_perf", "test_slo")
    assert ledger.tests_of(Point(Scenario(8, 4), 16)) == ()


def test_a_point_starts_once(ledger: Ledger) -> None:
    """With the first of its tests."""
    assert ledger.start("perf[4]") == (FOUR,)
    assert ledger.start("slo") == (EIGHT,)
    assert ledger.start("a test of something else") == ()


def test_a_point_passes_with_its_last_test(ledger: Ledger) -> None:
    """A test that measures several points may end several."""
    assert phases(ledger, "accuracy[4]", "passed", "passed", "passed") == []
    assert phases(ledger, "perf[4]", "passed", "passed", "passed") == []
    assert phases(ledger, "slo", "passed", "passed", "passed") == [
        PointEnd(FOUR, Status.PASSED),
        PointEnd(EIGHT, Status.PASSED),
    ]
    assert not ledger.any_failed


def test_the_first_failure_is_the_reason(ledger: Ledger) -> None:
    """Whichever phase it was in, and whatever came later; a server that was lost once is remembered."""
    phases(ledger, "accuracy[4]", "passed", "failed", "passed", reason="first")
    phases(ledger, "perf[4]", "failed", "passed", reason="second", lost=True)
    assert phases(ledger, "slo", "passed", "passed", "passed") == [
        PointEnd(FOUR, Status.FAILED, "first", lost=True),
        PointEnd(EIGHT, Status.PASSED),
    ]
    assert ledger.any_failed


def test_a_test_that_the_gate_skipped_fails_its_points(ledger: Ledger) -> None:
    """Performance outside the gate is not measured, and the point has failed."""
    ledger.take(PointReport(nodeid="slo", outcome="skipped", final=False, reason="gate", gated=True))
    assert phases(ledger, "slo", "passed") == [PointEnd(EIGHT, Status.FAILED, "gate")]


def test_where_every_test_was_skipped_nothing_ran(ledger: Ledger) -> None:
    """A skip passes nothing."""
    assert phases(ledger, "slo", "passed", "skipped", "passed") == [PointEnd(EIGHT, Status.NOT_RUN)]


@pytest.mark.parametrize(("interrupted", "status"), [(False, Status.FAILED), (True, Status.INTERRUPTED)])
def test_what_is_left_at_the_end(ledger: Ledger, interrupted: bool, status: Status) -> None:
    """A point that had failed stays failed, unless somebody stopped the session; others are interrupted."""
    ledger.start("accuracy[4]")
    phases(ledger, "accuracy[4]", "passed", "failed", "passed", reason="why")
    ledger.start("slo")
    ends = {end.point: end.status for end in ledger.close(interrupted=interrupted)}
    assert ends == {FOUR: status, EIGHT: Status.INTERRUPTED}
