"""A true result passes every check, whoever wrote it; a result that was changed in one place fails the right one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as replace_in

from pytest_dsr1.core.baselines import B200Row, B200Table
from pytest_dsr1.core.checks import CHECKS, check_result
from pytest_dsr1.core.evidence import FIGURES, Evidence, Finding, Severity, reject, warn
from pytest_dsr1.core.samples import RequestSample
from tests.simulated_runs import (
    MS,
    START_NS,
    Change,
    closed_loop,
    drop,
    put,
    result_of,
    run_of,
    sample,
    with_changes,
)

ISL, OSL, CONC = 8, 6, 4
ROW = B200Row(
    isl=ISL, osl=OSL, conc=CONC, median_e2e_ms=137, median_interactivity=83.567, tput_per_gpu=34.564, remark=""
)
OTHER_ROW = B200Row(
    isl=ISL, osl=OSL, conc=64, median_e2e_ms=1813, median_interactivity=55.4, tput_per_gpu=79.4, remark=""
)
TABLE = B200Table(name="t", source="t", gpus=8, range_ratio=0.8, remark="-", rows=(ROW, OTHER_ROW))
RUN = closed_loop(concurrency=CONC, num_prompts=40, length=lambda index: OSL, isl=ISL)
RESULT = result_of(RUN, isl=ISL, osl=OSL, row=ROW)
PUBLISHED = B200Table.from_json((Path(__file__).parents[2] / "baselines" / "b200_nv1126.json").read_text("utf-8"))
GOLDEN = "golden/result_isl1024_osl1024_conc16.json"


def found(result: object, samples: Any = None, b200: B200Table | None = TABLE) -> set[str]:
    """The numbers of the checks that reject."""
    return {one.check for one in check_result(result, samples, b200) if one.severity is Severity.REJECT}


def messages(result: object, samples: Any = None, b200: B200Table | None = TABLE) -> str:
    """All that was found, one finding a line."""
    return "\n".join(str(one) for one in check_result(result, samples, b200))


def changed(*changes: Change, result: Mapping[str, Any] = RESULT) -> dict[str, Any]:
    """A copy of the true result, or of another, with these changes."""
    return with_changes(result, *changes)


def as_others_print(result: Mapping[str, Any], digits: int) -> dict[str, Any]:
    """A result as a tool prints it that rounds what it measured and knows nothing of our objects."""
    ours = ("schema_version", "latency_ms", "server", "client", "total_generated_tokens")
    return {
        key: round(value, digits) if isinstance(value, float) else value
        for key, value in result.items()
        if key not in ours
    }


class TestTrueResults:
    """What was measured honestly is never rejected."""

    def test_a_true_result_has_no_findings(self) -> None:
        """Nothing is found, with samples and table or without."""
        assert check_result(RESULT) == ()
        assert check_result(RESULT, RUN.samples, TABLE) == ()

    def test_it_survives_its_file(self) -> None:
        """JSON keeps every digit."""
        assert check_result(json.loads(json.dumps(RESULT)), RUN.samples, TABLE) == ()

    @given(st.data())
    def test_any_closed_loop_passes(self, data: st.DataObject) -> None:
        """Whatever the times, the lengths and the concurrency, the laws hold."""
        draw = data.draw
        osl = draw(st.integers(1, 12))
        ratio = draw(st.sampled_from([0.5, 0.8, 1.0]))
        lengths = draw(st.lists(st.integers(max(1, math.floor(ratio * osl)), osl), min_size=1, max_size=5))
        times = draw(st.lists(st.floats(10, 1000), min_size=1, max_size=5))
        run = closed_loop(
            concurrency=draw(st.integers(1, 9)),
            num_prompts=draw(st.integers(1, 40)),
            length=lambda index: lengths[index % len(lengths)],
            ttft_ms=lambda index: times[index % len(times)],
            gap_ms=lambda index: times[-1 - index % len(times)],
            idle_ms=draw(st.sampled_from([0.0, 0.3, 50.0])),
        )
        result = result_of(run, isl=8, osl=osl, range_ratio=ratio)
        if max(lengths) > 1 and "tpot" not in result["latency_ms"]:
            return  # Too few requests to show a length that was drawn: TPOT is rightly missed in such a file.
        assert check_result(result, run.samples) == ()
        for digits in (2, 3, 6):
            assert check_result(as_others_print(result, digits)) == ()

    def test_equal_values_may_differ_by_rounding(self) -> None:
        """Their deviation is 0, and their mean is a sum that another tool adds up in another order."""
        run = closed_loop(concurrency=2, num_prompts=9, length=lambda index: 3, ttft_ms=lambda index: 33.3)
        result = result_of(run, isl=8, osl=3)
        assert result["latency_ms"]["ttft"]["std"] < 1e-9
        assert found(changed(put("latency_ms.ttft.mean", lambda true: true * (1 + 5e-10)), result=result)) == set()

    def test_an_accuracy_result_has_nothing_to_be_checked(self) -> None:
        """In mode acc there is no performance: the checks say nothing, not that it is missing."""
        accuracy = {"schema_version": 1, "engine": "reference", "accuracy": {"bits_per_byte": 0.4485}}
        assert check_result(accuracy) == ()
        assert check_result({}) == ()


class TestGolden:
    """The original's sample, whose figures are a stub's, and the seed's variant of it."""

    @pytest.fixture
    def golden(self, shared: Path) -> Any:
        """The file as the original wrote it."""
        return json.loads((shared / GOLDEN).read_text())

    @pytest.fixture
    def seeds(self, golden: Any) -> dict[str, Any]:
        """The guide's sample: the same times, but 3200 requests."""
        return changed(put("successful_requests", 3200), put("benchmark_args.num_prompts", 3200), result=golden)

    def test_its_throughputs_do_not_add_up(self, golden: Any) -> None:
        """800 requests in 805.3 s are not 3.97 a second; all else about it is consistent."""
        assert found(golden, b200=PUBLISHED) == {"h3"}
        assert "request_throughput is 3.97, but successful_requests / duration is 0.993" in messages(golden)

    def test_3200_requests_do_not_fit_16_slots(self, seeds: dict[str, Any]) -> None:
        """Little's law: it is a run of 64."""
        assert "h2" in found(seeds)
        assert "3200 requests of 16 s in 805.3 s keep 63.6 slots busy, not 16 (at most 16.08)" in messages(seeds)

    def test_without_the_mean_the_parts_tell(self, seeds: dict[str, Any]) -> None:
        """At one length, mean TTFT and mean TPOT make mean E2E."""
        assert "of 16.09 s (mean TTFT + the rest at mean TPOT)" in messages(changed(drop("mean_e2el_ms"), result=seeds))

    def test_without_the_parts_the_median_tells(self, seeds: dict[str, Any]) -> None:
        """A median is no mean: only twice the slots reject."""
        bare = changed(drop("mean_e2el_ms", "mean_tpot_ms"), result=seeds)
        assert "of 15.98 s (the median) in 805.3 s keep 63.5 slots busy, not 16 (at most 32)" in messages(bare)
        assert "h2" not in found(changed(put("benchmark_args.max_concurrency", 32), result=bare))

    def test_the_guides_e2e_ratio_is_not_its_quotient(self, golden: Any) -> None:
        """The guide prints 1.5349 where its own numbers give 1.5355; 2.9523 is right to its digits."""
        ratios = changed(
            put("median_e2e_ratio_vs_b200_1126", 1.5349), put("tput_per_gpu_ratio_vs_b200_1126", 2.9523), result=golden
        )
        assert found(ratios, b200=PUBLISHED) == {"h3", "h8"}
        assert messages(ratios, b200=PUBLISHED).count("h8") == 1


