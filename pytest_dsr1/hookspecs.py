"""The hooks of pytest-dsr1, for a conftest.py or a plugin of your own.

A conftest.py that may also be used where pytest-dsr1 is not installed marks its implementations with
`@pytest.hookimpl(optionalhook=True)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_dsr1.core.config import Point, SweepConfig
    from pytest_dsr1.core.evidence import Check
    from pytest_dsr1.core.result import Result
    from pytest_dsr1.core.server import Served
    from pytest_dsr1.core.summary import Batch, PointState
    from pytest_dsr1.preflight import PreflightCheck


@pytest.hookspec(firstresult=True)
def pytest_dsr1_server(config: pytest.Config, sweep: SweepConfig) -> Served | None:
    """Provide the server that is measured: return it, or None to provide none.

    Called once, in the process that owns the session, before anything is measured, and only if --server-url was not
    typed. The server must answer; it is measured like one that --server-url names. Stop it in `pytest_unconfigure`.

    Example::

        def pytest_dsr1_server(config, sweep):
            return Served(url="http://10.0.0.5:8000", model="llama")
    """


@pytest.hookspec(firstresult=True)
def pytest_dsr1_refuse_server(config: pytest.Config, why: str, reference: bool, served: Served | None) -> str | None:
    """Refuse the chosen server: return the reason in one line.

    Called when the server is chosen, and again when it has answered.

    :param why: Which server was chosen, and why.
    :param reference: Whether it is the embedded engine.
    :param served: What the server says of itself; None before it answered.
    """


@pytest.hookspec
def pytest_dsr1_preflight(config: pytest.Config, sweep: SweepConfig) -> Iterable[PreflightCheck] | None:
    """Check what would fail later, before a server is started.

    A check that did not pass ends the session.
    """


@pytest.hookspec
def pytest_dsr1_checks(config: pytest.Config) -> Iterable[Check] | None:
    """Add checks of a result: functions from `Evidence` to findings.

    A finding that rejects fails the point.

    Example::

        def throughput_is_plausible(evidence):
            if (evidence.number("output_throughput") or 0) > 1e6:
                yield reject("own", "more than a million tokens per second")

        def pytest_dsr1_checks(config):
            return [throughput_is_plausible]
    """


@pytest.hookspec
def pytest_dsr1_load_started(config: pytest.Config, point: Point, served: Served) -> None:
    """The requests of a point are about to be sent.

    Called in the process that measures.
    """


@pytest.hookspec
def pytest_dsr1_load_ended(config: pytest.Config, point: Point, served: Served) -> Mapping[str, object] | None:
    """The last response of a point has arrived.

    Called in the process that measures.

    :return: What is added to the result, under `extra`: one object for each name.
    """


@pytest.hookspec
def pytest_dsr1_batch_started(config: pytest.Config, batch: Batch, folder: Path) -> None:
    """A batch folder exists. Called in the process that owns the session."""


@pytest.hookspec
def pytest_dsr1_point_ended(config: pytest.Config, point: Point, state: PointState, result: Result | None) -> None:
    """A point has ended, and its state is in summary.txt.

    Called in the process that owns the session.

    :param result: None where nothing was written for it.
    """


@pytest.hookspec
def pytest_dsr1_batch_ended(config: pytest.Config, batch: Batch, folder: Path) -> None:
    """The last test of a batch has run. Called before anything is submitted.

    A point that is failed here, by `pytest_dsr1_objections`, is not submitted.
    """


@pytest.hookspec
def pytest_dsr1_objections(config: pytest.Config, result: Result, loopback: bool) -> Iterable[str] | None:
    """Object to the submission of a result: return the reasons, one line each.

    :param loopback: Whether the leaderboard is on this machine: a rehearsal.

    Example::

        def pytest_dsr1_objections(config, result, loopback):
            if not os.environ.get("RELEASE"):
                yield "only release builds are submitted"
    """
