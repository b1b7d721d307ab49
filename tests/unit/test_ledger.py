"""From the reports of tests to the states of points."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dsr1.core.config import Point, Scenario
from pytest_dsr1.core.ledger import Ledger, PointEnd, PointReport, PointTest
from pytest_dsr1.core.summary import Status

TWO, FOUR = Point(Scenario(8, 1), 2), Point(Scenario(8, 1), 4)
#: The two tests of one point.
ACCURACY, PERF = PointTest("accuracy[2]", TWO, "test_accuracy"), PointTest("perf[2]", TWO, "test_perf")


def ledger_of(*tests: PointTest) -> Ledger:
    ledger = Ledger()
    ledger.select(tests)
    return ledger


def reports(nodeid: str, *outcomes: str, gated: bool = False, lost: bool = False) -> list[PointReport]:
    """The reports of one test: of set-up, call and teardown, or of set-up and teardown."""
    phases = ("setup", "call", "teardown") if len(outcomes) == 3 else ("setup", "teardown")
    return [
        PointReport(
            nodeid=nodeid,
            outcome=outcome,
            when=phase,
            reason="" if outcome == "passed" else f"{nodeid} {phase} {outcome}",
            gated=gated and outcome == "skipped",
            lost=lost and outcome == "failed",
        )
        for phase, outcome in zip(phases, outcomes, strict=True)
    ]


def run(ledger: Ledger, said: Sequence[PointReport]) -> list[PointEnd]:
    ends: list[PointEnd] = []
    for report in said:
        ledger.start(report.nodeid)
        ends += ledger.take(report)
    return ends


PASSES = ("passed", "passed", "passed")


# -- selection --------------------------------------------------------------------------------------------------------


def test_points_and_tests_in_the_order_of_selection() -> None:
    """A point may have several tests, and a test several points."""
    both = [PointTest("scales", FOUR, "test_scales"), PointTest("scales", TWO, "test_scales")]
    ledger = ledger_of(ACCURACY, PERF, *both)
    assert ledger.points == (TWO, FOUR)
    assert ledger.tests_of(TWO) == ("test_accuracy", "test_perf", "test_scales")
    assert ledger.tests_of(FOUR) == ("test_scales",)
    assert ledger.tests_of(Point(Scenario(8, 1), 64)) == ()


def test_selected_twice_is_selected_once() -> None:
    """Each worker reports the same tests."""
    ledger = ledger_of(ACCURACY, PERF, ACCURACY, PERF)
    assert ledger.tests_of(TWO) == ("test_accuracy", "test_perf")
    assert run(ledger, [*reports("accuracy[2]", *PASSES), *reports("perf[2]", *PASSES)]) == [
        PointEnd(TWO, Status.PASSED)
    ]


def test_a_point_starts_with_its_first_test() -> None:
    """Once; a test that is of no point starts none."""
    ledger = ledger_of(ACCURACY, PERF)
    assert ledger.start("accuracy[2]") == (TWO,)
    assert ledger.start("perf[2]") == ()
    assert ledger.start("a stranger's") == ()


# -- what the reports make of a point ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accuracy", "perf", "status", "reason"),
    [
        (PASSES, PASSES, Status.PASSED, ""),
        (("skipped", "passed"), PASSES, Status.PASSED, ""),
        (("passed", "failed", "passed"), PASSES, Status.FAILED, "accuracy[2] call failed"),
        (PASSES, ("failed", "passed"), Status.FAILED, "perf[2] setup failed"),
        (PASSES, ("passed", "passed", "failed"), Status.FAILED, "perf[2] teardown failed"),
        (("passed", "failed", "failed"), ("failed", "passed"), Status.FAILED, "accuracy[2] call failed"),
        (("passed", "skipped", "passed"), ("skipped", "passed"), Status.NOT_RUN, ""),
        (("passed", "passed"), ("passed", "passed"), Status.NOT_RUN, ""),
    ],
    ids=["passed", "one skipped", "call", "set-up", "teardown", "first reason", "all skipped", "no call"],
)
def test_state_of_a_point(accuracy: tuple[str, ...], perf: tuple[str, ...], status: Status, reason: str) -> None:
    """Passed where a test passed and none failed; the first failure is its reason; without a call nothing passed."""
    ledger = ledger_of(ACCURACY, PERF)
    assert run(ledger, reports("accuracy[2]", *accuracy)) == []
    assert run(ledger, reports("perf[2]", *perf)) == [PointEnd(TWO, status, reason)]
    assert ledger.any_failed == (status is Status.FAILED)
    assert ledger.close(interrupted=False) == ()


def test_a_closed_gate_fails_its_point() -> None:
    """A test that the gate skipped is a failure with the gate's reason; any other skip is none."""
    ledger = ledger_of(PERF)
    (end,) = run(ledger, reports("perf[2]", "skipped", "passed", gated=True))
    assert end == PointEnd(TWO, Status.FAILED, "perf[2] setup skipped")
    assert ledger.any_failed


