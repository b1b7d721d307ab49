"""From samples to figures: counts, throughputs, distributions of latencies.

Definitions are those of SGLang's `bench_serving`, so that figures compare with published ones: percentiles are linearly
interpolated, standard deviations are those of the population (ddof 0), ITL is pooled over the gaps of all requests,
TPOT is one value per request. Only completed requests count. Times stay integers in nanoseconds until a statistic is
returned as a Python float.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from pytest_dsr1.core.samples import LoadRun, Nanoseconds, RequestSample

NS_PER_MS = 1e6
NS_PER_S = 1e9
#: The latencies, in the order of a result file.
LATENCIES = ("ttft", "tpot", "itl", "e2el")


@dataclass(frozen=True, kw_only=True, slots=True)
class Distribution:
    """The distribution of one latency, in ms.

    :param std: Of the population (ddof 0).
    :param p50: The median; percentiles interpolate linearly between neighbours.
    :param count: Number of values: requests for TTFT, TPOT and E2E, gaps for ITL.
    """

    mean: float
    std: float
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    count: int

    @classmethod
    def of(cls, values_ns: npt.NDArray[np.int64] | npt.NDArray[np.float64]) -> Distribution | None:
        """The distribution of `values_ns`, shape (count,); None if it is empty.

        Reorders `values_ns`: a sorted copy of millions of gaps would double the memory.
        """
        if not len(values_ns):
            return None
        p50, p90, p95, p99 = np.percentile(values_ns, (50, 90, 95, 99), overwrite_input=True) / NS_PER_MS
        return cls(
            mean=float(values_ns.mean()) / NS_PER_MS,
            std=float(values_ns.std()) / NS_PER_MS,
            min=float(values_ns.min()) / NS_PER_MS,
            p50=float(p50),
            p90=float(p90),
            p95=float(p95),
            p99=float(p99),
            max=float(values_ns.max()) / NS_PER_MS,
            count=len(values_ns),
        )


class LatencyMs(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The latencies of a run in ms, as a result file nests them.

    TPOT and ITL are None where no request generated two tokens.
    """

    ttft: Distribution | None = None
    tpot: Distribution | None = None
    itl: Distribution | None = None
    e2el: Distribution | None = None


class SlotIdle(msgspec.Struct, frozen=True, kw_only=True):
    """How long a slot waited between a response and its next request, in ms."""

    mean: float
    max: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Performance:
    """The figures of one load run.

    Throughputs are per second. Tokens are counted by the server (`usage`).

    :param benchmark_duration: Seconds from the first measured send to the last measured event.
    :param ttft: Time to first token: send to first event with `choices`.
    :param tpot: Time per output token: (E2E - TTFT) / (generated - 1); None if every request generated one token.
    :param itl: Inter-token latency: gaps between successive events; None if no request had two.
    :param e2el: End-to-end latency: send to last event with `choices`.
    :param slots_busy: N * mean E2E / (CONC * duration), the part of slot time spent on completed requests
        (Little's law); 1 if no slot was ever idle.
    :param slot_idle_ms: None if no slot carried a second request.
    """

    successful_requests: int
    benchmark_duration: float
    total_input_tokens: int
    total_generated_tokens: int
    request_throughput: float
    output_throughput: float
    total_token_throughput: float
    ttft: Distribution
    tpot: Distribution | None
    itl: Distribution | None
    e2el: Distribution
    slots_busy: float
    slot_idle_ms: SlotIdle | None

    @property
    def interactivity(self) -> float | None:
        """Tokens per second and user, 1000 / median TPOT; None without a TPOT above 0."""
        return 1000.0 / self.tpot.p50 if self.tpot and self.tpot.p50 else None

    def to_fields(self) -> dict[str, int | float]:
        """The flat fields of a result file, in its order.

        A latency without values is left out.
        """
        fields: dict[str, int | float] = {
            "successful_requests": self.successful_requests,
            "benchmark_duration": self.benchmark_duration,
            "total_input_tokens": self.total_input_tokens,
            "request_throughput": self.request_throughput,
            "output_throughput": self.output_throughput,
            "total_token_throughput": self.total_token_throughput,
        }
        for name in LATENCIES:
            latency: Distribution | None = getattr(self, name)
            if latency is not None:
                fields[f"mean_{name}_ms"] = latency.mean
                fields[f"median_{name}_ms"] = latency.p50
                fields[f"p99_{name}_ms"] = latency.p99
        return fields

    @property
    def latency_ms(self) -> LatencyMs:
        """The full distributions."""
        return LatencyMs(ttft=self.ttft, tpot=self.tpot, itl=self.itl, e2el=self.e2el)


