"""What a true result must satisfy, whoever measured it: laws of arithmetic and of queues, not matters of taste.

Each check is a pure function from the evidence to findings. One that rejects has found a contradiction: no honest run
can have these figures together. A check that lacks a figure says nothing; h1 is the one that misses what must be there.
They are numbered as in the project's list of invariants, so that a finding can be looked up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from pytest_dsr1.core.baselines import RATIOS, B200Table
from pytest_dsr1.core.evidence import ABSENT, ARGUMENTS, COUNT_OR_ZERO, ORDERED, PERFORMANCE, Evidence, Reading, shown
from pytest_dsr1.core.findings import Finding, Severity, reject
from pytest_dsr1.core.samples import RequestSample
from pytest_dsr1.core.server_checks import h11_same_server, s3_prefix_cache
from pytest_dsr1.core.statistics import LATENCIES, NS_PER_MS

#: Slot time cannot be overdrawn at all; half a percent is left to tools that end their duration a little elsewhere.
LITTLE_TOLERANCE = 0.005
#: Where only the median is known, its part in the mean is unknown too: it has to overdraw the slots this many times.
MEDIAN_FACTOR = 2.0
#: For sums that were added up in another order.
ROUNDING = 1e-9
#: How many culprits one message names.
NAMED = 3


Check: TypeAlias = Callable[[Evidence], Iterable[Finding]]


def h1_complete(evidence: Evidence) -> Iterator[Finding]:
    """All requests completed, every output as long as asked, every figure there and a positive finite number."""
    # What happened first, then what the figures make of it: the first finding is a failure's reason.
    completed = evidence.count("successful_requests")
    yield from _failures(evidence, completed)
    yield from _without_pace(evidence)
    problems = [*evidence.not_finite()]
    if evidence.has_performance:
        problems += evidence.problems()
    # One NaN can be found by both, in the same words.
    for problem in dict.fromkeys(problems):
        yield reject("h1", problem)
    if not evidence.has_performance:
        return

    asked = evidence.count("benchmark_args.num_prompts")
    for path in _missing(evidence):
        yield reject("h1", f"{path} is missing: {'a result has it' if evidence.ours else 'completeness is not shown'}")
    if completed is not None and asked is not None and completed != asked:
        yield reject("h1", f"{completed} of {asked} requests completed: figures of a part do not speak for the whole")
    yield from _output_lengths(evidence, completed)


def _missing(evidence: Evidence) -> Iterator[str]:
    """What must be there: everything in a result of ours; the means to tell completeness in anybody's."""
    required: Iterable[str] = ("successful_requests", "benchmark_args.num_prompts")
    if evidence.ours:
        latencies = [f"latency_ms.{latency}.{name}" for latency in LATENCIES for name in ("mean", "std", *ORDERED)]
        required = (*PERFORMANCE, *ARGUMENTS, *latencies)
        if evidence.count("successful_requests") == 0:
            # Then there is nothing to be averaged, and the count says it.
            required = ARGUMENTS
    for path in required:
        # Pace needs two tokens: where a request may have one, there may be no TPOT and no gap.
        of_pace = "tpot" in path or "itl" in path
        if evidence.at(path) is ABSENT and not (of_pace and _shortest_output(evidence) == 1):
            yield path


def _failures(evidence: Evidence, completed: int | None) -> Iterator[Finding]:
    """What the client says about requests that did not end well."""
    outcomes = evidence.at("client.requests.outcomes")
    if isinstance(outcomes, Mapping):
        counts = {name: count for name, count in outcomes.items() if COUNT_OR_ZERO.problem(count) is None}
        failed = [f"{count} {name}" for name, count in counts.items() if name != "ok" and count > 0]
        if failed:
            yield reject("h1", f"requests failed: {_some(failed)}")
        if completed is not None and counts.get("ok", completed) != completed:
            yield reject("h1", f"the client counts {counts['ok']} ok, successful_requests says {completed}")
    aborted = evidence.at("client.aborted")
    if aborted not in (ABSENT, None, ""):
        yield reject("h1", f"the run gave up: {shown(aborted)}")