def test_a_lost_server() -> None:
    """The point has failed and was not measured."""
    (end,) = run(ledger_of(PERF), reports("perf[2]", "passed", "failed", "passed", lost=True))
    assert end == PointEnd(TWO, Status.FAILED, "perf[2] call failed", lost=True)


def test_a_worker_that_crashed() -> None:
    """The one report of its test, of no phase, is the last."""
    crashed = PointReport(nodeid="perf[2]", outcome="failed", when="???", reason="worker 'gw0' crashed")
    assert run(ledger_of(PERF), [crashed]) == [PointEnd(TWO, Status.FAILED, "worker 'gw0' crashed")]


def test_a_test_of_two_points_ends_both() -> None:
    """Where it failed, both have."""
    ledger = ledger_of(PointTest("scales", TWO, "test_scales"), PointTest("scales", FOUR, "test_scales"))
    assert ledger.start("scales") == (TWO, FOUR)
    ends = run(ledger, reports("scales", "passed", "failed", "passed"))
    assert [(end.point, end.status) for end in ends] == [(TWO, Status.FAILED), (FOUR, Status.FAILED)]


def test_a_test_that_joins_while_it_runs() -> None:
    """A user's own test names its points as it measures them."""
    ledger = Ledger()
    setup, call, teardown = reports("slo", *PASSES)
    assert ledger.take(setup) == ()
    ledger.select([PointTest("slo", FOUR, "test_slo")])
    assert ledger.start("slo") == (FOUR,)
    assert ledger.take(call) == ()
    assert ledger.take(teardown) == (PointEnd(FOUR, Status.PASSED),)


def test_a_point_that_had_ended_is_joined() -> None:
    """It ends again, with the later test's outcome beside the earlier ones."""
    ledger = ledger_of(PERF)
    assert run(ledger, reports("perf[2]", *PASSES)) == [PointEnd(TWO, Status.PASSED)]
    ledger.select([PointTest("slo", TWO, "test_slo")])
    assert run(ledger, reports("slo", "passed", "failed", "passed")) == [
        PointEnd(TWO, Status.FAILED, "slo call failed")
    ]


def test_reports_of_others_say_nothing() -> None:
    """A stranger's failed test fails no point."""
    ledger = ledger_of(PERF)
    assert run(ledger, reports("a stranger's", "passed", "failed", "passed")) == []
    assert not ledger.any_failed


# -- the end of the session -------------------------------------------------------------------------------------------


def test_interrupted_points_are_measured_again() -> None:
    """What was begun and did not end; what had not begun says nothing."""
    ledger = ledger_of(ACCURACY, PERF, PointTest("perf[4]", FOUR, "test_perf"))
    run(ledger, reports("accuracy[2]", "passed", "failed", "passed"))
    assert ledger.close(interrupted=True) == (PointEnd(TWO, Status.INTERRUPTED),)


def test_a_session_that_stopped_itself_keeps_failures() -> None:
    """After -x the point that failed has failed, though its second test was never run."""
    ledger = ledger_of(ACCURACY, PERF)
    run(ledger, reports("accuracy[2]", "passed", "failed", "passed"))
    assert ledger.close(interrupted=False) == (PointEnd(TWO, Status.FAILED, "accuracy[2] call failed"),)


def test_a_point_without_a_failure_was_interrupted() -> None:
    """One of its tests passed, the other was never run: it has no verdict."""
    ledger = ledger_of(ACCURACY, PERF)
    run(ledger, reports("accuracy[2]", *PASSES))
    assert ledger.close(interrupted=False) == (PointEnd(TWO, Status.INTERRUPTED),)


@given(st.lists(st.sampled_from([PASSES, ("skipped", "passed"), ("passed", "failed", "passed")]), min_size=1))
def test_a_point_ends_once_and_never_better_than_its_tests(outcomes: list[tuple[str, ...]]) -> None:
    """With its last test, whatever the order."""
    ledger = ledger_of(*(PointTest(str(number), TWO, f"test_{number}") for number in range(len(outcomes))))
    ends = run(ledger, [report for number, said in enumerate(outcomes) for report in reports(str(number), *said)])
    assert len(ends) == 1
    called = [said[1] for said in outcomes if len(said) == 3]
    expected = Status.FAILED if "failed" in called else Status.PASSED if called else Status.NOT_RUN
    assert ends[0].status is expected
