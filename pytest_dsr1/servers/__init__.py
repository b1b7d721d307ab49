"""One interface, and a variant for each way a server comes about."""

from __future__ import annotations

from typing import Protocol

from pytest_dsr1.core.server import Served

__all__ = ["Served", "Server", "ServerError"]


class ServerError(RuntimeError):
    """A server that cannot be used: what was tried, what was found, what to do."""


class Server(Protocol):
    """A server for the length of a session."""

    def start(self) -> Served:
        """Have it answer. Called once.

        :raises ServerError: It does not.
        """

    def flush_cache(self) -> None:
        """Empty its prefix cache before a measurement, where that can be done."""

    def stop(self) -> None:
        """Leave it as it was found. Called at least once, also when `start` failed."""