def _without_pace(evidence: Evidence) -> Iterator[Finding]:
    """Answers of several tokens that were read all at once: they took no time per token, so none was measured."""
    paced = [one for one in evidence.samples or () if one.ok and (one.generated_tokens or 0) > 1]
    at_once = sum(len(one.event_ns) > 0 and one.first_ns == one.last_ns for one in paced)
    if at_once:
        yield reject(
            "h1",
            f"{at_once} of {len(paced)} answers were read all at once, so their time per token is 0: "
            "the server sent them whole, or the client was kept from reading",
        )


def _output_lengths(evidence: Evidence, completed: int | None) -> Iterator[Finding]:
    """Each request by itself where the samples are at hand; else the total against the bounds of the lengths."""
    if evidence.samples is not None:
        wrong = [
            f"request {sample.index} generated {sample.generated_tokens} tokens of {sample.requested_output_tokens}"
            for sample in evidence.samples
            if sample.ok and sample.generated_tokens != sample.requested_output_tokens
        ]
        if wrong:
            yield reject("h1", f"{len(wrong)} outputs are not as long as requested: {_some(wrong)}")

    generated = evidence.count("total_generated_tokens")
    longest = evidence.count("benchmark_args.random_output_len")
    shortest = _shortest_output(evidence)
    if completed and generated is not None and longest is not None and shortest is not None:
        low, high = completed * shortest, completed * longest
        if not low <= generated <= high:
            bound = f"{low}" if low == high else f"{low} to {high}"
            yield reject(
                "h1", f"{completed} requests generated {generated} tokens, not {bound}: outputs were not as requested"
            )


def h2_little(evidence: Evidence) -> Iterator[Finding]:
    """Little's law: CONC slots cannot hold more request-seconds than they have."""
    completed = evidence.number("successful_requests")
    duration_s = evidence.reading("benchmark_duration")
    conc = evidence.number("benchmark_args.max_concurrency")
    if not completed or duration_s is None or conc is None:
        return

    name, bound = "", conc * (1 + LITTLE_TOLERANCE)
    e2e_ms = evidence.reading("mean_e2el_ms")
    if e2e_ms is None:
        e2e_ms, name = _mean_e2e_from_parts(evidence), " (mean TTFT + the rest at mean TPOT)"
    if e2e_ms is None:
        e2e_ms, name, bound = evidence.reading("median_e2el_ms"), " (the median)", MEDIAN_FACTOR * conc
    if e2e_ms is None:
        return

    e2e_s = e2e_ms * 1e-3
    busy = e2e_s * completed / duration_s
    if busy.low > bound:
        yield reject(
            "h2",
            f"{completed:.0f} requests of {e2e_s:.4g} s{name} in {duration_s:.4g} s keep {busy:.1f} slots busy, "
            f"not {conc:.0f} (at most {bound:.5g}): the figures are of a run with another concurrency, duration or "
            "number of requests",
        )


def _mean_e2e_from_parts(evidence: Evidence) -> Reading | None:
    """The mean E2E in ms where all outputs have one length: means add up, then."""
    osl = evidence.number("benchmark_args.random_output_len")
    ttft_ms, tpot_ms = evidence.reading("mean_ttft_ms"), evidence.reading("mean_tpot_ms")
    if evidence.number("benchmark_args.random_range_ratio") != 1 or osl is None or ttft_ms is None:
        return None
    if osl == 1:
        return ttft_ms
    return None if tpot_ms is None else ttft_ms + tpot_ms * (osl - 1)


