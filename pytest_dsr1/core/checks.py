"""Invariants of an honest result, whoever measured it.

A check is a pure function from the evidence to findings. A finding that rejects is a contradiction: no honest run has
these figures together. A check that lacks a figure reports nothing; h1 alone reports what is missing. The numbers are
those of the project's list of invariants, so that a finding can be looked up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from pytest_dsr1.core.baselines import B200Table
from pytest_dsr1.core.evidence import (
    ABSENT,
    ARGUMENTS,
    COUNT_OR_ZERO,
    DISTRIBUTIONS,
    PERFORMANCE,
    Check,
    Evidence,
    Finding,
    reject,
    warn,
)
from pytest_dsr1.core.laws import h2_little, h3_rates, h5_order, h7_per_gpu, h8_baseline
from pytest_dsr1.core.samples import NS_PER_MS, RequestSample
from pytest_dsr1.core.text import shown

#: Prompts are random, so by chance at most this share of their tokens is in a prefix cache. A repeated prompt would be
#: cached as a whole.
MAX_CACHED_SHARE = 0.01
#: How many of several similar problems one message quotes.
QUOTED = 3


def h1_complete(evidence: Evidence) -> Iterator[Finding]:
    """All requests completed with the requested length; all figures are valid."""
    # Events before their effect on figures: the first finding becomes the reason of a failed point.
    completed = evidence.count("successful_requests")
    yield from _failures(evidence, completed)
    yield from _without_pace(evidence)
    # In mode acc performance is not measured.
    measured = any(key in evidence.result for key in (*PERFORMANCE, "latency_ms", "tput_per_gpu", "interactivity"))
    # Both may report the same NaN, in the same words.
    for problem in dict.fromkeys((*evidence.not_finite(), *(evidence.problems() if measured else ()))):
        yield reject("h1", problem)
    if not measured:
        return

    asked = evidence.count("benchmark_args.num_prompts")
    for path in _missing(evidence):
        yield reject(
            "h1",
            f"{path} is missing: {'every result has it' if evidence.ours else 'without it completeness is unknown'}",
        )
    if completed is not None and asked is not None and completed != asked:
        yield reject("h1", f"{completed} of {asked} requests completed, so the figures are of a part of the load only")
    yield from _output_lengths(evidence, completed)


def _missing(evidence: Evidence) -> Iterator[str]:
    """Required figures that are absent.

    A result of ours has all figures; another tool's must have the two that show completeness.
    """
    required: Iterable[str] = ("successful_requests", "benchmark_args.num_prompts")
    if evidence.ours:
        # Where no request completed there is nothing to average, and the count says so already.
        none = evidence.count("successful_requests") == 0
        required = ARGUMENTS if none else (*PERFORMANCE, *ARGUMENTS, *DISTRIBUTIONS)
    for path in required:
        # TPOT and ITL need two tokens: where requests of one token are allowed, both may be absent.
        of_pace = "tpot" in path or "itl" in path
        if evidence.at(path) is ABSENT and not (of_pace and _shortest_output(evidence) == 1):
            yield path


def _failures(evidence: Evidence, completed: int | None) -> Iterator[Finding]:
    """Requests that failed, and a run that was given up, as the client counted them."""
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
        yield reject("h1", f"the run was given up: {shown(aborted, 200)}")


def _without_pace(evidence: Evidence) -> Iterator[Finding]:
    """Answers of several tokens that were read at one moment, so TPOT is unknown."""
    paced = [one for one in evidence.samples if one.ok and (one.generated_tokens or 0) > 1]
    at_once = sum(len(one.event_ns) > 0 and one.event_ns[0] == one.event_ns[-1] for one in paced)
    if at_once:
        yield reject(
            "h1",
            f"{at_once} of {len(paced)} answers were read at one moment, so their time per token is 0: "
            "the server does not stream, or the client could not read in time",
        )


def _output_lengths(evidence: Evidence, completed: int | None) -> Iterator[Finding]:
    """The length of each output, if there are samples, and the total of all."""
    wrong = [
        f"request {sample.index} generated {sample.generated_tokens} tokens of {sample.requested_output_tokens}"
        for sample in evidence.samples
        if sample.ok and sample.generated_tokens != sample.requested_output_tokens
    ]
    if wrong:
        yield reject("h1", f"{len(wrong)} outputs do not have the requested length: {_some(wrong)}")

    generated = evidence.count("total_generated_tokens")
    longest = evidence.count("benchmark_args.random_output_len")
    shortest = _shortest_output(evidence)
    if completed and generated is not None and longest is not None and shortest is not None:
        low, high = completed * shortest, completed * longest
        if not low <= generated <= high:
            bound = f"{low}" if low == high else f"{low} to {high}"
            yield reject(
                "h1", f"{completed} requests generated {generated} tokens, not {bound}: outputs had other lengths"
            )


def h4_times(evidence: Evidence) -> Iterator[Finding]:
    """The events of each request are in order, and all come after the send.

    Then E2E is TTFT plus the gaps. E2E = TTFT + (generated - 1) * TPOT is not checked: TPOT is computed from it. Only
    raw samples can show this.
    """
    wrong = [
        f"request {sample.index} {problem}"
        for sample in evidence.samples
        if sample.ok and (problem := _disorder(sample))
    ]
    if wrong:
        yield reject("h4", f"the times of {len(wrong)} requests are impossible: {_some(wrong)}")


def _disorder(sample: RequestSample) -> str | None:
    """What is wrong with the times of a completed request; None if nothing is."""
    events = sample.event_ns
    if not len(events):
        return "completed without an event"
    if (ttft_ns := int(events[0]) - sample.sent_ns) <= 0:
        return f"was answered before it was sent: TTFT {ttft_ns / NS_PER_MS:g} ms"
    # The gaps sum to E2E - TTFT: if none is negative, all events are in order.
    if len(events) > 1 and (gap_ns := int(np.diff(events).min())) < 0:
        return f"has an event {-gap_ns / NS_PER_MS:g} ms earlier than the one before it"
    return None


def h11_same_server(evidence: Evidence) -> Iterator[Finding]:
    """The same process with the same arguments answers before and after the point."""
    lost = evidence.at("server.lost")
    if lost not in (ABSENT, None, ""):
        yield reject("h11", f"the server ended during the measurement: {_quoted(lost)}")
    changes = evidence.at("server.changes")
    if isinstance(changes, list | tuple) and changes:
        yield reject("h11", f"the server changed during the measurement: {_some([_quoted(one) for one in changes])}")


def s3_prefix_cache(evidence: Evidence) -> Iterator[Finding]:
    """Prompts that were never sent before are not in a prefix cache."""
    prompt_tokens = evidence.number("client.prefix_cache.prompt_tokens")
    cached_tokens = evidence.number("client.prefix_cache.cached_tokens")
    if prompt_tokens and cached_tokens is not None and cached_tokens > MAX_CACHED_SHARE * prompt_tokens:
        yield warn(
            "s3",
            f"{cached_tokens / prompt_tokens:.1%} of the prompts' tokens came from the server's prefix cache "
            f"({cached_tokens:.0f} of {prompt_tokens:.0f}): the model did not compute those, so figures are too good",
        )


#: All built-in checks. The first finding becomes the reason of a failed point, so causes come before consequences: what
#: happened to the server first, then what happened to the requests.
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
    more: Iterable[Check] = (),
) -> tuple[Finding, ...]:
    """Run every check on a result file of any tool.

    No content of the file makes this raise.

    :param result: The parsed JSON; a finding if it is not a mapping.
    :param samples: The measured requests; None skips what only they can show.
    :param b200: The published baselines; None skips whether the result cites the right one.
    :param more: Checks from outside, which run after the built-in ones. One that raises is a finding that rejects.
    """
    if not isinstance(result, Mapping):
        return (reject("h1", f"a result is a JSON object, found {shown(result)}"),)
    evidence = Evidence(result, samples or (), b200)
    return (*(finding for check in CHECKS for finding in check(evidence)), *_findings_of(more, evidence))


def _findings_of(checks: Iterable[Check], evidence: Evidence) -> Iterator[Finding]:
    for check in checks:
        try:
            yield from tuple(check(evidence))
        # The point is measured already, and a mistake in a check must not cost its result.
        except Exception as error:
            name = getattr(check, "__name__", type(check).__name__)
            yield reject(name, f"the check itself failed with {type(error).__name__}: {error}")


def _shortest_output(evidence: Evidence) -> int | None:
    """The shortest output requested: lengths are from floor(r * OSL) to OSL."""
    osl = evidence.number("benchmark_args.random_output_len")
    ratio = evidence.number("benchmark_args.random_range_ratio")
    return None if osl is None or ratio is None else max(1, math.floor(ratio * osl))


def _quoted(text: object) -> str:
    """What should be a text, as it is; anything else as `shown` has it."""
    return text if isinstance(text, str) else shown(text)


def _some(problems: Sequence[str]) -> str:
    """The first few of them, and how many more there are."""
    more = len(problems) - QUOTED
    return "; ".join(problems[:QUOTED]) + (f"; and {more} more" if more > 0 else "")
