"""CONC slots, each with one connection and at most one request in flight.

The two phases, warm-up and measured, use the same slots. The callback that sees the end of a response writes the slot's
next request: no task, queue or wake-up lies between. A tick checks deadlines, reports progress and tidies recordings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Literal, TypeAlias

from pytest_dsr1.core.config import LoadLimits, Point
from pytest_dsr1.core.samples import Outcome
from pytest_dsr1.load.client import Connection, Dialer
from pytest_dsr1.load.loop import Ticker
from pytest_dsr1.load.prompts import Request
from pytest_dsr1.load.recording import Recording, RecordingStore

PhaseName: TypeAlias = Literal["warm-up", "measured"]

#: Period of the tick. A period of 2 ms doubled a client's CPU time; the cost of 20 ticks a second is not measurable.
TICK_NS = 50_000_000
#: Shortest time between two progress reports.
PROGRESS_NS = 200_000_000
#: Longest time between two checks of the deadlines; shorter deadlines are checked 20 times within their length.
DEADLINE_CHECK_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """Progress of a phase.

    :param done: Requests that have ended.
    :param total: Requests of the phase.
    :param tokens: Tokens generated so far; an estimate that counts each read of a stream in flight as one token.
    :param elapsed_s: Seconds since the phase began.
    """

    phase: PhaseName
    done: int
    total: int
    tokens: int
    elapsed_s: float


@dataclass(slots=True)
class Exchange:
    """One request and the recording of its response.

    :param idle_ns: From the end of the slot's previous response to the sending; 0 for the first request of a phase.
    :param retried: Whether the request was sent again, on a new connection.
    """

    index: int
    slot: int
    request: Request
    idle_ns: int
    sent_ns: int = 0
    recording: Recording = field(default_factory=Recording)
    retried: bool = False
    status: int = 0

    @property
    def failed(self) -> bool:
        """Whether the request failed, as far as is known without parsing the stream."""
        return self.status != 200 or self.recording.ending is not Outcome.OK


class _Slot:
    """One of the CONC places for a request in flight."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.connection: Connection | None = None
        self.exchange: Exchange | None = None
        self.ended_ns = 0


class Phase:
    """A phase: requests to be sent, and requests that have ended.

    :ivar ended: In the order of their ends; in the order of sending when the phase is over.
    :ivar late_ns: The delay of each tick.
    """

    def __init__(self, name: PhaseName, requests: Sequence[Request], over: asyncio.Future[None]) -> None:
        self.name = name
        self.total = len(requests)
        self.queue = enumerate(requests)
        self.ended: list[Exchange] = []
        self.tokens = 0
        self.late_ns: list[int] = []
        self.began_ns = perf_counter_ns()
        self.told_ns = self.began_ns
        self.over = over


