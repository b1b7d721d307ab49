"""Measures one point under load: warm-up, measured window, then samples.

All work that can be done before or after the measured window is done then.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import uvloop

from pytest_dsr1.core.config import LoadLimits, Point
from pytest_dsr1.core.samples import LoadRun, LoopLag, Outcome, RequestSample
from pytest_dsr1.load.client import Dialer
from pytest_dsr1.load.loop import signals_in
from pytest_dsr1.load.prompts import PointPrompts
from pytest_dsr1.load.recording import Ending, RecordingStore
from pytest_dsr1.load.requests import Request, Target, render_requests
from pytest_dsr1.load.slots import Exchange, LoadProgress, PhaseRun, Slots
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
    requests = render_requests(target, model, prompts.vocab_size, prompts)
    count = len(prompts.warmups)
    _allow_open_files(point.conc + _SPARE_FILES)
    store = RecordingStore()
    try:
        run = _Run(target, point, limits, store, on_progress)
        run.load(requests[:count], requests[count:])
        return run.result(len(prompts.measured))
    finally:
        store.close()


class _Run:
    """The run of one point, and its results."""

    def __init__(
        self,
        target: Target,
        point: Point,
        limits: LoadLimits,
        store: RecordingStore,
        on_progress: Callable[[LoadProgress], None] | None,
    ) -> None:
        self._target, self._point, self._limits = target, point, limits
        self._store, self._on_progress = store, on_progress
        self._task: asyncio.Task[None] | None = None
        self._stopped_by: BaseException | None = None
        self._warmups: Sequence[RequestSample] = ()
        self._window = PhaseRun((), ())
        self._cpu_s = 0.0
        self._reconnects = 0
        self._aborted = ""

    def load(self, warmups: Sequence[Request], measured: Sequence[Request]) -> None:
        """Run both phases on a new event loop."""
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            loop = runner.get_loop()
            loop.set_exception_handler(self._on_loop_error)
            with signals_in(loop, self._stop):
                try:
                    runner.run(self._phases(warmups, measured))
                except asyncio.CancelledError:
                    if self._stopped_by is None:
                        raise
        if self._stopped_by is not None:
            raise self._stopped_by

    def result(self, num_prompts: int) -> LoadRun:
        """Parse the recorded responses and summarise the run."""
        first_ns = min((exchange.sent_ns for exchange in self._window.ended), default=0)
        last_ns = max(
            (exchange.recording.stamps[-1] for exchange in self._window.ended if exchange.recording.stamps),
            default=first_ns,
        )
        return LoadRun(
            samples=self._samples(self._window.ended),
            warmups=self._warmups,
            concurrency=self._point.conc,
            num_prompts=num_prompts,
            cpu_s=self._cpu_s,
            wall_s=(last_ns - first_ns) / 1e9,
            loop_lag=_loop_lag(self._window.late_ns),
            reconnects=self._reconnects,
            aborted=self._aborted,
        )

    async def _phases(self, warmups: Sequence[Request], measured: Sequence[Request]) -> None:
        self._task = asyncio.current_task()
        point, limits = self._point, self._limits
        slots = Slots(
            Dialer(self._target),
            point.conc,
            idle_timeout_s=limits.idle_timeout_s,
            request_timeout_s=limits.request_timeout_for(point.osl),
            max_failures=max(point.conc, int(MAX_FAILED_SHARE * len(measured))),
            store=self._store,
            on_progress=self._on_progress,
            on_error=self._stop,
        )
        try:
            await slots.connect()
            if warmups and not slots.aborted:
                warm = await slots.run("warm-up", warmups)
                self._warmups = self._samples(warm.ended)
                if not slots.aborted and not any(sample.ok for sample in self._warmups):
                    why = self._warmups[0]
                    slots.give_up(f"none of {len(warmups)} warm-up requests succeeded; {why.outcome}: {why.detail}")
            if not slots.aborted:
                with _undisturbed():
                    # The server may have closed connections that were idle during the garbage collection.
                    await slots.connect()
                    if not slots.aborted:
                        began_s = time.process_time()
                        self._window = await slots.run("measured", measured)
                        self._cpu_s = time.process_time() - began_s
        finally:
            self._reconnects, self._aborted = slots.reconnects, slots.aborted
            await slots.close()

    def _samples(self, exchanges: Sequence[Exchange]) -> tuple[RequestSample, ...]:
        return tuple(_sample(exchange, self._store) for exchange in exchanges)

    def _stop(self, error: BaseException) -> None:
        self._stopped_by = self._stopped_by or error
        if self._task is not None:
            self._task.cancel()

    def _on_loop_error(self, _loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        error = context.get("exception")
        # Connections handle errors of the network themselves; any other exception is a bug and ends the run.
        if not isinstance(error, OSError):
            self._stop(error if isinstance(error, BaseException) else RuntimeError(str(context.get("message"))))


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


def outcome_of(reply: Reply, ending: Ending, note: str, input_tokens: int, output_tokens: int) -> tuple[Outcome, str]:
    """How a request ended, with the cause of a failure in one line.

    An error that the server reported takes precedence over the way the connection ended: an error event that is
    followed by a reset is a stream error.

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
    if ending is not Ending.COMPLETE:
        return _BROKEN[ending], f"{note or ending.name.lower()} after {_events(reply)}"
    return _outcome_of_complete(reply, input_tokens, output_tokens)


_BROKEN = {
    Ending.EOF: Outcome.TRUNCATED,
    Ending.LOST: Outcome.CONNECTION_LOST,
    Ending.NOT_HTTP: Outcome.MALFORMED,
    Ending.IDLE: Outcome.TIMED_OUT,
    Ending.DEADLINE: Outcome.TIMED_OUT,
}


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
