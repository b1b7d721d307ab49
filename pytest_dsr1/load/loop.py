"""Additions to the event loop: exact ticks, and signal handlers that may raise.

uvloop's timers count whole milliseconds, too coarse to measure the delay of a loop that handles a read within tens of
microseconds. A timerfd of the kernel becomes readable at an exact time and is then handled like the reads of responses,
so its delay is theirs.

Python runs a signal handler between any two instructions. While an event loop runs, an exception from a handler would
be raised in whatever callback is running, and the loop would log it and go on. Here handlers run as callbacks of their
own, and what they raise is passed on.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import struct
import sys
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from time import perf_counter_ns
from types import FrameType
from typing import Any, TypeVar

import uvloop

_Result = TypeVar("_Result")

_CLOCK_MONOTONIC = 1  # what perf_counter_ns reads on Linux
_TFD_TIMER_ABSTIME = 1

#: The signals that stop a test run: Ctrl-C, kill, a closed terminal, a time limit.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


class Ticker:
    """Ticks every `period_ns` until stopped.

    :param on_tick: Called with the delay in ns of each tick that was due; more than one if the loop was blocked for
        several periods.
    :param exact: Use a timer of the kernel, which only Linux has, in place of the loop's, which counts milliseconds.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        period_ns: int,
        on_tick: Callable[[list[int]], None],
        *,
        exact: bool = sys.platform == "linux",
    ) -> None:
        self._loop, self._period_ns, self._on_tick = loop, period_ns, on_tick
        self._due_ns = perf_counter_ns() + period_ns
        self._fd = _timerfd(self._due_ns, period_ns) if exact else None
        self._timer: asyncio.TimerHandle | None = None
        if self._fd is not None:
            loop.add_reader(self._fd, self._tick)
        else:
            self._timer = loop.call_later(period_ns / 1e9, self._tick)

    def stop(self) -> None:
        """Stop; no tick is handled after this."""
        if self._timer is not None:
            self._timer.cancel()
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None

    def _tick(self) -> None:
        if self._fd is not None:
            os.read(self._fd, 8)
        now = perf_counter_ns()
        late_ns = list(range(now - self._due_ns, -1, -self._period_ns))
        self._due_ns += len(late_ns) * self._period_ns
        if self._timer is not None:
            self._timer = self._loop.call_later(max(0, self._due_ns - now) / 1e9, self._tick)
        # None is due if the one that woke the loop was counted in the call before.
        if late_ns:
            self._on_tick(late_ns)


def _timerfd(first_ns: int, period_ns: int) -> int:
    """Make a descriptor that becomes readable at each tick.

    It comes from the C library: Python's `os` module has it from 3.13.

    :param first_ns: The first tick, on the clock of `perf_counter_ns`.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create failed")
    # struct itimerspec: the period, then the first expiry, each as seconds and nanoseconds.
    times = struct.pack("@llll", *divmod(period_ns, 10**9), *divmod(first_ns, 10**9))
    if libc.timerfd_settime(fd, _TFD_TIMER_ABSTIME, times, None) < 0:
        os.close(fd)
        raise OSError(ctypes.get_errno(), "timerfd_settime failed")
    return fd


def run_on_loop(main: Callable[[Callable[[BaseException], None]], Coroutine[Any, Any, _Result]]) -> _Result:
    """Run a coroutine on a new loop of uvloop; signal handlers may end it.

    Signals without a Python handler are left alone; so are all signals when this is not the main thread.

    :param main: Makes the coroutine. Its argument ends the run with an exception, which is raised here after the
        coroutine was cancelled, as is what a signal handler or a callback raises.
    """
    raised: list[BaseException] = []
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        loop = runner.get_loop()

        def stop(error: BaseException) -> None:
            raised.append(error)
            task.cancel()

        def call(handler: Callable[[int, FrameType | None], Any], number: int) -> None:
            try:
                handler(number, None)
            except BaseException as error:  # handlers stop a run by raising, e.g. KeyboardInterrupt or pytest's Exit
                stop(error)

        def on_loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            error = context.get("exception")
            # Connections handle errors of the network themselves; any other exception is a bug and ends the run.
            if not isinstance(error, OSError):
                stop(error if isinstance(error, BaseException) else RuntimeError(str(context.get("message"))))

        async def started() -> _Result:
            return await task

        task = loop.create_task(main(stop))
        loop.set_exception_handler(on_loop_error)
        in_main = threading.current_thread() is threading.main_thread()
        handlers = {number: handler for number in _SIGNALS if in_main and callable(handler := signal.getsignal(number))}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, partial(call, handler, number))
        try:
            result = runner.run(started())
        except asyncio.CancelledError:
            if not raised:
                raise
        finally:
            for number, handler in handlers.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)
    if raised:
        raise raised[0]
    return result