class Slots:
    """The slots of one point.

    :param max_failures: With more failed requests than this, over both phases, the run gives up.
    :param on_error: Called with an exception that ends the run; it must cancel the task that runs the phases.
    """

    def __init__(
        self,
        dialer: Dialer,
        point: Point,
        limits: LoadLimits,
        store: RecordingStore,
        *,
        max_failures: int,
        on_progress: Callable[[LoadProgress], None] | None,
        on_error: Callable[[BaseException], None],
    ) -> None:
        self.reconnects = 0
        self.aborted = ""
        """Why the run gave up; empty while it has not."""
        self._loop = asyncio.get_running_loop()
        self._dialer = dialer
        self._slots = [_Slot(number) for number in range(point.conc)]
        self._idle_timeout_s, self._request_timeout_s = limits.idle_timeout_s, limits.request_timeout_for(point.osl)
        self._check_ns = min(DEADLINE_CHECK_NS, int(min(self._idle_timeout_s, self._request_timeout_s) * 1e9 / 20))
        self._checked_ns = 0
        self._max_failures = max_failures
        self._failures = 0
        self._store = store
        self._on_progress = on_progress
        self._on_error = on_error
        self._phase: Phase | None = None
        self._dialling: set[asyncio.Task[None]] = set()

    async def connect(self) -> None:
        """Open a connection for every slot without one; on failure set `aborted`."""
        # A connection that the server has closed is known to be closed only after an iteration of the loop.
        await asyncio.sleep(0.001)
        bare = [slot for slot in self._slots if slot.connection is None or not slot.connection.usable]
        for slot in bare[:1]:
            # The first one alone: it resolves the server's name and finds the address that works for all others.
            await self._dial(slot)
        if not self.aborted:
            await asyncio.gather(*(self._dial(slot) for slot in bare[1:]))

    async def run(self, name: PhaseName, requests: Sequence[Request]) -> Phase:
        """Send all requests, CONC at a time, and wait until all have ended.

        A slot sends its next request as soon as its previous one has ended.
        """
        phase = self._phase = Phase(name, requests, self._loop.create_future())
        ticker = Ticker(self._loop, TICK_NS, self._tick)
        try:
            for slot in self._slots:
                slot.ended_ns = 0
                self._send_next(slot, phase)
            await phase.over
        finally:
            ticker.stop()
            self._phase = None
        self._tell(phase, perf_counter_ns())
        phase.ended.sort(key=lambda exchange: exchange.index)
        return phase

    async def close(self) -> None:
        """Drop every connection and the requests in flight."""
        for task in self._dialling:
            task.cancel()
        for slot in self._slots:
            if slot.connection is not None:
                slot.connection.close()
        # The loop closes the sockets in its next iteration.
        await asyncio.sleep(0)

    def give_up(self, why: str) -> None:
        """End the run: send no more requests and drop those in flight."""
        self.aborted = self.aborted or why
        if self._phase is not None and not self._phase.over.done():
            self._phase.over.set_result(None)

    # The hot path

    def _send_next(self, slot: _Slot, phase: Phase) -> None:
        index, request = next(phase.queue, (-1, None))
        if request is None or self.aborted:
            slot.exchange = None
            return
        exchange = slot.exchange = Exchange(index, slot.number, request, 0)
        connection = slot.connection
        if connection is not None and connection.usable:
            exchange.sent_ns = connection.start(request, exchange.recording)
            exchange.idle_ns = exchange.sent_ns - slot.ended_ns if slot.ended_ns else 0
        else:
            self._redial(slot, exchange)

    def _ended(self, slot: _Slot, now: int) -> None:
        exchange, phase, connection = slot.exchange, self._phase, slot.connection
        if exchange is None or phase is None or connection is None:
            return
        recording = exchange.recording
        if (
            recording.ending is Outcome.CONNECTION_LOST
            and not recording.reads
            and connection.served > 1
            and not exchange.retried
        ):
            # HTTP allows a server to close a kept-alive connection at any time, also while a request is being sent.
            exchange.retried = True
            recording.ending, recording.note = None, ""
            self._redial(slot, exchange)
            return
        slot.ended_ns = now
        exchange.status = connection.status
        self._send_next(slot, phase)
        phase.ended.append(exchange)
        phase.tokens += exchange.request.output_tokens
        self._store.add(recording)
        if exchange.failed:
            self._count_failure(exchange)
        if len(phase.ended) == phase.total and not phase.over.done():
            phase.over.set_result(None)

    # Off the hot path

    def _count_failure(self, exchange: Exchange) -> None:
        self._failures += 1
        if self._failures > self._max_failures:
            what = f"HTTP {exchange.status}" if exchange.status not in (0, 200) else exchange.recording.note
            self.give_up(f"{self._failures} requests failed, {self._max_failures} are allowed; last: {what}")

    def _redial(self, slot: _Slot, exchange: Exchange) -> None:
        task = self._loop.create_task(self._dial_and_send(slot, exchange))
        self._dialling.add(task)
        task.add_done_callback(self._dialled)

    def _dialled(self, task: asyncio.Task[None]) -> None:
        self._dialling.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_error(error)

    async def _dial_and_send(self, slot: _Slot, exchange: Exchange) -> None:
        await self._dial(slot)
        if self.aborted or slot.connection is None or slot.exchange is not exchange:
            return
        sent_ns = slot.connection.start(exchange.request, exchange.recording)
        if not exchange.retried:
            exchange.sent_ns = sent_ns
            exchange.idle_ns = sent_ns - slot.ended_ns if slot.ended_ns else 0

    async def _dial(self, slot: _Slot) -> None:
        renewed = slot.connection is not None
        slot.connection = None
        try:
            slot.connection = await self._dialer.open(lambda now: self._ended(slot, now))
        except OSError as error:
            self.give_up(f"cannot connect to {self._dialer.target.authority}: {error or type(error).__name__}")
        else:
            self.reconnects += renewed

    def _tick(self, late_ns: list[int]) -> None:
        phase = self._phase
        if phase is None:
            return
        try:
            phase.late_ns += late_ns
            now = perf_counter_ns()
            if now - self._checked_ns >= self._check_ns:
                self._checked_ns = now
                self._check_deadlines(phase, now)
            if now - phase.told_ns >= PROGRESS_NS:
                phase.told_ns = now
                self._tell(phase, now)
            self._store.tidy()
        except Exception as error:  # the loop would only log it, and the run would go on without this tick
            self._on_error(error)

    def _check_deadlines(self, phase: Phase, now: int) -> None:
        in_flight = [(slot, one) for slot in self._slots if (one := slot.exchange) is not None and one.sent_ns]
        overdue, idle = [], 0
        for slot, exchange in in_flight:
            stamps, sent_ns = exchange.recording.stamps, exchange.sent_ns
            if now - (stamps[-1] if stamps else sent_ns) > self._idle_timeout_s * 1e9:
                idle += 1
                overdue.append((slot.connection, f"no byte for {self._idle_timeout_s:g} s"))
            elif now - sent_ns > self._request_timeout_s * 1e9:
                overdue.append((slot.connection, f"not complete within {self._request_timeout_s:g} s"))
        if phase.total > len(phase.ended) + len(in_flight) and idle == len(in_flight):
            self.give_up(f"no byte on any connection for {self._idle_timeout_s:g} s")
        for connection, note in overdue:
            if connection is not None:
                connection.give_up(Outcome.TIMED_OUT, note)

    def _tell(self, phase: Phase, now: int) -> None:
        if self._on_progress is None:
            return
        in_flight = (slot.exchange for slot in self._slots if slot.exchange is not None)
        tokens = phase.tokens + sum(min(len(one.recording.stamps), one.request.output_tokens) for one in in_flight)
        elapsed_s = (now - phase.began_ns) / 1e9
        self._on_progress(LoadProgress(phase.name, len(phase.ended), phase.total, tokens, elapsed_s))
