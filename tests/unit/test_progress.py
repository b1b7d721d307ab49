"""The words of the live line."""

from __future__ import annotations

import pytest

from pytest_dsr1.bench import describe
from pytest_dsr1.core.text import duration


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "0 s"), (59.4, "59 s"), (80, "1 min 20 s"), (7500, "2 h 5 min")])
def test_duration(seconds: float, words: str) -> None:
    """In the two largest units that matter."""
    assert duration(seconds) == words


def test_what_cannot_be_known_is_not_said() -> None:
    """No rate without time, no time left before the first request and after the last."""
    assert describe("warm-up", 0, 3200, 0.0, 0) == "warm-up: 0/3,200 requests"
    assert describe("measured", 800, 3200, 10.0, 102_400) == "measured: 800/3,200 requests, 10,240 tokens/s, 30 s left"
    assert describe("accuracy", 3200, 3200, 40.0) == "accuracy: 3,200/3,200 requests"
