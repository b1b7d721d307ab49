"""How far a measurement is: one live line on a terminal, one plain line a minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import pytest

from pytest_dsr1.core.config import Point
from pytest_dsr1.core.text import duration
from pytest_dsr1.load import slots

#: Seconds between two looks of the live line, and between two plain lines.
LIVE_PERIOD_S = 0.2
PLAIN_PERIOD_S = 60.0


class Progress(Protocol):
    """What a measurement tells of itself."""

    @contextmanager
    def accuracy(self, point: Point) -> Iterator[Callable[[int, int], None]]:
        """Called with requests done, requests in all."""

    @contextmanager
    def load(self, point: Point) -> Iterator[Callable[[slots.Progress], None]]:
        """Called with the load generator's own progress."""


class Silent:
    """In an xdist worker, which shares the controller's terminal, nothing is said."""

    @contextmanager
    def accuracy(self, point: Point) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: None

    @contextmanager
    def load(self, point: Point) -> Iterator[Callable[[slots.Progress], None]]:
        yield lambda progress: None


class Terminal:
    """Says it on pytest's terminal, beside the name of the running test."""

    def __init__(self, config: pytest.Config, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._live = False
        self._due = 0.0
        self._waiting = False

    @contextmanager
    def accuracy(self, point: Point) -> Iterator[Callable[[int, int], None]]:
        began = self._begin()

        def report(done: int, total: int) -> None:
            self._say(f"{point.id} ", lambda: f"accuracy {describe(done, total, self._clock() - began)}")

        try:
            yield report
        finally:
            self._end()

    @contextmanager
    def load(self, point: Point) -> Iterator[Callable[[slots.Progress], None]]:
        self._begin()

        def report(progress: slots.Progress) -> None:
            self._say(
                f"{point.id} ",
                lambda: (
                    f"{progress.phase}: {describe(progress.done, progress.total, progress.elapsed_s, progress.tokens)}"
                ),
            )

        try:
            yield report
        finally:
            self._end()

    # -- servers.Reporter ------------------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        """Say something that stays to be read."""
        self._end()
        self._write_plain(text)

    def progress(self, text: str) -> None:
        """How far a server's start is."""
        if not self._waiting:
            self._waiting = True
            self._begin()
        self._say("", lambda: text)

    def _begin(self) -> float:
        # Inside a test sys.stdout is pytest's, unless capturing is off.
        with self._uncaptured():
            # Without pytest's reporter there is no line to write behind.
            self._live = sys.stdout.isatty() and self._config.pluginmanager.has_plugin("terminalreporter")
        now = self._clock()
        self._due = now if self._live else now + PLAIN_PERIOD_S
        return now

    def _say(self, name: str, text: Callable[[], str]) -> None:
        now = self._clock()
        if now < self._due:
            return
        if self._live:
            self._due = now + LIVE_PERIOD_S
            self._write_live(text())
        else:
            self._due = now + PLAIN_PERIOD_S
            self._write_plain(f"{name}{text()}")

    def _end(self) -> None:
        self._waiting = False
        if self._live:
            self._write_live("")

    def _write_live(self, text: str) -> None:
        """Write behind the running test's name and go back, so that its outcome overwrites the text."""
        writer = self._config.get_terminal_writer()
        with self._uncaptured():
            room = max(writer.fullwidth - writer.width_of_current_line - 2, 0)
            sys.stdout.write(f"\x1b7 {text[:room]}\x1b[K\x1b8")
            sys.stdout.flush()

    def _write_plain(self, text: str) -> None:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is None:
            return
        with self._uncaptured():
            reporter.ensure_newline()
            reporter.write_line(text)

    @contextmanager
    def _uncaptured(self) -> Iterator[None]:
        capture = self._config.pluginmanager.get_plugin("capturemanager")
        if capture is None:
            yield
            return
        with capture.global_and_fixture_disabled():
            yield


def describe(done: int, total: int, elapsed_s: float, tokens: int | None = None) -> str:
    """Requests done, tokens per second, time left; the latter two once they can be known."""
    words = [f"{done:,}/{total:,} requests"]
    if tokens is not None and elapsed_s > 0:
        words.append(f"{tokens / elapsed_s:,.0f} tokens/s")
    if 0 < done < total:
        words.append(f"{duration(elapsed_s * (total - done) / done)} left")
    return ", ".join(words)