def summarize(run: LoadRun) -> Performance | None:
    """The figures of `run`; None if no request completed.

    :raises ValueError: A sample is marked ok but lacks events or a count of generated tokens; or the duration is 0.
    """
    samples = run.completed
    if not samples:
        return None
    for sample in samples:
        if not len(sample.event_ns) or sample.generated_tokens is None:
            raise ValueError(
                f"request {sample.index} is marked ok, but has {len(sample.event_ns)} events and "
                f"generated_tokens {sample.generated_tokens}: the load generator should have classified it as malformed"
            )

    sent = np.array([sample.sent_ns for sample in samples], dtype=np.int64)
    first = np.array([sample.event_ns[0] for sample in samples], dtype=np.int64)
    last = np.array([sample.event_ns[-1] for sample in samples], dtype=np.int64)
    generated = np.array([sample.generated_tokens for sample in samples], dtype=np.int64)
    several = generated > 1

    ttft = Distribution.of(first - sent)
    e2el = Distribution.of(last - sent)
    assert ttft is not None  # There are samples, hence values.
    assert e2el is not None

    # A request that failed was load too: the duration starts with the first send of any request.
    duration_s = float(last.max() - min(sample.sent_ns for sample in run.samples)) / NS_PER_S
    if duration_s <= 0:
        raise ValueError(f"the last event came {-duration_s} s before the first send: times of two clocks were mixed")
    input_tokens = sum(_input_tokens(sample) for sample in samples)
    generated_tokens = int(generated.sum())
    return Performance(
        successful_requests=len(samples),
        benchmark_duration=duration_s,
        total_input_tokens=input_tokens,
        total_generated_tokens=generated_tokens,
        request_throughput=len(samples) / duration_s,
        output_throughput=generated_tokens / duration_s,
        total_token_throughput=(input_tokens + generated_tokens) / duration_s,
        ttft=ttft,
        tpot=Distribution.of((last - first)[several] / (generated[several] - 1)),
        itl=Distribution.of(_pooled_gaps(samples)),
        e2el=e2el,
        slots_busy=len(samples) * e2el.mean / 1000.0 / (run.concurrency * duration_s),
        slot_idle_ms=_slot_idle(run.samples),
    )


def _input_tokens(sample: RequestSample) -> int:
    """The server's count; else the length of the prompt.

    The length is known, since prompts are token ids.
    """
    return sample.requested_input_tokens if sample.prompt_tokens is None else sample.prompt_tokens


def _pooled_gaps(samples: Sequence[RequestSample]) -> Nanoseconds:
    """The gaps between successive events of all requests, shape (events - requests,)."""
    # Filled in place: a concatenation would hold millions of events twice.
    gaps = np.empty(sum(len(sample.event_ns) - 1 for sample in samples), dtype=np.int64)
    start = 0
    for sample in samples:
        events = sample.event_ns
        stop = start + len(events) - 1
        np.subtract(events[1:], events[:-1], out=gaps[start:stop])
        start = stop
    return gaps


def _slot_idle(samples: Sequence[RequestSample]) -> SlotIdle | None:
    """Idle time before each request, except the first of each slot."""
    seen: set[int] = set()
    idle_ns: list[int] = []
    for sample in samples:
        if sample.slot in seen:
            idle_ns.append(sample.idle_ns)
        seen.add(sample.slot)
    if not idle_ns:
        return None
    return SlotIdle(mean=sum(idle_ns) / len(idle_ns) / NS_PER_MS, max=max(idle_ns) / NS_PER_MS)
