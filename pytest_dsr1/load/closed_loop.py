"""Measures one point under load: warm-up, measured window, then samples.

All work that can be done before or after the measured window is done then.
"""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np

from pytest_dsr1.core.config import LoadLimits, Point
from pytest_dsr1.core.samples import LoadRun, LoopLag, Outcome, RequestSample
from pytest_dsr1.load.client import Dialer, Target
from pytest_dsr1.load.loop import run_on_loop
from pytest_dsr1.load.prompts import PointPrompts, Request, render_requests
from pytest_dsr1.load.recording import RecordingStore
from pytest_dsr1.load.slots import Exchange, LoadProgress, Slots
from pytest_dsr1.load.stream import Reply, count_in, read_reply

#: Share of the measured requests that may fail before the run gives up; CONC failures are allowed in any case.
MAX_FAILED_SHARE = 0.05
#: Open files to allow for beside the connections.
_SPARE_FILES = 256


def run_point(
    url: str,
    model: str,
    point: Point,
    prompts: PointPrompts,
    limits: LoadLimits,
    *,
    on_progress: Callable[[LoadProgress], None] | None = None,
) -> LoadRun:
    """Send a point's requests, `point.conc` at a time, and return the samples.

    A request that fails becomes a sample with the cause. A run that can no longer become valid, or whose server cannot
    be reached, ends early with the reason in `LoadRun.aborted`. An exception from a signal handler or from
    `on_progress` ends the run, too; it is raised here after every connection is closed.

    :param url: URL of the server, without `/v1`.
    :param model: Name of the served model.
    :param on_progress: Called at most 5 times a second, and at the end of each phase.
    :raises ValueError: if `url` is not an HTTP URL, or more files must be open than the system allows.
    """
    target = Target.from_url(url)
    requests = render_requests(target.path, target.authority, model, prompts)
    _allow_open_files(point.conc + _SPARE_FILES)
    with closing(RecordingStore()) as store:

        async def measure(stop: Callable[[BaseException], None]) -> _Measured:
            slots = Slots(
                Dialer(target),
                point,
                limits,
                store,
                max_failures=max(point.conc, int(MAX_FAILED_SHARE * len(prompts.measured))),
                on_progress=on_progress,
                on_error=stop,
            )
            try:
                return await _measure(slots, requests, len(prompts.warmups), store)
            finally:
                await slots.close()

        measured = run_on_loop(measure)
        # Parsed outside of the loop, where a signal is handled at once.
        samples = _samples(measured.ended, store)
    first_ns = min((exchange.sent_ns for exchange in measured.ended), default=0)
    stamps = [exchange.recording.stamps[-1] for exchange in measured.ended if exchange.recording.stamps]
    return LoadRun(
        samples=samples,
        warmups=measured.warmups,
        concurrency=point.conc,
        num_prompts=len(prompts.measured),
        cpu_s=measured.cpu_s,
        wall_s=(max(stamps, default=first_ns) - first_ns) / 1e9,
        loop_lag=_loop_lag(measured.late_ns),
        reconnects=measured.reconnects,
        aborted=measured.aborted,
    )


@dataclass
class _Measured:
    """What is known at the end of the loop; measured requests are not parsed yet."""

    warmups: tuple[RequestSample, ...] = ()
    ended: Sequence[Exchange] = ()
    late_ns: Sequence[int] = ()
    cpu_s: float = 0.0
    reconnects: int = 0
    aborted: str = ""


async def _measure(slots: Slots, requests: Sequence[Request], warmups: int, store: RecordingStore) -> _Measured:
    found = _Measured()
    await slots.connect()
    if warmups and not slots.aborted:
        warm = await slots.run("warm-up", requests[:warmups])
        found.warmups = _samples(warm.ended, store)
        if not slots.aborted and not any(sample.ok for sample in found.warmups):
            why = found.warmups[0]
            slots.give_up(f"none of {warmups} warm-up requests succeeded; {why.outcome}: {why.detail}")
    if not slots.aborted:
        with _undisturbed():
            # The server may have closed connections that were idle during the garbage collection.
            await slots.connect()
            if not slots.aborted:
                began_s = time.process_time()
                window = await slots.run("measured", requests[warmups:])
                found.cpu_s = time.process_time() - began_s
                found.ended, found.late_ns = window.ended, window.late_ns
    found.reconnects, found.aborted = slots.reconnects, slots.aborted
    return found


