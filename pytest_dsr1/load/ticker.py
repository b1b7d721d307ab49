"""A periodic callback that knows exactly how late it is.

uvloop's timers count whole milliseconds, too coarse to meter a loop whose errors are tens of microseconds. A timer of
the kernel's becomes readable at an exact time, and is then handled, or not, like the reads that it stands for.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import sys
from collections.abc import Callable
from time import perf_counter_ns
from typing import Protocol

#: Called with how late each tick that fell due was handled, in ns; more than one where the loop stood still.
OnTick = Callable[[list[int]], None]

_CLOCK_MONOTONIC = 1  # what perf_counter_ns reads on Linux
_TFD_NONBLOCK_CLOEXEC = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)
_TFD_TIMER_ABSTIME = 1


class Ticker(Protocol):
    """A running ticker."""

    def stop(self) -> None:
        """No tick after this."""


def start_ticker(loop: asyncio.AbstractEventLoop, period_ns: int, on_tick: OnTick) -> Ticker:
    """Tick every `period_ns` until stopped: exactly on Linux, to the millisecond elsewhere."""
    return _KernelTicker(loop, period_ns, on_tick) if sys.platform == "linux" else _LoopTicker(loop, period_ns, on_tick)


class _KernelTicker:
    """Ticks by a timerfd, which Python has from 3.13 on; the C library always had it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, period_ns: int, on_tick: OnTick) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._loop, self._period_ns, self._on_tick = loop, period_ns, on_tick
        self._fd = libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._due = perf_counter_ns() + period_ns
        # struct itimerspec: period, then the first time, each as seconds and nanoseconds.
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
    """Ticks by the loop's own timer."""

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
