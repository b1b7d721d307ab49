"""The sweep, point by point: is it still the model, and how fast is it served?

`pytest --isl 1024 --osl 1024` runs both tests at CONC = 4, 8, 16, 32 and 64; `-k conc16` runs them at one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_dsr1.bench import Visit
    from pytest_dsr1.core.config import Point
    from pytest_dsr1.core.record import AccuracyRecord
    from pytest_dsr1.core.result import Result
    from pytest_dsr1.core.server import Served
    from pytest_dsr1.fixtures import Measurements


def test_accuracy(accuracy: AccuracyRecord) -> None:
    """The served model's perplexity lies within 3 % of its baseline, on either side."""
    assert accuracy.passed, accuracy.reason


def test_perf(accurate: AccuracyRecord, load: Callable[[], Visit], record: Callable[[Visit], Result]) -> None:
    """With CONC requests in flight all answers are complete, and all checks pass."""
    result = record(load())
    assert result.passed, result.reason


# Fixtures of this module only: in your project these names are yours.


@pytest.fixture(scope="session", name="server")
def _server(dsr1_server: Served) -> Served:
    """The server that is measured."""
    return dsr1_server


@pytest.fixture(name="accuracy")
def _accuracy(dsr1_point: Point, dsr1_measurements: Measurements) -> AccuracyRecord:
    """The verdict of the accuracy gate at this point; measured once."""
    return dsr1_measurements.accuracy_or_skip()


@pytest.fixture(name="accurate")
def _accurate(dsr1_point: Point, dsr1_measurements: Measurements) -> AccuracyRecord:
    """The same; skips the test where the accuracy is outside the gate."""
    return dsr1_measurements.accuracy_or_gated()


@pytest.fixture(name="load")
def _load(dsr1_measurements: Measurements) -> Callable[[], Visit]:
    """Call it to measure this point under load."""
    return dsr1_measurements.measure


@pytest.fixture(name="record")
def _record(dsr1_measurements: Measurements) -> Callable[[Visit], Result]:
    """Call it with what was measured, to write the result."""
    return dsr1_measurements.record
