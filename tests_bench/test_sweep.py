"""The sweep, point by point: is it still the model, and how fast is it served?

`pytest --isl 1024 --osl 1024` runs both tests at CONC = 4, 8, 16, 32 and 64; `-k conc16` runs them at one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_dsr1.core.record import AccuracyRecord
    from pytest_dsr1.fixtures import Load, Record


def test_accuracy(accuracy: AccuracyRecord) -> None:
    """The served model's perplexity lies within 3 % of its baseline, on either side."""
    assert accuracy.passed, accuracy.reason


def test_perf(accurate: AccuracyRecord, load: Load, record: Record) -> None:
    """With exactly CONC requests in flight each is answered in full, and the figures can be true."""
    result = record(load())
    assert result.passed, result.reason
