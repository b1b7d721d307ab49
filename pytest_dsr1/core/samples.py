"""Raw samples of requests, and the statistics that are derived from them.

Times are integers in nanoseconds of `time.perf_counter_ns`, until a statistic is returned as a Python float.
Definitions are those of SGLang's `bench_serving`, so that figures compare with published ones: percentiles are linearly
interpolated, standard deviations are those of the population (ddof 0), ITL is pooled over the gaps of all requests,
TPOT is one value per request. Only completed requests count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

Nanoseconds: TypeAlias = npt.NDArray[np.int64]

NS_PER_MS = 1e6
NS_PER_S = 1e9
#: The latencies, in the order of a result file.
LATENCIES = ("ttft", "tpot", "itl", "e2el")
#: Statistics of a distribution, in the order in which their values rise.
ORDERED = ("min", "p50", "p90", "p95", "p99", "max")


class Outcome(StrEnum):
    """How a request ended. Statistics use `OK` only."""

    OK = "ok"
    HTTP_STATUS = "http_status"
    """The HTTP status was not 200."""
    STREAM_ERROR = "stream_error"
    """The stream contained an error event."""
    TRUNCATED = "truncated"
    """The stream ended before it was complete, properly or by an early end of file."""
    WRONG_LENGTH = "wrong_length"
    """Complete, but `usage` counts another number of tokens than requested."""
    TIMED_OUT = "timed_out"
    """The request exceeded its deadline, or no byte arrived for too long."""
    CONNECTION_LOST = "connection_lost"
    """The connection was reset or refused, or could not be opened."""
    MALFORMED = "malformed"
    """The answer was not HTTP, not an event stream, not JSON, or lacked `usage`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSample:
    """One request, from just before its first byte was written to its last event.

    :param index: Number of the request in its window, in order of sending, from 0.
    :param slot: Number of the slot, of CONC, that sent it.
    :param requested_input_tokens: Length of the prompt.
    :param requested_output_tokens: `max_tokens` of the request.
    :param sent_ns: Just before the first byte was written; of the first attempt, if a closed connection forced another.
    :param event_ns: When each event with `choices` was complete, in order; empty if none came. shape (events,)
    :param prompt_tokens: From the server's `usage`; None if it is not there.
    :param generated_tokens: From the server's `usage`; None if it is not there.
    :param cached_tokens: Prompt tokens that were in the server's cache; None if it does not report them.
    :param idle_ns: Time that the slot was idle before this request; 0 for its first in the window.
    :param detail: What went wrong, in one line; empty if nothing.
    """

    index: int
    slot: int
    requested_input_tokens: int
    requested_output_tokens: int
    sent_ns: int
    event_ns: Nanoseconds
    prompt_tokens: int | None
    generated_tokens: int | None
    cached_tokens: int | None
    idle_ns: int
    outcome: Outcome
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.outcome is Outcome.OK


class LoopLag(msgspec.Struct, frozen=True, kw_only=True):
    """How late the client's event loop was, in ms: the error of every time."""

    p50: float
    p99: float
    max: float
    ticks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRun:
    """Everything that the load generator measured at one point.

    :param samples: The measured requests, in order of sending.
    :param warmups: The warm-up requests, likewise; statistics ignore them.
    :param num_prompts: Requests to be measured; there are fewer samples if the run was given up.
    :param cpu_s: CPU time of the client's process over the measured window.
    :param wall_s: Wall clock over the measured window (first send to last byte).
    :param reconnects: Connections opened after the first one of each slot.
    :param aborted: Why the run was given up early; empty if it was not.
    """

    samples: Sequence[RequestSample]
    warmups: Sequence[RequestSample] = field(default=())
    concurrency: int
    num_prompts: int
    cpu_s: float
    wall_s: float
    loop_lag: LoopLag
    reconnects: int = 0
    aborted: str = ""

    @property
    def completed(self) -> tuple[RequestSample, ...]:
        """The requests that statistics use."""
        return tuple(sample for sample in self.samples if sample.ok)


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
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
        ordered = np.percentile(values_ns, (0, 50, 90, 95, 99, 100), overwrite_input=True) / NS_PER_MS
        return cls(
            mean=float(values_ns.mean()) / NS_PER_MS,
            std=float(values_ns.std()) / NS_PER_MS,
            count=len(values_ns),
            **dict(zip(ORDERED, ordered.tolist(), strict=True)),
        )