#: One change to a true result, the check that rejects it (and only that), and a part of what it says.
LIES: list[tuple[Change, str, str]] = [
    # h1: complete, and every figure a positive finite number
    (put("mean_itl_ms", math.nan), "h1", "mean_itl_ms is not finite"),
    (put("latency_ms.ttft.max", math.inf), "h1", "latency_ms.ttft.max is not finite"),
    (put("client.loop_lag_ms", [{"p99": math.nan}]), "h1", "client.loop_lag_ms[0].p99 is not finite"),
    (put("tput_per_gpu", 10**400), "h1", "tput_per_gpu is not finite"),
    (put("request_throughput", -1.0), "h1", "request_throughput is -1.0, below 0"),
    (put("latency_ms.ttft.min", 0), "h1", "latency_ms.ttft.min is 0, not above 0"),
    (put("output_throughput", "fast"), "h1", "output_throughput is 'fast', not a number"),
    (put("p99_ttft_ms", None), "h1", "p99_ttft_ms is null, not a number"),
    (put("p99_ttft_ms", [1]), "h1", "p99_ttft_ms is a list, not a number"),
    (put("total_input_tokens", True), "h1", "total_input_tokens is true, not a number"),
    (put("total_input_tokens", 0.5), "h1", "total_input_tokens is 0.5, not a whole number"),
    (put("benchmark_args.random_range_ratio", 1.1), "h1", "random_range_ratio is 1.1, above 1.0"),
    (put("benchmark_args.num_prompts", 41), "h1", "40 of 41 requests completed"),
    (put("client.requests.outcomes", {"ok": 40, "timed_out": 2}), "h1", "requests failed: 2 timed_out"),
    (put("client.requests.outcomes", {"ok": 39}), "h1", "the client counts 39 ok, successful_requests says 40"),
    (put("client.requests.outcomes", {"ok": "all"}), "h1", "client.requests.outcomes.ok is 'all', not a number"),
    (put("client.aborted", "too many\nerrors"), "h1", "'too many\\nerrors'"),
    (drop("mean_e2el_ms"), "h1", "mean_e2el_ms is missing"),
    (drop("total_generated_tokens"), "h1", "total_generated_tokens is missing"),
    (drop("latency_ms.tpot.p90"), "h1", "latency_ms.tpot.p90 is missing"),
    (drop("benchmark_args.max_concurrency"), "h1", "benchmark_args.max_concurrency is missing"),
    # h2: Little
    (put("benchmark_args.max_concurrency", 3), "h2", "not 3 (at most 3.015)"),
    # h3: throughputs
    (put("request_throughput", lambda true: true * (1 + 2e-6)), "h3", "request_throughput"),
    (put("output_throughput", lambda true: true * (1 - 2e-6)), "h3", "generated tokens / duration"),
    (put("total_input_tokens", lambda true: true + 1), "h3", "(input + generated tokens) / duration"),
    # h5: distributions
    (put("latency_ms.itl.p90", lambda true: true * 2), "h5", "latency_ms.itl.p90 24 ms is above latency_ms.itl.p95"),
    (put("latency_ms.e2el.min", 1e6), "h5", "latency_ms.e2el.min 1e+06 ms is above"),
    (put("latency_ms.e2el.std", 0.001), "h5", "further from its median"),
    (put("median_ttft_ms", lambda true: true * 0.999), "h5", "but latency_ms.ttft.p50 is"),
    # h7: per GPU and per user
    (put("tput_per_gpu", 1.0), "h7", "8 GPUs at tput_per_gpu 1 make 8 tokens/s"),
    (put("server.num_gpus", 4), "h7", "4 GPUs at"),
    (put("server.num_gpus", None), "h7", "number of GPUs is unknown"),
    (put("server.num_gpus_source", "a guess"), "h7", "which the server did not report"),
    (put("interactivity", lambda true: true * 1.01), "h7", "1000 / median_tpot_ms"),
    # h8: ratios and baseline
    (put("median_e2e_ratio_vs_b200_1126", lambda true: true + 1e-5), "h8", "median_e2el_ms / b200_median_e2e_1126"),
    (put("b200_baseline_nv1126.b200_tput_pergpu_1126", 79.4), "h8", "34.564 was published for isl8-osl6-conc4"),
    # h11: the same server throughout
    (put("server.lost", "killed by SIGKILL"), "h11", "killed by SIGKILL"),
    (put("server.changes", ["version: 1 -> 2"]), "h11", "version: 1 -> 2"),
    (put("server.changes", [*"abcde"]), "h11", "a; b; c; and 2 more"),
    (put("server.changes", [None]), "h11", "null"),
]


