"""What was seen of each request: raw times on one monotonic clock, kept as they were read and never changed.

Times are integers in nanoseconds of `time.perf_counter_ns`; statistics are derived from them elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Nanoseconds: TypeAlias = npt.NDArray[np.int64]


class Outcome(StrEnum):
    """How a request ended. Only `OK` enters a statistic."""

    OK = "ok"
    HTTP_STATUS = "http_status"
    """Answered with another status than 200."""
    STREAM_ERROR = "stream_error"
    """An error event within a stream that began well."""
    TRUNCATED = "truncated"
    """The stream ended, in good order or by an early end of file, before it was complete."""
    WRONG_LENGTH = "wrong_length"
    """Complete, but `usage` counts other tokens than were asked for."""
    TIMED_OUT = "timed_out"
    """Past the deadline of the request, or without a byte for too long."""
    CONNECTION_LOST = "connection_lost"
    """Reset, refused, or never opened."""
    MALFORMED = "malformed"
    """Not HTTP, not an event stream, not JSON, or without usage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSample:
    """One request, from just before its first byte was written to its last event.

    :param index: Place among the requests of its window, in order of sending.
    :param slot: Which of the CONC slots carried it.
    :param requested_input_tokens: Length of the prompt that was sent.
    :param requested_output_tokens: `max_tokens` that was asked for.
    :param sent_ns: Just before the first byte was written (of the first try, where a connection was found dead).
    :param event_ns: When each event with `choices` was complete, in order; empty if none came. shape (events,)
    :param prompt_tokens: As the server's `usage` says; None where it said nothing.
    :param generated_tokens: As the server's `usage` says; None where it said nothing.
    :param cached_tokens: Prompt tokens served from a cache, where the server tells.
    :param idle_ns: How long the slot stood idle before this request; 0 for its first of the window.
    :param detail: What went wrong, in one line; empty when ok.
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

    @property
    def first_ns(self) -> int | None:
        """The first event with `choices`."""
        return int(self.event_ns[0]) if len(self.event_ns) else None

    @property
    def last_ns(self) -> int | None:
        """The last event with `choices`."""
        return int(self.event_ns[-1]) if len(self.event_ns) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopLag:
    """How late the client's event loop ran its ticks over the measured window: its own error, in ms."""

    p50_ms: float
    p99_ms: float
    max_ms: float
    ticks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRun:
    """All that the load generator saw at one point.

    :param samples: The measured requests, in order of sending.
    :param warmups: The warm-up requests, likewise; no statistic looks at them.
    :param num_prompts: Requests that were to be measured; fewer samples mean a run that gave up.
    :param cpu_s: CPU time of the client's process over the measured window.
    :param wall_s: Wall clock over the measured window (first send to last byte).
    :param reconnects: Connections opened anew after the first one of a slot.
    :param aborted: Why the run gave up early; empty if it did not.
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
        """The requests that statistics are made of."""
        return tuple(sample for sample in self.samples if sample.ok)
