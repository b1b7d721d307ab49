"""End-to-end latencies become one pytest-benchmark row, through its public interface alone.

pytest-benchmark has no call that takes samples (ionelmc/pytest-benchmark#52), but any callable may be its timer: one
that plays the samples back. It never times the load generator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from pytest_dsr1.core.samples import LoadRun


class ReplayClock:
    """A timer that moves by the next duration whenever it is told to."""

    #: Shown as the timer in pytest-benchmark's JSON.
    __name__ = "replay"

    def __init__(self, durations_s: Sequence[float]) -> None:
        self._now_s = 0.0
        self._durations_s: Iterator[float] = iter(durations_s)

    def __call__(self) -> float:
        return self._now_s

    def rewind(self) -> None:
        """Back to zero, so that no sum of floats rounds the next duration."""
        self._now_s = 0.0

    def play(self) -> None:
        self._now_s = next(self._durations_s, 0.0)


def record_benchmark_row(request: pytest.FixtureRequest, run: LoadRun, figures: Mapping[str, float]) -> None:
    """Hand the run's E2E latencies to pytest-benchmark, where it is there; a plain call where it is disabled."""
    durations_s = [(sample.last_ns - sample.sent_ns) / 1e9 for sample in run.completed if sample.last_ns is not None]
    if not durations_s or not request.config.pluginmanager.hasplugin("benchmark"):
        return
    clock = ReplayClock(durations_s)
    # The benchmark fixture reads its timer from this marker, so it must not have been made before.
    request.node.add_marker(pytest.mark.benchmark(timer=clock))
    benchmark: Any = request.getfixturevalue("benchmark")
    benchmark.group = "e2e latency"
    benchmark.extra_info.update(figures)
    benchmark.pedantic(clock.play, setup=clock.rewind, rounds=len(durations_s))