#: What aggregates do not hold: statistics that are free within their order, how many values there were, a range
#: ratio that allows the lengths that came, tokens that a cache had. Raw samples hold them.
FREE = (".std", ".min", ".max", ".p90", ".p95", ".count", "random_range_ratio", "cache.prompt_tokens", ".cached_tokens")


class TestLies:
    """Every single change is found."""

    @pytest.mark.parametrize(("change", "check", "message"), LIES, ids=[message[:40] for _, _, message in LIES])
    def test_a_changed_figure(self, change: Change, check: str, message: str) -> None:
        """The check that knows the law rejects, and says what is wrong."""
        result = changed(change)
        assert check in found(result)
        assert message in messages(result)

    @pytest.mark.parametrize("factor", [0.5, 0.99, 1.01, 2])
    @pytest.mark.parametrize("path", [path for path in FIGURES if not path.endswith(FREE)])
    def test_every_figure_is_held_by_another(self, path: str, factor: float) -> None:
        """None can be bettered, or worsened, by as little as a hundredth."""
        assert found(changed(put(path, lambda true: true * factor))), path

    @pytest.mark.parametrize(("busy", "verdict"), [(1.004, set()), (1.006, {"h2"})])
    def test_slots_may_be_overdrawn_by_half_a_percent(self, busy: float, verdict: set[str]) -> None:
        """Tools end their durations in slightly different places."""
        result = as_others_print(RESULT, 9)
        slots = result["successful_requests"] * result["mean_e2el_ms"] / 1000 / result["benchmark_duration"]
        assert found(changed(put("mean_e2el_ms", lambda true: true * CONC * busy / slots), result=result)) == verdict

    def test_two_lies_that_agree_with_each_other_meet_a_third_figure(self) -> None:
        """A shorter duration with throughputs to match breaks Little's law."""
        rates = ("request_throughput", "output_throughput", "total_token_throughput", "tput_per_gpu")
        faster = [put(rate, lambda true: true * 1.1) for rate in (*rates, "tput_per_gpu_ratio_vs_b200_1126")]
        result = changed(put("benchmark_duration", lambda true: true / 1.1), *faster)
        assert found(result) == {"h2"}


