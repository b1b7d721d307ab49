"""A server that somebody else runs: never started, stopped or reconfigured."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pytest_dsr1.core.config import Point
from pytest_dsr1.core.server import Served
from pytest_dsr1.servers import probe


@dataclass
class ExternalServer:
    """A running OpenAI-compatible server.

    :param model: The one to measure; None: the only one that it serves.
    :param insist: Whether `model` must be served (see `probe.inspect`).
    :param tp: `--tp` as typed: the number of GPUs where the server does not say it.
    :param flush: Whether its prefix cache may be emptied before each measurement.
    """

    url: str
    model: str | None = None
    insist: bool = True
    tp: int | None = None
    flush: bool = True

    def serve(self, point: Point | None = None) -> Served:
        return self.inspect()

    def inspect(self) -> Served:
        return probe.inspect(self.url, self.model, insist=self.insist, tp=self.tp)

    def flush_cache(self) -> None:
        if self.flush and (problem := probe.flush_cache(self.url)):
            warnings.warn(f"{self.url}: {problem}; its prefix cache may hold earlier prompts", stacklevel=2)

    def problem(self, patience_s: float) -> str:
        return probe.silence(self.url, patience_s)

    def stop(self) -> None:
        """Do nothing: its owner stops it."""

    def closing_lines(self, *, interrupted: bool) -> Sequence[str]:
        return ()


class BoundServer(ExternalServer):
    """The controller's server in an xdist worker.

    :param served: What the controller found.
    """

    def __init__(self, served: Served, flush: bool = True) -> None:
        super().__init__(served.url, served.model, flush=flush)
        self.served = served

    def inspect(self) -> Served:
        before, found = self.served, super().inspect()
        # Only the controller knows these.
        found = replace(found, engine=before.engine, launch=before.launch, concurrent_servers=before.concurrent_servers)
        if found.num_gpus is None:
            found = replace(found, num_gpus=before.num_gpus, num_gpus_source=before.num_gpus_source)
        return found
