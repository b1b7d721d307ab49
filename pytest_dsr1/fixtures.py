"""The fixtures: what the sweep's tests and a user's own tests request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pytest

if TYPE_CHECKING:
    # This module is imported in every pytest session; what the fixtures need is imported when one is used.
    from pytest_dsr1.bench import Bench, Visit
    from pytest_dsr1.core.config import Point
    from pytest_dsr1.core.record import AccuracyRecord
    from pytest_dsr1.core.result import Result
    from pytest_dsr1.core.samples import LoadRun
    from pytest_dsr1.core.server import Served
    from pytest_dsr1.session import Session


#: Tests that request one of these measure accuracy.
_ACCURACY = frozenset({"accuracy", "accurate", "dsr1_accuracy"})


Measured = TypeVar("Measured", covariant=True)


class Measure(Protocol[Measured]):
    """The type of `dsr1_load` and `dsr1_accuracy`: a call measures one point."""

    def __call__(self, *, isl: int | None = None, osl: int | None = None, conc: int | None = None) -> Measured:
        """Measure a point once, write its result, and return what was measured.

        An argument that is not given comes from `dsr1_point` where the test requests it, else from --isl, --osl and
        --conc.
        """


@pytest.fixture(scope="session")
def dsr1_session(pytestconfig: pytest.Config) -> Session:
    """The sweep as this process sees it."""
    from pytest_dsr1.collection import HINT
    from pytest_dsr1.session import SESSION

    if SESSION not in pytestconfig.stash:
        raise pytest.UsageError(f"a worker of xdist measures only in a sweep: {HINT}, or drop -n")
    return pytestconfig.stash[SESSION]


@pytest.fixture(scope="session")
def dsr1_server(dsr1_session: Session, request: pytest.FixtureRequest) -> Served:
    """The server that is measured; override it to provide a server of your own."""
    with ending_sweep(request):
        return dsr1_session.serve()


@pytest.fixture(scope="session")
def dsr1_bench(dsr1_session: Session, dsr1_server: Served, request: pytest.FixtureRequest) -> Bench:
    """The session's measurements on the session's server."""
    from pytest_dsr1.bench import Bench

    config, session = request.config, dsr1_session
    checks = [check for checks in config.hook.pytest_dsr1_checks(config=config) for check in checks]
    with ending_sweep(request):
        server, served = session.server_of(dsr1_server)
    around_load = partial(_around_load, config)
    bench = Bench(session.config, server, served, session.folder_of, session.watch, around_load, checks)
    if any(_ACCURACY & set(getattr(item, "fixturenames", ())) for item in request.session.items):
        bench.prepare()
    return bench


@pytest.fixture(scope="session")
def dsr1_point() -> Point:
    """One point of the sweep; a test that requests it is run at each point."""
    raise LookupError("dsr1_point is a parameter of the tests of a sweep; a fixture of session scope cannot have it")


@pytest.fixture
def dsr1_measurements(dsr1_session: Session, dsr1_bench: Bench, request: pytest.FixtureRequest) -> Measurements:
    """The measurements of one test."""
    return Measurements(dsr1_session, dsr1_bench, request)


@pytest.fixture
def dsr1_load(dsr1_measurements: Measurements) -> Measure[Result]:
    """Measures a point under load: `run = dsr1_load(isl=1024, osl=256, conc=16)`."""
    return dsr1_measurements.load


@pytest.fixture
def dsr1_accuracy(dsr1_measurements: Measurements) -> Measure[AccuracyRecord]:
    """Measures accuracy: `dsr1_accuracy(isl=1024, osl=1024, conc=16)`."""
    return dsr1_measurements.accuracy


class Measurements:
    """The measurements of one test, at points that it names or was given."""

    def __init__(self, session: Session, bench: Bench, request: pytest.FixtureRequest) -> None:
        self._session = session
        self._bench = bench
        self._request = request

    def accuracy(self, *, isl: int | None = None, osl: int | None = None, conc: int | None = None) -> AccuracyRecord:
        """The verdict of the gate on a point."""
        record = self._visit(isl, osl, conc).accuracy()
        self._request.node.user_properties.extend(record.figures or ())
        self._require_server()
        return record

    def accuracy_or_skip(self) -> AccuracyRecord:
        """The same for the test's point; skips the test where accuracy is off."""
        record = self.accuracy()
        if not self._bench.config.accuracy:
            pytest.skip("accuracy off")
        return record

    def accuracy_or_gated(self) -> AccuracyRecord:
        """The same; skips the test where the gate failed, which fails the point."""
        from pytest_dsr1.collection import GATED

        record = self.accuracy()
        if not record.verdict.opens:
            self._request.node.stash[GATED] = True
            pytest.skip(record.verdict.reason)
        return record

    def load(self, *, isl: int | None = None, osl: int | None = None, conc: int | None = None) -> Result:
        """Measure a point under load, and write what was measured."""
        return self.record(self.measure(isl=isl, osl=osl, conc=conc))

    def measure(self, *, isl: int | None = None, osl: int | None = None, conc: int | None = None) -> Visit:
        """Measure a point under load; its raw samples are on the disk."""
        visit = self._visit(isl, osl, conc)
        with ending_sweep(self._request):
            visit.load()
        return visit

    def record(self, visit: Visit) -> Result:
        """Write the result, JUnit properties and a row of pytest-benchmark."""
        run, result = visit.load().run, visit.record()
        properties = self._request.node.user_properties
        properties.extend(pair for pair in result.headline.items() if pair not in properties)
        record_benchmark_row(self._request, visit.point, run, result.headline)
        self._require_server()
        return result

    def _visit(self, isl: int | None, osl: int | None, conc: int | None) -> Visit:
        from pytest_dsr1.collection import name_of

        point = self._point(isl, osl, conc)
        self._session.join(self._request.node.nodeid, point, name_of(self._request.node))
        with ending_sweep(self._request):
            return self._bench.visit(point)

    def _point(self, isl: int | None, osl: int | None, conc: int | None) -> Point:
        from pytest_dsr1.collection import HINT, point_of
        from pytest_dsr1.core.config import Point, Scenario

        given, config, nodeid = point_of(self._request.node), self._bench.config, self._request.node.nodeid
        scenarios = (given.scenario,) if given is not None else config.scenarios
        concurrencies = (given.conc,) if given is not None else config.concurrencies
        if isl is not None and osl is not None:
            scenarios = (Scenario(isl, osl),)
        elif isl is not None or osl is not None or len(scenarios) != 1:
            raise pytest.UsageError(f"{nodeid} does not name one pair of lengths: {HINT}")
        if conc is None and len(concurrencies) != 1:
            raise pytest.UsageError(
                f"{nodeid} does not name one concurrency: pass conc=…, request dsr1_point, or type one with --conc"
            )
        return Point(scenarios[0], concurrencies[0] if conc is None else conc)

    def _require_server(self) -> None:
        from pytest_dsr1.servers import ServerError

        with ending_sweep(self._request):
            if self._bench.lost:
                raise ServerError(self._bench.lost)