class LatencyMs(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The latencies of a run in ms, as a result file nests them.

    :param ttft: Time to first token: send to first event with `choices`.
    :param tpot: Time per output token: (E2E - TTFT) / (generated - 1); None if every request generated one token.
    :param itl: Inter-token latency: gaps between successive events; None if no request had two.
    :param e2el: End-to-end latency: send to last event with `choices`.
    """

    ttft: Distribution
    tpot: Distribution | None = None
    itl: Distribution | None = None
    e2el: Distribution


class SlotIdle(msgspec.Struct, frozen=True, kw_only=True):
    """How long a slot waited between a response and its next request, in ms."""

    mean: float
    max: float


class Figures(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The flat figures that a result file begins with; absent ones are None.

    Latencies are in ms, durations in s, throughputs in tokens/s (`request_throughput` in requests/s). The server counts
    the tokens (`usage`).

    :param benchmark_duration: From the first measured send to the last measured event.
    """

    successful_requests: int | None = None
    benchmark_duration: float | None = None
    total_input_tokens: int | None = None
    request_throughput: float | None = None
    output_throughput: float | None = None
    total_token_throughput: float | None = None
    mean_ttft_ms: float | None = None
    median_ttft_ms: float | None = None
    p99_ttft_ms: float | None = None
    mean_tpot_ms: float | None = None
    median_tpot_ms: float | None = None
    p99_tpot_ms: float | None = None
    mean_itl_ms: float | None = None
    median_itl_ms: float | None = None
    p99_itl_ms: float | None = None
    mean_e2el_ms: float | None = None
    median_e2el_ms: float | None = None
    p99_e2el_ms: float | None = None


class Performance(Figures, frozen=True, kw_only=True):
    """All that is computed from one load run.

    :param interactivity: Tokens per second and user, 1000 / median TPOT; None without a TPOT above 0.
    :param slots_busy: N * mean E2E / (CONC * duration), the part of slot time spent on completed requests
        (Little's law); 1 if no slot was ever idle.
    :param slot_idle_ms: None if no slot carried a second request.
    """

    total_generated_tokens: int
    interactivity: float | None = None
    latency_ms: LatencyMs
    slots_busy: float
    slot_idle_ms: SlotIdle | None = None


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
    # Where the server does not count a prompt, its length is known all the same, since prompts are token ids.
    input_tokens = sum(
        sample.requested_input_tokens if sample.prompt_tokens is None else sample.prompt_tokens for sample in samples
    )
    generated_tokens = int(generated.sum())
    latency_ms = LatencyMs(
        ttft=ttft,
        tpot=Distribution.of((last - first)[several] / (generated[several] - 1)),
        itl=Distribution.of(np.concatenate([np.diff(sample.event_ns) for sample in samples])),
        e2el=e2el,
    )
    flat = {
        f"{name}_{latency}_ms": value
        for latency in LATENCIES
        if (known := getattr(latency_ms, latency)) is not None
        for name, value in (("mean", known.mean), ("median", known.p50), ("p99", known.p99))
    }
    return Performance(
        successful_requests=len(samples),
        benchmark_duration=duration_s,
        total_input_tokens=input_tokens,
        request_throughput=len(samples) / duration_s,
        output_throughput=generated_tokens / duration_s,
        total_token_throughput=(input_tokens + generated_tokens) / duration_s,
        **flat,
        total_generated_tokens=generated_tokens,
        interactivity=1000.0 / latency_ms.tpot.p50 if latency_ms.tpot and latency_ms.tpot.p50 else None,
        latency_ms=latency_ms,
        slots_busy=len(samples) * e2el.mean / 1000.0 / (run.concurrency * duration_s),
        slot_idle_ms=_slot_idle(run.samples),
    )


def _slot_idle(samples: Sequence[RequestSample]) -> SlotIdle | None:
    """Idle time before each request, except the first of each slot."""
    first = {sample.slot: sample.index for sample in reversed(samples)}
    idle_ns = [sample.idle_ns for sample in samples if sample.index != first[sample.slot]]
    if not idle_ns:
        return None
    return SlotIdle(mean=sum(idle_ns) / len(idle_ns) / NS_PER_MS, max=max(idle_ns) / NS_PER_MS)