def _samples(exchanges: Sequence[Exchange], store: RecordingStore) -> tuple[RequestSample, ...]:
    return tuple(_sample(exchange, store) for exchange in exchanges)


def _sample(exchange: Exchange, store: RecordingStore) -> RequestSample:
    """Make a sample of a finished request; empties its recording."""
    recording, request = exchange.recording, exchange.request
    assert recording.ending is not None
    reply = read_reply(store.reads(recording), recording.stamps)
    recording.reads.clear()
    outcome, detail = outcome_of(reply, recording.ending, recording.note, request.input_tokens, request.output_tokens)
    return RequestSample(
        index=exchange.index,
        slot=exchange.slot,
        requested_input_tokens=request.input_tokens,
        requested_output_tokens=request.output_tokens,
        sent_ns=exchange.sent_ns,
        event_ns=reply.event_ns,
        prompt_tokens=count_in(reply.usage, "prompt_tokens"),
        generated_tokens=count_in(reply.usage, "completion_tokens"),
        cached_tokens=reply.cached_tokens,
        idle_ns=exchange.idle_ns,
        outcome=outcome,
        detail=detail,
    )


def outcome_of(reply: Reply, ending: Outcome, note: str, input_tokens: int, output_tokens: int) -> tuple[Outcome, str]:
    """How a request ended, with the cause of a failure in one line.

    An error that the server reported takes precedence over the way the connection ended: an error event that is
    followed by a reset is a stream error.

    :param ending: How the reading of the response ended; see `Recording`.
    :param note: What the recording says of its ending.
    :param input_tokens: Tokens of the prompt. It was sent as ids, so `usage` must count as many.
    :param output_tokens: Tokens that were asked for.
    """
    if reply.status is not None and reply.status != 200:
        return Outcome.HTTP_STATUS, f"HTTP {reply.status}: {reply.error}"
    if reply.error is not None:
        return Outcome.STREAM_ERROR, f"error after {_events(reply)}: {reply.error}"
    if reply.malformed is not None:
        return Outcome.MALFORMED, reply.malformed
    if ending is not Outcome.OK:
        return ending, f"{note} after {_events(reply)}"
    return _outcome_of_complete(reply, input_tokens, output_tokens)


def _outcome_of_complete(reply: Reply, input_tokens: int, output_tokens: int) -> tuple[Outcome, str]:
    if not reply.done:
        return Outcome.TRUNCATED, f"the stream ended after {_events(reply)} without [DONE]"
    if reply.usage is None:
        return Outcome.MALFORMED, f"no usage in a stream of {_events(reply)}: the number of tokens is not known"
    prompt, generated = (count_in(reply.usage, key) for key in ("prompt_tokens", "completion_tokens"))
    if prompt is None or generated is None:
        return Outcome.MALFORMED, f"usage without token counts: {reply.usage}"[:200]
    if (prompt, generated) != (input_tokens, output_tokens):
        if generated < output_tokens and reply.finish_reason is None:
            return (
                Outcome.TRUNCATED,
                f"the stream ended at {generated} of {output_tokens} tokens without a finish reason",
            )
        return Outcome.WRONG_LENGTH, (
            f"asked for {input_tokens} + {output_tokens} tokens, usage says {prompt} + {generated} "
            f"(finish_reason {reply.finish_reason})"
        )
    if len(reply.event_ns) == 0:
        return Outcome.MALFORMED, "no event with choices: the time of the first token is not known"
    return Outcome.OK, ""


def _events(reply: Reply) -> str:
    count = len(reply.event_ns)
    return f"{count} event{'' if count == 1 else 's'} with choices"


def _loop_lag(late_ns: Sequence[int]) -> LoopLag:
    p50, p99, largest = (np.percentile(late_ns or [0], (50, 99, 100)) / 1e6).tolist()
    return LoopLag(p50=p50, p99=p99, max=largest, ticks=len(late_ns))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Disable garbage collection within, and exempt existing objects from it."""
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
        gc.unfreeze()


def _allow_open_files(count: int) -> None:
    """Raise the soft limit of open files if it is lower than `count`.

    :raises ValueError: if the hard limit is lower, too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        raise ValueError(
            f"the run needs {count} open files, but the limit is {hard}; raise it (ulimit -Hn) or lower --conc"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