@contextmanager
def ending_sweep(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test, and end the session after it, where the server is lost."""
    from pytest_dsr1.collection import ServerLost
    from pytest_dsr1.core.text import first_line
    from pytest_dsr1.servers import ServerError

    try:
        yield
    except ServerError as error:
        request.session.shouldstop = f"dsr1: {first_line(str(error))}"
        # "from None": else pytest shows the same message twice.
        raise ServerLost(str(error), pytrace=False) from None


@contextmanager
def _around_load(config: pytest.Config, point: Point, served: Served) -> Iterator[dict[str, object]]:
    """Call the hooks when a load begins and ends, and collect what they return."""
    extra: dict[str, object] = {}
    config.hook.pytest_dsr1_load_started(config=config, point=point, served=served)
    yield extra
    for said in config.hook.pytest_dsr1_load_ended(config=config, point=point, served=served):
        extra |= said


def record_benchmark_row(
    request: pytest.FixtureRequest, point: Point, run: LoadRun, figures: Mapping[str, float]
) -> None:
    """Give the E2E latencies to pytest-benchmark, unless the test uses it itself."""
    durations_s = [int(sample.event_ns[-1] - sample.sent_ns) / 1e9 for sample in run.completed]
    used = "benchmark" in request.fixturenames
    if not durations_s or used or not request.config.pluginmanager.hasplugin("benchmark"):
        return
    # pytest-benchmark has no call that takes samples (ionelmc/pytest-benchmark#52), but any function may be its timer.
    # Each round calls the timer twice.
    ticks_s = chain.from_iterable((0.0, duration_s) for duration_s in durations_s)

    def replay() -> float:
        return next(ticks_s, 0.0)

    # The benchmark fixture reads its timer from this mark when it is created, so the mark is set first.
    request.node.add_marker(pytest.mark.benchmark(timer=replay))
    benchmark: Any = request.getfixturevalue("benchmark")
    benchmark.group = "e2e latency"
    # Values that JSON has: --benchmark-group-by=param:conc uses them.
    benchmark.param, benchmark.params = point.id, {"isl": point.isl, "osl": point.osl, "conc": point.conc}
    benchmark.extra_info.update(figures)
    benchmark.pedantic(lambda: None, rounds=len(durations_s))