class TestPrefixCache:
    """What s3 says of prompts that the server says it had."""

    @pytest.mark.parametrize(("cached_tokens", "severities"), [(0, []), (10, []), (11, [Severity.WARN])])
    def test_more_than_one_percent_is_a_warning(self, cached_tokens: int, severities: list[Severity]) -> None:
        """Not a rejection: the figures are true, and are of something else than the model."""
        told = {"requests_told": 10, "prompt_tokens": 1000, "cached_tokens": cached_tokens}
        findings = check_result(changed(put("client.prefix_cache", told)))
        assert [finding.severity for finding in findings if finding.check == "s3"] == severities
        assert len(findings) == len(severities)


class TestCompleteness:
    """What h1 asks of whom."""

    def test_others_need_not_have_our_fields(self) -> None:
        """A missing figure makes a check say nothing."""
        assert check_result(as_others_print(RESULT, 2)) == ()

    @pytest.mark.parametrize("path", ["successful_requests", "benchmark_args.num_prompts"])
    def test_completeness_must_be_shown_by_everybody(self, path: str) -> None:
        """Without either count nobody can tell a whole run from a part."""
        result = changed(drop(path), result=as_others_print(RESULT, 2))
        assert f"{path} is missing" in messages(result)

    def test_nothing_completed_is_one_finding(self) -> None:
        """The count says it all; that there are no latencies need not be listed."""
        result = {"schema_version": 1, "successful_requests": 0, "benchmark_args": RESULT["benchmark_args"]}
        assert [one.message for one in check_result(result)] == [
            "0 of 40 requests completed, so the figures are of a part of the load only"
        ]

    def test_one_token_needs_no_pace(self) -> None:
        """At OSL 1 there is neither TPOT, ITL nor interactivity."""
        run = closed_loop(concurrency=2, num_prompts=8, length=lambda index: 1)
        assert check_result(result_of(run, isl=8, osl=1), run.samples) == ()

    def test_totals_are_held_to_the_lengths_that_were_asked(self) -> None:
        """At range ratio 0.5 and OSL 12 an output has 6 to 12 tokens."""
        run = closed_loop(concurrency=2, num_prompts=10, length=lambda index: 6)
        assert check_result(result_of(run, isl=8, osl=12, range_ratio=0.5)) == ()
        assert "10 requests generated 60 tokens, not 70 to 140" in messages(
            result_of(run, isl=8, osl=14, range_ratio=0.5)
        )
        assert "10 requests generated 60 tokens, not 70: " in messages(result_of(run, isl=8, osl=7))

    def test_samples_tell_which_output_was_short(self) -> None:
        """A request's own length is looked at, also where the total fits."""
        run = run_of(
            *(sample(index=index, generated=3, requested=3 + (index == 2)) for index in range(4)), concurrency=4
        )
        result = result_of(run, isl=8, osl=4, range_ratio=0.7)
        assert "request 2 generated 3 tokens of 4" in messages(result, run.samples)
        assert found(result) == set()

    def test_a_run_that_gave_up_says_so_without_figures_too(self) -> None:
        """What failed is told even where nothing was left to be averaged."""
        result = {"client": {"requests": {"outcomes": {"connection_lost": 3}}, "aborted": "server gone"}}
        assert "requests failed: 3 connection_lost" in messages(result)
        assert "'server gone'" in messages(result)


