"""The embedded engine for a test, launched as the plugin launches it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_dsr1.core.config import Point, Scenario
from pytest_dsr1.core.server import Served
from pytest_dsr1.servers import SilentReporter
from pytest_dsr1.servers.choose import reference_plan
from pytest_dsr1.servers.launched import LaunchedServer

#: Any point: the recipe has one command line for all.
POINT = Point(Scenario(1, 1), 1)


def engine(logs: Path, weights: Path | None = None, *, timeout_s: float = 60.0) -> LaunchedServer:
    """An engine that is not started yet.

    :param logs: Folder for its log.
    :param weights: Hugging Face folder to serve; None: the packaged model.
    """
    plan = reference_plan(weights)
    return LaunchedServer("the embedded engine", plan.launch_for, logs, SilentReporter(), timeout_s=timeout_s)


@contextmanager
def running_engine(logs: Path, weights: Path | None = None) -> Iterator[Served]:
    """An engine from its start to its end."""
    server = engine(logs, weights)
    try:
        yield server.serve(POINT)
    finally:
        server.stop()
