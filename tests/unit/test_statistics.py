"""Figures are what their definitions say, on runs small enough to be worked out by hand."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dsr1.core.samples import Distribution, Outcome, Performance, RequestSample, summarize
from tests.simulated_runs import MS, START_NS, closed_loop, run_of, sample


def performance_of(*samples: RequestSample, concurrency: int = 1) -> Performance:
    """The figures of a run in which something completed."""
    performance = summarize(run_of(*samples, concurrency=concurrency))
    assert performance is not None
    return performance


class TestCountsAndRates:
    """Two requests on one slot: 100 ms to 200 ms and 250 ms to 600 ms."""

    run = run_of(
        sample(index=0, sent_ms=100, event_ms=(150, 200), isl=10),
        sample(index=1, sent_ms=250, event_ms=(400, 500, 600), isl=20, idle_ms=50),
    )

    def test_duration_is_from_the_first_send_to_the_last_event(self) -> None:
        """Neither connecting before nor draining after belongs to it."""
        performance = summarize(self.run)
        assert performance is not None
        assert performance.benchmark_duration == pytest.approx(0.5, rel=1e-12)

    def test_rates_are_counts_over_duration(self) -> None:
        """Total throughput counts input and generated tokens."""
        performance = summarize(self.run)
        assert performance is not None
        assert (performance.total_input_tokens, performance.total_generated_tokens) == (30, 5)
        assert performance.request_throughput == pytest.approx(4)
        assert performance.output_throughput == pytest.approx(10)
        assert performance.total_token_throughput == pytest.approx(70)

    def test_busy_slots_are_littles_law(self) -> None:
        """100 ms and 350 ms of request time fill 0.9 of one slot's 500 ms."""
        performance = summarize(self.run)
        assert performance is not None
        assert performance.slots_busy == pytest.approx(0.9)

    def test_tokens_are_the_servers_and_not_the_events(self) -> None:
        """An event can hold several tokens: usage counts."""
        performance = performance_of(sample(event_ms=(100, 200), generated=11))
        assert performance.total_generated_tokens == 11

    def test_a_server_that_counts_no_prompt_tokens_is_believed_the_prompt_that_was_sent(self) -> None:
        """Prompts are ids, so the client knows their length."""
        assert performance_of(sample(isl=33, prompt_tokens=None)).total_input_tokens == 33


class TestLatencies:
    """What each latency is measured from and to."""

    def test_ttft_and_e2el_start_at_the_send(self) -> None:
        """TTFT ends with the first event, E2E with the last."""
        performance = performance_of(sample(sent_ms=1000, event_ms=(1100, 1120, 1150)))
        assert performance.latency_ms.ttft.p50 == pytest.approx(100)
        assert performance.latency_ms.e2el.p50 == pytest.approx(150)

    def test_tpot_is_per_request_and_per_generated_token(self) -> None:
        """(E2E - TTFT) / (generated - 1), one value per request, however many events carried the tokens."""
        performance = performance_of(
            sample(index=0, event_ms=(100, 200), generated=11),
            sample(index=1, event_ms=(100, 140, 160)),
        )
        assert performance.latency_ms.tpot is not None
        assert performance.latency_ms.tpot.count == 2
        assert [performance.latency_ms.tpot.min, performance.latency_ms.tpot.max] == pytest.approx([10, 30])

    def test_interactivity_is_the_inverse_of_the_median_tpot(self) -> None:
        """20 ms a token are 50 tokens a second."""
        assert performance_of(sample(event_ms=(100, 120, 140))).interactivity == pytest.approx(50)

    def test_itl_pools_the_gaps_of_all_requests(self) -> None:
        """A request with more events weighs more; events that were read together are 0 apart."""
        performance = performance_of(
            sample(index=0, event_ms=(100, 110)), sample(index=1, event_ms=(100, 100, 150, 200))
        )
        assert performance.latency_ms.itl is not None
        assert performance.latency_ms.itl.count == 4
        assert performance.latency_ms.itl.min == 0
        assert performance.latency_ms.itl.mean == pytest.approx((10 + 0 + 50 + 50) / 4)

    def test_one_token_has_neither_tpot_nor_itl(self) -> None:
        """Then they are absent from a result, not null, and so is interactivity."""
        performance = performance_of(sample(event_ms=(100,)))
        assert performance.latency_ms.tpot is None
        assert performance.latency_ms.itl is None
        assert performance.interactivity is None
        assert msgspec.to_builtins(performance.latency_ms).keys() == {"ttft", "e2el"}
        assert not [name for name in msgspec.to_builtins(performance) if "tpot" in name or "itl" in name]

    def test_a_request_of_one_token_among_others_has_no_tpot(self) -> None:
        """The others' is not diluted."""
        performance = performance_of(sample(index=0, event_ms=(100,)), sample(index=1, event_ms=(100, 120)))
        assert performance.latency_ms.tpot is not None
        assert performance.latency_ms.tpot.count == 1