def test_answers_read_all_at_once_have_no_pace() -> None:
    """A TPOT of 0 is explained by what was seen, before the figures that follow from it."""
    samples = [sample(index=0), replace(sample(index=1), event_ns=events(10, 10, 10))]
    assert "1 of 2 answers were read at one moment" in messages({}, samples)


def events(*times_ms: float) -> Any:
    """Event times as samples hold them."""
    return START_NS + np.array([round(time_ms * MS) for time_ms in times_ms], dtype=np.int64)


class TestTimes:
    """h4 looks at each request; aggregates cannot show what it sees."""

    @pytest.mark.parametrize(
        ("broken", "message"),
        [
            ({"event_ns": events(-5, 10, 20)}, "request 1 was answered before it was sent: TTFT -5 ms"),
            ({"event_ns": events(0, 10, 20)}, "request 1 was answered before it was sent: TTFT 0 ms"),
            ({"event_ns": events(10, 30, 29)}, "request 1 has an event 1 ms earlier"),
            ({"event_ns": events()}, "request 1 completed without an event"),
        ],
    )
    def test_impossible_times(self, broken: dict[str, Any], message: str) -> None:
        """They are named with their request."""
        samples = [sample(index=0), replace(sample(index=1), **broken), sample(index=2)]
        assert found({}, samples) == {"h4"}
        assert message in messages({}, samples)

    def test_many_culprits_are_counted(self) -> None:
        """Three are named."""
        samples = [replace(sample(index=index), event_ns=events(-1)) for index in range(9)]
        (finding,) = (one for one in check_result({}, samples) if one.check == "h4")
        assert "9 requests" in finding.message
        assert "request 2 " in finding.message
        assert "request 3 " not in finding.message
        assert finding.message.endswith("; and 6 more")

    def test_events_that_came_together_are_possible(self) -> None:
        """A gap of 0 is several events in one read."""
        assert check_result({}, [sample(event_ms=(10, 10, 10, 20))]) == ()