def h3_rates(evidence: Evidence) -> Iterator[Finding]:
    """A throughput is what it counts, divided by the duration."""
    duration_s = evidence.reading("benchmark_duration")
    if duration_s is None:
        return
    requests, inputs, outputs = (
        evidence.reading(name) for name in ("successful_requests", "total_input_tokens", "total_generated_tokens")
    )
    output_rate = evidence.reading("output_throughput")
    input_rate = inputs / duration_s if inputs else None
    if outputs:
        total, how = (outputs + inputs) / duration_s if inputs else None, "(input + generated tokens) / duration"
    else:
        # A file that lost its generated tokens: what is not output is input.
        total = input_rate + output_rate if input_rate and output_rate else None
        how = "input tokens / duration + output_throughput"

    relations = (
        ("request_throughput", requests / duration_s if requests else None, "successful_requests / duration"),
        ("output_throughput", outputs / duration_s if outputs else None, "generated tokens / duration"),
        ("total_token_throughput", total, how),
    )
    for name, computed, formula in relations:
        yield from _recomputed("h3", evidence, name, computed, formula)


def h4_times(evidence: Evidence) -> Iterator[Finding]:
    """The times of each request fit together: E2E is TTFT plus its gaps, and no event precedes another or the send.

    E2E = TTFT + (generated - 1) * TPOT needs no look: times are all that is kept, and TPOT is made of them that way.
    Aggregates can show none of this.
    """
    wrong = [
        f"request {sample.index} {problem}"
        for sample in evidence.samples or ()
        if sample.ok and (problem := _disorder(sample))
    ]
    if wrong:
        yield reject("h4", f"the times of {len(wrong)} requests contradict themselves: {_some(wrong)}")


def _disorder(sample: RequestSample) -> str | None:
    """What is impossible about the times of a completed request; None if nothing is."""
    events = sample.event_ns
    if not len(events):
        return "completed without an event"
    if (ttft_ns := int(events[0]) - sample.sent_ns) <= 0:
        return f"was answered before it was sent: TTFT {ttft_ns / NS_PER_MS:g} ms"
    # Gaps telescope: their sum is E2E - TTFT. If none is negative, neither is that, and no partial sum.
    if len(events) > 1 and (gap_ns := int(np.diff(events).min())) < 0:
        return f"has an event {-gap_ns / NS_PER_MS:g} ms before the one that it follows"
    return None


def h5_order(evidence: Evidence) -> Iterator[Finding]:
    """Percentiles rise, a mean is within one standard deviation of its median, and one figure has one value."""
    for latency in LATENCIES:
        nested = f"latency_ms.{latency}"
        copies = {
            f"mean_{latency}_ms": f"{nested}.mean",
            f"median_{latency}_ms": f"{nested}.p50",
            f"p99_{latency}_ms": f"{nested}.p99",
        }
        for flat, full in copies.items():
            one, other = evidence.reading(flat), evidence.reading(full)
            if one and other and not one.agrees(other):
                yield reject("h5", f"{flat} is {one:.6g}, but {full} is {other:.6g}: one figure, two values")

        chains = ([f"{nested}.{name}" for name in ORDERED], [f"median_{latency}_ms", f"p99_{latency}_ms"])
        for chain in chains:
            known = [(path, value) for path in chain if (value := evidence.number(path)) is not None]
            for (lower, low), (upper, high) in pairwise(known):
                if low > high:
                    yield reject("h5", f"{lower} {low:.6g} ms is above {upper} {high:.6g} ms: percentiles only rise")

        mean, median, std = (evidence.reading(f"{nested}.{name}") for name in ("mean", "p50", "std"))
        if mean and median and std and mean.distance(median) > std.high + ROUNDING * median.high:
            yield reject(
                "h5",
                f"the mean of {latency}, {mean:.6g} ms, is further from its median {median:.6g} ms than one standard "
                f"deviation, {std:.6g} ms: no set of values has such figures",
            )


