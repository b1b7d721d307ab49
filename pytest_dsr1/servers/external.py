"""A server that somebody else runs: used, and never started, stopped or reconfigured."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from pytest_dsr1.core.server import Served
from pytest_dsr1.servers import probe


@dataclass
class ExternalServer:
    """A running OpenAI-compatible server.

    :param insist: Whether `model` must be among those served (see `probe.inspect`).
    :param flush: Whether its prefix cache may be emptied before each measurement.
    """

    url: str
    model: str | None = None
    insist: bool = True
    tp: int | None = None
    flush: bool = True

    def start(self) -> Served:
        return probe.inspect(self.url, self.model, insist=self.insist, tp=self.tp)

    def flush_cache(self) -> None:
        if self.flush and (problem := probe.flush_cache(self.url)):
            warnings.warn(f"{self.url}: {problem}; its prefix cache may hold earlier prompts", stacklevel=2)

    def stop(self) -> None:
        """It is not ours to stop."""
