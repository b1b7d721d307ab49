"""One interface, and a variant for each way a server comes about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pytest_dsr1.core.config import Point
from pytest_dsr1.core.server import Served

__all__ = ["Served", "Server", "ServerError", "Voice"]


class ServerError(RuntimeError):
    """A server that cannot be used: what was tried, what was found, what to do."""


class Server(Protocol):
    """A server for the length of a session. Nothing of it is called while a load is measured."""

    def serve(self, point: Point | None = None) -> Served:
        """Have it answer, as `point` needs it, and say what it is.

        :param point: What is measured next; a launched server may have to be started anew for it.
        :raises ServerError: It does not answer, now or any more.
        """

    def inspect(self) -> Served:
        """What it is now, by its own word.

        :raises ServerError: It does not answer.
        """

    def flush_cache(self) -> None:
        """Empty its prefix cache before a measurement, where that can be done."""

    def problem(self, patience_s: float) -> str:
        """Why it cannot go on: it has ended, or does not answer; empty if it can.

        :param patience_s: Longest wait for an answer.
        """

    def stop(self) -> None:
        """Leave it as it was found. Called at least once, also when it never answered."""

    def farewell(self, *, interrupted: bool) -> Sequence[str]:
        """What its user may want to know of it at the end, in lines."""


class Voice(Protocol):
    """Who tells the user what happens to a server."""

    def line(self, text: str) -> None:
        """Say something that stays to be read."""

    def progress(self, text: str) -> None:
        """Say how far something is; the next one takes its place."""


class Silence:
    """Nobody is told."""

    def line(self, text: str) -> None: ...

    def progress(self, text: str) -> None: ...


def joined(lines: Sequence[str]) -> str:
    """Lines of a log below an error's own."""
    return "".join(f"\n    {line}" for line in lines)
