"""Signal handlers that may raise, while an event loop runs.

Python runs a handler between any two instructions: an exception from it would surface in whatever callback happens to
be running, where the loop logs it and goes on. Here handlers are callbacks of their own, and what they raise is kept.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

#: Those that people and time limits stop a test run with.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


@contextmanager
def signals_in(loop: asyncio.AbstractEventLoop, on_exception: Callable[[BaseException], None]) -> Iterator[None]:
    """Run the process's own signal handlers as callbacks of `loop`; what they raise goes to `on_exception`.

    Signals that have no Python handler, and threads other than the main one, are left alone.
    """
    handlers: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        handlers = {number: handler for number, handler in handlers.items() if callable(handler)}

    def call(handler: Callable[[int, FrameType | None], Any], number: int) -> None:
        try:
            handler(number, None)
        except BaseException as error:  # a handler's way to stop everything: KeyboardInterrupt, pytest's Exit
            on_exception(error)

    for number, handler in handlers.items():
        loop.add_signal_handler(number, partial(call, handler, number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
