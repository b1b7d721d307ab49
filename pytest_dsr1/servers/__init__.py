"""A server for a session: one interface, however the server came about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pytest_dsr1.core.config import Point
from pytest_dsr1.core.server import Served

__all__ = ["Reporter", "Served", "Server", "ServerError", "SilentReporter"]


class ServerError(RuntimeError):
    """A server that cannot be used: what was tried, what was found, what to do."""


class Server(Protocol):
    """A server for a session; nothing of it is called while a load is measured."""

    def serve(self, point: Point | None = None) -> Served:
        """Make sure that it answers, started as `point` needs it, and say what it is.

        :param point: What is measured next; a launched server may have to be restarted for it.
        :raises ServerError: It does not answer.
        """

    def inspect(self) -> Served:
        """Ask the server what it is now.

        :raises ServerError: It does not answer.
        """

    def flush_cache(self) -> None:
        """Empty its prefix cache before a measurement, where that is possible."""

    def problem(self, patience_s: float) -> str:
        """Why it cannot go on: it has ended, or does not answer; empty if it can go on.

        :param patience_s: Longest wait for an answer, in seconds.
        """

    def stop(self) -> None:
        """Leave it as it was found. Called at least once, even if it never answered."""

    def closing_lines(self, *, interrupted: bool) -> Sequence[str]:
        """What its user should know at the end of the session, in lines."""


class Reporter(Protocol):
    """Tells the user what happens to a server."""

    def line(self, text: str) -> None:
        """Print a line that stays."""

    def progress(self, text: str) -> None:
        """Show the progress of something; the next call replaces the text."""


class SilentReporter:
    """A reporter that prints nothing."""

    def line(self, text: str) -> None: ...

    def progress(self, text: str) -> None: ...
