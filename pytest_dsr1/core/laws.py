"""Checks of the arithmetic: relations between the figures of one measurement.

Each function is a check (see checks.py). The numbers are those of the project's list of invariants.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from pytest_dsr1.core.baselines import RATIOS
from pytest_dsr1.core.evidence import ABSENT, UNKNOWN, Evidence, Finding, Reading, reject, warn
from pytest_dsr1.core.samples import LATENCIES, ORDERED

#: A closed loop cannot keep more than CONC slots busy. Half a percent more is accepted, since other tools end their
#: duration at a slightly different event.
LITTLE_TOLERANCE = 0.005
#: Where only the median E2E is known, the mean is not: the slots must be exceeded by this factor before we reject.
MEDIAN_FACTOR = 2.0
#: Relative error of a sum whose terms were added in another order.
ROUNDING = 1e-9


def h2_little(evidence: Evidence) -> Iterator[Finding]:
    """Little's law: N * mean E2E / duration slots are busy, at most CONC.

    Where the mean is unknown it is computed from its parts, or the median takes its place.
    """
    completed = evidence.number("successful_requests")
    conc = evidence.number("benchmark_args.max_concurrency")
    duration_s = evidence.reading("benchmark_duration")
    if not completed or not duration_s.known or conc is None:
        return

    e2e_ms, name, bound = evidence.reading("mean_e2el_ms"), "", conc * (1 + LITTLE_TOLERANCE)
    if not e2e_ms.known:
        e2e_ms, name = _mean_e2e_from_parts(evidence), " (mean TTFT + the rest at mean TPOT)"
    if not e2e_ms.known:
        e2e_ms, name, bound = evidence.reading("median_e2el_ms"), " (the median)", MEDIAN_FACTOR * conc

    e2e_s = e2e_ms * 1e-3
    busy = e2e_s * completed / duration_s
    if busy.low > bound:
        yield reject(
            "h2",
            f"{completed:.0f} requests of {e2e_s:.4g} s{name} in {duration_s:.4g} s keep {busy:.1f} slots busy, "
            f"not {conc:.0f} (at most {bound:.5g}): concurrency, duration or number of requests is of another run",
        )


def _mean_e2e_from_parts(evidence: Evidence) -> Reading:
    """The mean E2E in ms where all outputs have the same length; else UNKNOWN.

    Means add up: mean E2E = mean TTFT + (OSL - 1) * mean TPOT.
    """
    osl = evidence.number("benchmark_args.random_output_len")
    ttft_ms, tpot_ms = evidence.reading("mean_ttft_ms"), evidence.reading("mean_tpot_ms")
    if evidence.number("benchmark_args.random_range_ratio") != 1 or osl is None:
        return UNKNOWN
    return ttft_ms if osl == 1 else ttft_ms + tpot_ms * (osl - 1)


def h3_rates(evidence: Evidence) -> Iterator[Finding]:
    """A throughput is a count divided by the duration."""
    duration_s = evidence.reading("benchmark_duration")
    requests, inputs, outputs = (
        evidence.reading(name) for name in ("successful_requests", "total_input_tokens", "total_generated_tokens")
    )
    total, how = (inputs + outputs) / duration_s, "(input + generated tokens) / duration"
    if not outputs.known:
        # The predecessor's files lack the generated tokens: the rate of the output takes their place.
        total = inputs / duration_s + evidence.reading("output_throughput")
        how = "input tokens / duration + output_throughput"
    rates = {
        "request_throughput": (requests / duration_s, "successful_requests / duration"),
        "output_throughput": (outputs / duration_s, "generated tokens / duration"),
        "total_token_throughput": (total, how),
    }
    for name, (computed, formula) in rates.items():
        yield from _recomputed("h3", evidence, name, computed, formula)


def h5_order(evidence: Evidence) -> Iterator[Finding]:
    """Percentiles rise, and |mean - median| is at most the standard deviation.

    A figure that is written in two places has one value.
    """
    for latency in LATENCIES:
        nested = f"latency_ms.{latency}"
        copies = {
            f"mean_{latency}_ms": f"{nested}.mean",
            f"median_{latency}_ms": f"{nested}.p50",
            f"p99_{latency}_ms": f"{nested}.p99",
        }
        for flat, full in copies.items():
            one, other = evidence.reading(flat), evidence.reading(full)
            if not one.agrees(other):
                yield reject("h5", f"{flat} is {one:.6g}, but {full} is {other:.6g}: they are the same figure")

        chains = ([f"{nested}.{name}" for name in ORDERED], [f"median_{latency}_ms", f"p99_{latency}_ms"])
        for chain in chains:
            known = [(path, value) for path in chain if (value := evidence.number(path)) is not None]
            for (lower, low), (upper, high) in pairwise(known):
                if low > high:
                    yield reject("h5", f"{lower} {low:.6g} ms is above {upper} {high:.6g} ms: percentiles must rise")

        mean, median, std = (evidence.reading(f"{nested}.{name}") for name in ("mean", "p50", "std"))
        if mean.distance(median) > std.high + ROUNDING * median.high:
            yield reject(
                "h5",
                f"the mean of {latency}, {mean:.6g} ms, is further from its median, {median:.6g} ms, than one standard "
                f"deviation, {std:.6g} ms: no set of values has such figures",
            )


def h7_per_gpu(evidence: Evidence) -> Iterator[Finding]:
    """Figures per GPU and per user follow from the others.

    The number of GPUs is what the server reported.
    """
    per_gpu = evidence.reading("tput_per_gpu")
    gpus = evidence.count("server.num_gpus")
    total = evidence.reading("total_token_throughput")
    if per_gpu.known:
        source = evidence.at("server.num_gpus_source")
        if gpus is None:
            if evidence.ours or source == "unknown":
                yield reject("h7", f"tput_per_gpu is {per_gpu:.6g}, but the number of GPUs is unknown")
        elif source == "assumed":
            yield warn("h7", f"tput_per_gpu assumes the {gpus} GPUs of --tp: the server did not report its number")
        elif source != "server" and (evidence.ours or source is not ABSENT):
            yield reject("h7", f"tput_per_gpu counts {gpus} GPUs, which the server did not report")
        if gpus is not None and not (per_gpu * gpus).agrees(total):
            yield reject(
                "h7",
                f"{gpus} GPUs at tput_per_gpu {per_gpu:.6g} make {per_gpu * gpus:.6g} tokens/s, "
                f"not total_token_throughput {total:.6g}",
            )
    computed = Reading(1000.0, 1000.0) / evidence.reading("median_tpot_ms")
    yield from _recomputed("h7", evidence, "interactivity", computed, "1000 / median_tpot_ms")


def h8_baseline(evidence: Evidence) -> Iterator[Finding]:
    """Ratios follow from their fields; the baseline is that of this configuration."""
    for ratio, (ours, theirs) in RATIOS.items():
        computed = evidence.reading(ours) / evidence.reading(theirs)
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
            if value != (published := getattr(row.baseline, name)):
                yield reject("h8", f"{name} is {value:.10g}, but {published:.10g} was published for {point.id}")


def _recomputed(check: str, evidence: Evidence, name: str, computed: Reading, formula: str) -> Iterator[Finding]:
    printed = evidence.reading(name)
    if not printed.agrees(computed):
        yield reject(check, f"{name} is {printed:.6g}, but {formula} is {computed:.6g}")
