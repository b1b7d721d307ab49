"""What test_sweep.py sees: the server, the accuracy of a point, its load, and the record of both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeAlias

import pytest

from pytest_dsr1.activation import SWEEP, SWEEP_CONFIG, worker_input

if TYPE_CHECKING:
    # Fixtures are known to every project that has the plugin; what they need is imported when one is used.
    from pytest_dsr1.bench import Bench
    from pytest_dsr1.core.config import Point
    from pytest_dsr1.core.record import AccuracyRecord, LoadRecord
    from pytest_dsr1.core.result import Result
    from pytest_dsr1.core.server import Served

    Load: TypeAlias = Callable[[], LoadRecord]
    Record: TypeAlias = Callable[[LoadRecord], Result]


#: On a test whose performance is not measured, since the model's accuracy is not its own; a failure of the point.
_GATED = pytest.StashKey[bool]()


# pytest has the class as an attribute of a function, which no type checker follows.
class ServerLost(pytest.fail.Exception):  # type: ignore[name-defined,misc]
    """A test's server is gone."""

    # Else pytest's short summary has no room for more than where this class lives; its own do the same.
    __module__ = "builtins"


@pytest.fixture(scope="session")
def bench(pytestconfig: pytest.Config, request: pytest.FixtureRequest) -> Bench:
    """The session's measurements, on the session's server."""
    from pytest_dsr1.bench import Bench, served_from_json
    from pytest_dsr1.progress import Progress, Silent, Terminal
    from pytest_dsr1.servers import Server, ServerError
    from pytest_dsr1.servers.external import BoundServer

    config, given = pytestconfig.stash[SWEEP_CONFIG], worker_input(pytestconfig)
    server: Server
    progress: Progress
    if given is None:
        sweep = pytestconfig.stash[SWEEP]
        server, folders, progress = sweep.serving, sweep.folders, Terminal(pytestconfig)
        try:
            served = server.serve(sweep.first_point)
        except ServerError as error:
            _end_sweep(request, str(error))
    else:
        if "lost" in given:
            _end_sweep(request, given["lost"])
        served = served_from_json(given["served"])
        server = BoundServer(served, flush=config.flush_cache)
        folders = {scenario: Path(given["folders"][str(scenario)]) for scenario in config.scenarios}
        progress = Silent()
    bench = Bench(config, server, served, folders, progress)
    bench.prepare()
    return bench


def _end_sweep(request: pytest.FixtureRequest, lost: str) -> NoReturn:
    """A server that is gone measures nothing more: what is finished is kept, and nothing else is begun."""
    from pytest_dsr1.core.text import first_line

    request.session.shouldstop = f"dsr1: {first_line(lost)}"
    # Without the error that it is made of, which pytest would show a second time.
    raise ServerLost(lost, pytrace=False) from None


@pytest.fixture(scope="session")
def server(bench: Bench) -> Served:
    """The server that is measured: its URL, its model, what it says of itself."""
    return bench.served


@pytest.fixture
def accuracy(bench: Bench, dsr1_point: Point, request: pytest.FixtureRequest) -> AccuracyRecord:
    """What the gate says of this point, measured at its concurrency; once, whoever asks first."""
    record = _accuracy(bench, dsr1_point, request)
    if not bench.config.accuracy:
        pytest.skip("accuracy off")
    return record


@pytest.fixture
def accurate(bench: Bench, dsr1_point: Point, request: pytest.FixtureRequest) -> AccuracyRecord:
    """The same, for a test that makes no sense on another model: skipped behind a closed gate."""
    record = _accuracy(bench, dsr1_point, request)
    if not record.verdict.opens:
        request.node.stash[_GATED] = True
        pytest.skip(record.verdict.reason)
    return record


def _accuracy(bench: Bench, point: Point, request: pytest.FixtureRequest) -> AccuracyRecord:
    record = bench.accuracy(point)
    if bench.lost:
        _end_sweep(request, bench.lost)
    return record


@pytest.fixture
def load(bench: Bench, dsr1_point: Point, accurate: AccuracyRecord, request: pytest.FixtureRequest) -> Load:
    """Call it to measure this point under load."""
    from pytest_dsr1.servers import ServerError

    def measure() -> LoadRecord:
        try:
            return bench.load(dsr1_point)
        except ServerError as error:
            _end_sweep(request, str(error))

    return measure


@pytest.fixture
def record(
    bench: Bench,
    dsr1_point: Point,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> Record:
    """Call it with what was measured: writes the result, then JUnit properties and a pytest-benchmark row."""

    from pytest_dsr1.replay import record_benchmark_row

    def write(measured: LoadRecord) -> Result:
        result = bench.record(dsr1_point, measured)
        for name, value in result.headline.items():
            record_property(name, value)
        record_benchmark_row(request, measured.run, result.headline)
        if bench.lost:
            _end_sweep(request, bench.lost)
        return result

    return write


@pytest.fixture(scope="session")
def dsr1_point() -> Point:
    """One configuration of the sweep; the plugin parametrises it."""
    raise LookupError("dsr1_point is a parameter: the sweep's tests get it from the plugin")


def explain(item: pytest.Item, report: pytest.TestReport, call: pytest.CallInfo[None]) -> None:
    """Put on a report what the session wants to know of it; plain attributes travel from xdist's workers too."""
    if call.excinfo is None or report.passed:
        return
    error = call.excinfo.value
    reason = str(error).strip().partition("\n")[0].strip()
    # An assertion or a skip of ours is its own reason; any other error needs its name.
    if not (isinstance(error, AssertionError | pytest.skip.Exception | pytest.fail.Exception) and reason):
        reason = f"{type(error).__name__}: {reason}"
    gated, lost = item.stash.get(_GATED, False), isinstance(error, ServerLost)
    vars(report).update(dsr1_reason=reason, dsr1_gated=gated, dsr1_lost=lost)