class TestDistribution:
    """Mean, population deviation and linearly interpolated percentiles."""

    def test_percentiles_interpolate_linearly(self) -> None:
        """Of 1 to 5 ms, p90 lies six tenths of the way from 4 to 5."""
        distribution = Distribution.of(np.array([5, 1, 4, 2, 3], dtype=np.int64) * MS)
        assert distribution is not None
        assert distribution.p50 == pytest.approx(3)
        assert distribution.p90 == pytest.approx(4.6)
        assert distribution.p95 == pytest.approx(4.8)
        assert distribution.p99 == pytest.approx(4.96)

    def test_of_nothing_there_is_none(self) -> None:
        """No value, no distribution; never a NaN."""
        assert Distribution.of(np.array([], dtype=np.int64)) is None

    @given(st.lists(st.integers(0, 10**13), min_size=1, max_size=60))
    def test_it_agrees_with_the_standard_library(self, values_ns: list[int]) -> None:
        """An implementation of somebody else's, in exact arithmetic, gives the same figures."""
        distribution = Distribution.of(np.array(values_ns, dtype=np.int64))
        assert distribution is not None
        exact = sorted(values_ns)
        assert distribution.mean * MS == pytest.approx(statistics.mean(exact), rel=1e-12)
        assert distribution.std * MS == pytest.approx(statistics.pstdev(exact), rel=1e-9, abs=1e-2)
        assert distribution.p50 * MS == pytest.approx(statistics.median(exact), rel=1e-12)
        assert distribution.min * MS == pytest.approx(exact[0], rel=1e-12)
        assert distribution.max * MS == pytest.approx(exact[-1], rel=1e-12)
        if len(exact) > 1:
            percentiles = statistics.quantiles(exact, n=100, method="inclusive")
            for found, expected in zip(
                (distribution.p90, distribution.p95, distribution.p99),
                (percentiles[i] for i in (89, 94, 98)),
                strict=True,
            ):
                assert found * MS == pytest.approx(expected, rel=1e-12, abs=1e-6)


class TestWhatCounts:
    """Only completed requests enter a latency or a token count."""

    def test_a_failed_request_enters_no_statistic(self) -> None:
        """Its tokens and times are not the server's performance."""
        good = sample(index=0, event_ms=(100, 120))
        bad = sample(index=1, event_ms=(5000, 9000), outcome=Outcome.TRUNCATED)
        performance = performance_of(good, bad)
        assert performance.successful_requests == 1
        assert performance.latency_ms.ttft.max == pytest.approx(100)
        assert performance.total_generated_tokens == 2
        assert performance.benchmark_duration == pytest.approx(0.12)

    def test_the_window_opens_with_the_first_send_of_any(self) -> None:
        """A request that failed was load all the same."""
        bad = sample(index=0, sent_ms=0, outcome=Outcome.CONNECTION_LOST, event_ms=())
        performance = performance_of(bad, sample(index=1, sent_ms=400, event_ms=(500,)))
        assert performance.benchmark_duration == pytest.approx(0.5)

    def test_nothing_completed_is_no_performance(self) -> None:
        """There is nothing to average; the caller says so."""
        assert summarize(run_of(sample(outcome=Outcome.TIMED_OUT, event_ms=()))) is None
        assert summarize(run_of()) is None

    @pytest.mark.parametrize("broken", [{"event_ns": np.array([], dtype=np.int64)}, {"generated_tokens": None}])
    def test_an_ok_without_events_or_usage_is_a_bug_upstream(self, broken: dict[str, Any]) -> None:
        """It is named, not averaged."""
        with pytest.raises(ValueError, match="request 0 is marked ok"):
            summarize(run_of(replace(sample(), **broken)))

    def test_a_window_without_length_is_a_bug_upstream(self) -> None:
        """No rate is divided by it."""
        with pytest.raises(ValueError, match="before the first send"):
            summarize(run_of(sample(sent_ms=100, event_ms=(100,))))


