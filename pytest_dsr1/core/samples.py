"""Raw samples: the times of each request on one clock, never changed.

Times are integers in nanoseconds of `time.perf_counter_ns`. Statistics are derived from them in `statistics.py`.
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
    """How late the client's event loop was, in ms: the error of every time."""

    p50_ms: float
    p99_ms: float
    max_ms: float
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
