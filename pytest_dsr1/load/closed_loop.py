"""One point under load: warm-up, drained, then the measured window, then the samples of it.

Everything that can be done before the clock starts or after it stops is.
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
from pytest_dsr1.core.samples import LoadRun, LoopLag, RequestSample
from pytest_dsr1.load.client import Dialer
from pytest_dsr1.load.prompts import PointPrompts
from pytest_dsr1.load.recording import RecordingStore
from pytest_dsr1.load.requests import Request, Target, render
from pytest_dsr1.load.signals import signals_in
from pytest_dsr1.load.slots import Exchange, PhaseRun, Progress, Slots
from pytest_dsr1.load.stream import count_in, read_reply
from pytest_dsr1.load.verdict import judge

__all__ = ["Progress", "run_point"]

#: Failed requests that end a run, as a share of those to be measured; CONC of them are let pass in any case.
MAX_FAILED_SHARE = 0.05
#: Files that may be open beside the connections.
_SPARE_FILES = 256


def run_point(
    url: str,
    model: str,
    point: Point,
    prompts: PointPrompts,
    limits: LoadLimits,
    *,
    on_progress: Callable[[Progress], None] | None = None,
) -> LoadRun:
    """Load the server at `url` with `point.conc` requests at a time, and return what was seen.

    Requests that fail become samples that say so. A run that cannot become valid any more, or whose server cannot be
    reached, ends early and says why. What a signal's handler or `on_progress` raises ends it too, and is raised here,
    every connection closed.

    :param url: Of the server, without `/v1`.
    :param on_progress: Called at most 5 times a second, and at the end of each phase.
    :raises ValueError: if `url` is not that of a server.
    """
    target = Target.from_url(url)
    requests = render(target, model, prompts.vocab_size, prompts)
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
    """The event loop of one point, and what is left when it is over."""

    def __init__(
        self,
        target: Target,
        point: Point,
        limits: LoadLimits,
        store: RecordingStore,
        on_progress: Callable[[Progress], None] | None,
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
        """Run both phases on an event loop of their own."""
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
        """Look into what was read, and sum up."""
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
                    # The pause may have been long enough for the server to close idle connections.
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
        # What the network does, the connections are told; anything else is a mistake of ours, never to be hidden.
        if not isinstance(error, OSError):
            self._stop(error if isinstance(error, BaseException) else RuntimeError(str(context.get("message"))))


def _sample(exchange: Exchange, store: RecordingStore) -> RequestSample:
    """What a finished request's recording says; the recording is emptied."""
    recording, request = exchange.recording, exchange.request
    assert recording.ending is not None
    reply = read_reply(store.reads(recording), recording.stamps)
    recording.reads.clear()
    outcome, detail = judge(reply, recording.ending, recording.note, request.input_tokens, request.output_tokens)
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


def _loop_lag(late_ns: Sequence[int]) -> LoopLag:
    if not late_ns:
        return LoopLag(p50_ms=0.0, p99_ms=0.0, max_ms=0.0, ticks=0)
    p50_ms, p99_ms, max_ms = (float(value) / 1e6 for value in np.percentile(late_ns, (50, 99, 100)))
    return LoopLag(p50_ms=p50_ms, p99_ms=p99_ms, max_ms=max_ms, ticks=len(late_ns))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No garbage collection within, and less for it to look at afterwards."""
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
    """Raise the soft limit of open files where it is lower than `count`.

    :raises ValueError: if the hard limit is, too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        raise ValueError(
            f"{count} open files are needed, and the limit is {hard}; raise it (ulimit -Hn) or lower --conc"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