def h7_per_gpu(evidence: Evidence) -> Iterator[Finding]:
    """Figures per GPU and per user recompute, and the number of GPUs is the server's word."""
    per_gpu = evidence.reading("tput_per_gpu")
    gpus = evidence.count("server.num_gpus")
    total = evidence.reading("total_token_throughput")
    if per_gpu:
        source = evidence.at("server.num_gpus_source")
        if gpus is None:
            if evidence.ours or source == "unknown":
                yield reject("h7", f"tput_per_gpu is {per_gpu:.6g}, but nobody knows how many GPUs there were")
        elif source == "assumed":
            message = f"tput_per_gpu counts {gpus} GPUs because --tp said so: the server did not tell"
            yield Finding("h7", Severity.WARN, message)
        elif source != "server" and (evidence.ours or source is not ABSENT):
            yield reject("h7", f"tput_per_gpu counts {gpus} GPUs, and the server did not say so")
        if gpus is not None and total and not (per_gpu * gpus).agrees(total):
            yield reject(
                "h7",
                f"{gpus} GPUs at tput_per_gpu {per_gpu:.6g} make {per_gpu * gpus:.6g} tokens/s, "
                f"not total_token_throughput {total:.6g}",
            )
    tpot_ms = evidence.reading("median_tpot_ms")
    computed = Reading(1000.0, 1000.0) / tpot_ms if tpot_ms else None
    yield from _recomputed("h7", evidence, "interactivity", computed, "1000 / median_tpot_ms")


def h8_baseline(evidence: Evidence) -> Iterator[Finding]:
    """Ratios recompute from their own fields, and the baseline is the one of this configuration."""
    for ratio, (ours, theirs) in RATIOS.items():
        figure, baseline = evidence.reading(ours), evidence.reading(theirs)
        computed = figure / baseline if figure and baseline else None
        yield from _recomputed("h8", evidence, ratio, computed, f"{ours} / {theirs.rpartition('.')[2]}")

    point = evidence.point
    if evidence.b200 is None or point is None:
        return
    cited = {path: value for _, path in RATIOS.values() if (value := evidence.number(path)) is not None}
    row = evidence.b200.row(point)
    if cited and row is None:
        yield reject("h8", f"the result cites a B200 baseline, but none was published for {point.id}")
    elif row is not None:
        for path, value in cited.items():
            name = path.rpartition(".")[2]
            if value != (published := row.to_fields()[name]):
                yield reject("h8", f"{name} is {value:.10g}, but {published:.10g} was published for {point.id}")


#: All checks. The first finding is a failure's reason, so what became of the server goes before what came of that.
CHECKS: tuple[Check, ...] = (
    h11_same_server,
    h1_complete,
    h2_little,
    h3_rates,
    h4_times,
    h5_order,
    h7_per_gpu,
    h8_baseline,
    s3_prefix_cache,
)


def check_result(
    result: object,
    samples: Sequence[RequestSample] | None = None,
    b200: B200Table | None = None,
) -> tuple[Finding, ...]:
    """Run every check on a result file, ours or anybody's. Whatever is in it, this does not raise.

    :param result: The parsed JSON, a mapping unless something went wrong.
    :param samples: The measured requests; without them what only they can show is not checked.
    :param b200: The published baselines; without them the ratios are checked, but not whose baseline was cited.
    """
    if not isinstance(result, Mapping):
        return (reject("h1", f"a result is a JSON object, not a {type(result).__name__}"),)
    evidence = Evidence(result, samples, b200)
    return tuple(finding for check in CHECKS for finding in check(evidence))


def _recomputed(check: str, evidence: Evidence, name: str, computed: Reading | None, formula: str) -> Iterator[Finding]:
    """A finding if the figure `name` is not what its `formula` gives; nothing if either is unknown."""
    printed = evidence.reading(name)
    if printed and computed and not printed.agrees(computed):
        yield reject(check, f"{name} is {printed:.6g}, but {formula} is {computed:.6g}")


def _shortest_output(evidence: Evidence) -> int | None:
    """The fewest tokens that a request may have asked for: lengths are drawn from floor(r * OSL) to OSL."""
    osl = evidence.number("benchmark_args.random_output_len")
    ratio = evidence.number("benchmark_args.random_range_ratio")
    return None if osl is None or ratio is None else max(1, math.floor(ratio * osl))


def _some(culprits: Sequence[str]) -> str:
    """The first few of them, and how many more there are."""
    more = len(culprits) - NAMED
    return "; ".join(culprits[:NAMED]) + (f"; and {more} more" if more > 0 else "")
