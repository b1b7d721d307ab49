"""Whatever a file holds, figures are read from it without trust and without an exception."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dsr1.core.baselines import B200Row, B200Table
from pytest_dsr1.core.checks import check_result
from pytest_dsr1.core.evidence import FIGURES, Evidence, Reading
from tests.simulated_runs import closed_loop, put, result_of, with_changes

ROW = B200Row(isl=8, osl=6, conc=4, median_e2e_ms=137, median_interactivity=83.567, tput_per_gpu=34.564, remark="")
TABLE = B200Table(name="t", source="t", gpus=8, range_ratio=0.8, remark="-", rows=(ROW,))
RESULT = result_of(closed_loop(concurrency=4, num_prompts=40, length=lambda index: 6), isl=8, osl=6, row=ROW)


class TestReading:
    """A printed figure stands for all values that print alike."""

    @pytest.mark.parametrize(
        ("value", "half_a_unit"), [(3.97, 0.005), (805.3, 0.05), (2000.0, 0.05), (14, 0.5), (1e-7, 5e-8), (1e22, 5e21)]
    )
    def test_half_a_unit_of_the_last_digit(self, value: float, half_a_unit: float) -> None:
        """Digits are counted as Python prints them back."""
        reading = Reading.printed(value)
        assert (reading.high - reading.low) / 2 == pytest.approx(half_a_unit)

    @given(st.floats(0.01, 1e6), st.floats(0.01, 1e6), st.integers(2, 8))
    def test_a_rounded_quotient_agrees(self, numerator: float, denominator: float, digits: int) -> None:
        """Whatever was rounded, the true relation still holds."""
        rounded = [Reading.printed(round(value, digits)) for value in (numerator, denominator, numerator / denominator)]
        if rounded[1].low > 0:
            assert rounded[2].agrees(rounded[0] / rounded[1])


@pytest.mark.parametrize(("value", "number"), [(3, 3.0), (0, 0.0), (-1, None), ("3", None), (math.nan, None)])
def test_a_check_from_outside_reads_any_path(value: object, number: float | None) -> None:
    """A path that no built-in check reads holds a finite number from 0, or nothing."""
    assert Evidence({"mine": {"count": value}}).number("mine.count") == number
    assert Evidence({}).number("mine.count") is None


KEYS = sorted({part for path in FIGURES for part in path.split(".")} | {"client", "requests", "outcomes", "ok"})
SCALARS = (
    st.none() | st.booleans() | st.floats() | st.text(max_size=4) | st.sampled_from([10**400, -(10**400), 10**300])
)
GARBAGE = st.recursive(
    SCALARS | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*KEYS, "schema_version", "aborted", "num_gpus_source"]), inner, max_size=6)
    ),
    max_leaves=12,
)


class TestGarbage:
    """A file may hold anything; findings are all that comes of it."""

    @given(GARBAGE)
    def test_anything_in_findings_out(self, garbage: Any) -> None:
        """No value of JSON makes a check raise."""
        for finding in check_result(garbage, None, TABLE):
            assert finding.message
            assert "\n" not in finding.message

    @given(
        st.lists(
            st.tuples(
                st.sampled_from([*FIGURES, "server.num_gpus_source", "client.requests.outcomes.ok", "client.aborted"]),
                GARBAGE,
            ),
            min_size=1,
            max_size=4,
        ),
        st.booleans(),
    )
    def test_a_true_result_with_garbage_in_it(self, pieces: list[tuple[str, Any]], ours: bool) -> None:
        """Nor does garbage among good figures, which reaches the arithmetic."""
        result = with_changes(RESULT, *(put(path, garbage) for path, garbage in pieces))
        if not ours:
            del result["schema_version"]
        check_result(result, None, TABLE)

    def test_depth_has_no_limit(self) -> None:
        """A deeply nested file is no recursion error."""
        nested: Any = math.nan
        for _ in range(100_000):
            nested = [nested]
        assert [one.check for one in check_result({"deep": nested})] == ["h1"]

    @pytest.mark.parametrize("path", [*FIGURES, "client.requests.outcomes.ok", "client.aborted"])
    def test_size_has_no_limit(self, path: str) -> None:
        """Nor is an integer too long to be printed, which Python refuses to."""
        for huge in (10**5000, [10**5000]):
            assert {one.check for one in check_result(with_changes(RESULT, put(path, huge)))} >= {"h1"}

    def test_a_result_is_an_object(self) -> None:
        """Anything else is one finding."""
        assert [one.check for one in check_result([])] == ["h1"]
