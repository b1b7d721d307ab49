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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from time import perf_counter_ns
from types import FrameType
from typing import Any, Protocol

#: Called with the delay in ns of each tick that was due; more than one if the loop was blocked for several periods.
OnTick = Callable[[list[int]], None]

_CLOCK_MONOTONIC = 1  # what perf_counter_ns reads on Linux
_TFD_NONBLOCK_CLOEXEC = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)
_TFD_TIMER_ABSTIME = 1

#: The signals that stop a test run: Ctrl-C, kill, a closed terminal, a time limit.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


class Ticker(Protocol):
    """A running periodic timer."""

    def stop(self) -> None:
        """Stop; no tick is handled after this."""


def start_ticker(loop: asyncio.AbstractEventLoop, period_ns: int, on_tick: OnTick) -> Ticker:
    """Tick every `period_ns` until stopped.

    Exact on Linux, rounded to milliseconds elsewhere.
    """
    return _KernelTicker(loop, period_ns, on_tick) if sys.platform == "linux" else _LoopTicker(loop, period_ns, on_tick)


class _KernelTicker:
    """Ticks by a timerfd, through the C library: the `os` module has it from 3.13."""

    def __init__(self, loop: asyncio.AbstractEventLoop, period_ns: int, on_tick: OnTick) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._loop, self._period_ns, self._on_tick = loop, period_ns, on_tick
        self._fd = libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._due = perf_counter_ns() + period_ns
        # struct itimerspec: the period, then the first expiry, each as seconds and nanoseconds.
        times = struct.pack("@llll", *divmod(period_ns, 10**9), *divmod(self._due, 10**9))
        if libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, times, None) < 0:
            os.close(self._fd)
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")
        loop.add_reader(self._fd, self._tick)

    def stop(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _tick(self) -> None:
        now = perf_counter_ns()
        count = int.from_bytes(os.read(self._fd, 8), sys.byteorder)
        late = [now - self._due - place * self._period_ns for place in range(count)]
        self._due += count * self._period_ns
        self._on_tick(late)


class _LoopTicker:
    """Ticks by the loop's own timer, for systems without timerfd."""

    def __init__(self, loop: asyncio.AbstractEventLoop, period_ns: int, on_tick: OnTick) -> None:
        self._loop, self._period_ns, self._on_tick = loop, period_ns, on_tick
        self._due = perf_counter_ns() + period_ns
        self._timer = loop.call_later(period_ns / 1e9, self._tick)

    def stop(self) -> None:
        self._timer.cancel()

    def _tick(self) -> None:
        now = perf_counter_ns()
        late = list(range(now - self._due, -1, -self._period_ns)) or [0]
        self._due += len(late) * self._period_ns
        self._timer = self._loop.call_later(max(0, self._due - now) / 1e9, self._tick)
        self._on_tick(late)


@contextmanager
def signals_in(loop: asyncio.AbstractEventLoop, on_exception: Callable[[BaseException], None]) -> Iterator[None]:
    """Run the process's signal handlers as callbacks of `loop`.

    Signals without a Python handler are left alone; so are all signals when this is not the main thread.

    :param on_exception: Called with what a handler raises.
    """
    handlers: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        handlers = {number: handler for number, handler in handlers.items() if callable(handler)}

    def call(handler: Callable[[int, FrameType | None], Any], number: int) -> None:
        try:
            handler(number, None)
        except BaseException as error:  # handlers stop a run by raising, e.g. KeyboardInterrupt or pytest's Exit
            on_exception(error)

    for number, handler in handlers.items():
        loop.add_signal_handler(number, partial(call, handler, number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