class TestGpus:
    """Where the number of GPUs comes from."""

    def test_a_typed_number_is_a_warning(self) -> None:
        """It may be right; the server did not confirm it."""
        (finding,) = check_result(changed(put("server.num_gpus_source", "assumed")))
        assert (finding.check, finding.severity) == ("h7", Severity.WARN)
        assert "8 GPUs of --tp" in finding.message

    def test_unknown_without_figures_per_gpu_is_honest(self) -> None:
        """Nothing was claimed."""
        ratio = "tput_per_gpu_ratio_vs_b200_1126"
        unknown = put("server", {"num_gpus": None, "num_gpus_source": "unknown"})
        assert check_result(changed(unknown, drop("tput_per_gpu", ratio))) == ()

    def test_others_may_not_say(self) -> None:
        """A file without our server object is not asked for it."""
        assert "server" not in as_others_print(RESULT, 2)
        assert found(as_others_print(RESULT, 2)) == set()


class TestBaselineOfThisPoint:
    """h8 wants the row of this configuration."""

    def test_another_concurrencys_row(self) -> None:
        """The ratios recompute, and are still against the wrong machine point."""
        result = result_of(RUN, isl=ISL, osl=OSL, row=OTHER_ROW)
        assert check_result(result) == ()
        assert found(result) == {"h8"}

    def test_a_row_that_was_never_published(self) -> None:
        """At such lengths there is no baseline to cite."""
        empty = replace_in(TABLE, rows=(OTHER_ROW,))
        assert "none was published for isl8-osl6-conc4" in messages(RESULT, b200=empty)


def test_the_registry_is_in_order() -> None:
    """What became of the server comes first, as the reason of the rest; then the order of the list of invariants."""
    names = [check.__name__.split("_")[0] for check in CHECKS]
    assert names == ["h11", "h1", "h2", "h3", "h4", "h5", "h7", "h8", "s3"]


def test_samples_are_never_asked_for_what_the_result_lacks() -> None:
    """Raw samples of a true run add no finding to an empty result."""
    samples: tuple[RequestSample, ...] = tuple(RUN.samples)
    assert check_result({}, samples) == ()


class TestChecksFromOutside:
    """Checks that a user adds run after the built-in ones."""

    def test_their_findings_count(self) -> None:
        """They see what the built-in checks see."""

        def slow(evidence: Evidence) -> list[Finding]:
            figure = evidence.number("mean_ttft_ms")
            return [warn("slow", f"{figure:.0f} ms")] if figure and figure > 50 else []

        (finding,) = check_result(RESULT, RUN.samples, TABLE, more=[slow])
        assert (finding.check, finding.severity, finding.message) == ("slow", Severity.WARN, "93 ms")

    def test_one_that_raises_rejects(self) -> None:
        """A mistake in it costs neither the measurement nor the other checks."""

        def broken(evidence: Evidence) -> list[Finding]:
            raise KeyError("p42")

        def other(evidence: Evidence) -> list[Finding]:
            return [reject("other", "no")]

        one, two = check_result(RESULT, RUN.samples, TABLE, more=[broken, other])
        assert (one.check, one.severity) == ("broken", Severity.REJECT)
        assert "KeyError: 'p42'" in one.message
        assert two == reject("other", "no")


def test_a_message_is_one_printable_line() -> None:
    """A text from another tool's file controls no terminal and breaks no summary."""
    assert Finding("h1", Severity.WARN, "a\n  b\x1b[2J").message == "a b [2J"