class TestSlotIdle:
    """How long a slot stood empty between a response and its next request."""

    def test_the_first_request_of_a_slot_waited_behind_nothing(self) -> None:
        """Slots 0 and 1 start; only the two that follow count."""
        performance = performance_of(
            sample(index=0, slot=0, idle_ms=0),
            sample(index=1, slot=1, idle_ms=0),
            sample(index=2, slot=0, sent_ms=200, event_ms=(300,), idle_ms=1),
            sample(index=3, slot=1, sent_ms=200, event_ms=(300,), idle_ms=3),
            concurrency=2,
        )
        assert performance.slot_idle_ms is not None
        assert performance.slot_idle_ms.mean == pytest.approx(2)
        assert performance.slot_idle_ms.max == pytest.approx(3)

    def test_without_a_second_request_there_is_no_idle_time(self) -> None:
        """As many requests as slots leave nothing between them."""
        assert performance_of(sample()).slot_idle_ms is None


def test_fields_are_those_of_the_golden_result_in_its_order(shared: Path) -> None:
    """The flat part of a result is the original tool's, name by name."""
    golden = json.loads((shared / "golden" / "result_isl1024_osl1024_conc16.json").read_text())
    names = list(golden)[: list(golden).index("benchmark_args")]
    assert list(msgspec.to_builtins(performance_of(sample())))[: len(names)] == names


def test_every_figure_is_a_plain_number() -> None:
    """NumPy's scalars would not survive JSON."""
    performance = performance_of(sample())
    flat = [value for value in msgspec.to_builtins(performance).values() if not isinstance(value, dict)]
    figures = [*flat, *msgspec.structs.astuple(performance.latency_ms.ttft)]
    assert {type(figure) for figure in figures} == {int, float}


@given(
    st.integers(1, 6),
    st.integers(1, 30),
    st.integers(2, 9),
    st.lists(st.floats(0.001, 500), min_size=3, max_size=3),
)
def test_means_add_up_at_one_length(concurrency: int, num_prompts: int, osl: int, times: list[float]) -> None:
    """Mean E2E = mean TTFT + (OSL - 1) * mean TPOT, and a closed loop never keeps more slots busy than it has."""
    run = closed_loop(
        concurrency=concurrency,
        num_prompts=num_prompts,
        length=lambda index: osl,
        ttft_ms=lambda index: times[index % 3],
        gap_ms=lambda index: times[-index % 3],
    )
    performance = summarize(run)
    assert performance is not None
    latency_ms = performance.latency_ms
    assert latency_ms.tpot is not None
    assert latency_ms.e2el.mean == pytest.approx(latency_ms.ttft.mean + (osl - 1) * latency_ms.tpot.mean, rel=1e-9)
    assert performance.slots_busy <= 1 + 1e-9


def test_raw_times_are_left_as_they_were() -> None:
    """Percentiles may reorder their scratch array, never the samples."""
    run = closed_loop(concurrency=2, num_prompts=9, length=lambda index: 5)
    before = [one.event_ns.copy() for one in run.samples]
    summarize(run)
    assert all(np.array_equal(old, one.event_ns) for old, one in zip(before, run.samples, strict=True))
    assert all(early <= late for one in run.samples for early, late in pairwise(one.event_ns))
    assert run.samples[0].sent_ns == START_NS
