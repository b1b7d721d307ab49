"""The tests of a sweep: their selection, ids, order and reports."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_dsr1 import pytest_internals
from pytest_dsr1.core.config import CONCURRENCIES, Mode, Point, SweepConfig
from pytest_dsr1.core.ledger import PointTest

#: The id of the sweep's module, in a checkout and in a wheel.
SWEEP_MODULE = "tests_bench/test_sweep.py"
#: Its name for --pyargs.
_PYARGS = "pytest_dsr1.test_sweep"
#: The parameter that gives a test its point.
POINT = "dsr1_point"
#: Our fixtures begin with it; a test that requests one is a test of the sweep.
PREFIX = "dsr1_"
HINT = "nothing to measure yet; type the lengths, as in: pytest --isl 1024 --osl 1024"
#: The configuration, in every process of a sweep.
CONFIG = pytest.StashKey[SweepConfig]()
#: Set on a test that was skipped because the accuracy is outside the gate.
GATED = pytest.StashKey[bool]()


# pytest defines the class as an attribute of a function, which type checkers do not follow.
class ServerLost(pytest.fail.Exception):  # type: ignore[name-defined,misc]
    """The server of a test has ended or does not answer."""

    # pytest's short summary shows the module, too, unless it is this one.
    __module__ = "builtins"


def parametrize(metafunc: pytest.Metafunc) -> bool:
    """Give a test that requests `dsr1_point` its points.

    :return: Whether they are placeholders: without lengths the tests can be selected by `-k conc16`, and are skipped.
    """
    if any(POINT in str(mark.args[:1]) for mark in metafunc.definition.iter_markers("parametrize")):
        return False
    config = metafunc.config.stash.get(CONFIG, None)
    if config is not None and config.points:
        points = [pytest.param(point, id=point.id) for point in config.points]
    else:
        skip = pytest.mark.skip(reason=HINT)
        points = [pytest.param(None, id=f"isl?-osl?-conc{conc}", marks=skip) for conc in CONCURRENCIES]
    metafunc.parametrize(POINT, points, scope="session")
    return points[0].values == (None,)


def point_of(item: pytest.Item) -> Point | None:
    """The point that a test was given; None if there is none."""
    callspec = getattr(item, "callspec", None)
    point = callspec.params.get(POINT) if callspec is not None else None
    return point if isinstance(point, Point) else None


def belongs_to_sweep(item: pytest.Item) -> bool:
    """Whether a test requests one of our fixtures."""
    return any(name.startswith(PREFIX) for name in getattr(item, "fixturenames", ()))


def measures_without_sweep(item: pytest.Item) -> bool:
    """Whether a test names its points itself and needs no lengths on the command line."""
    callspec = getattr(item, "callspec", None)
    return belongs_to_sweep(item) and (callspec is None or callspec.params.get(POINT, ...) is not None)


def name_of(item: pytest.Item) -> str:
    """The name of the test's function."""
    return str(getattr(item, "originalname", None) or item.name)


def point_tests(items: Iterable[pytest.Item]) -> list[PointTest]:
    """The tests that were given a point."""
    return [PointTest(item.nodeid, point, name_of(item)) for item in items if (point := point_of(item)) is not None]


def select_by_keyword(config: pytest.Config) -> bool:
    """Prepare -k, and return whether tests were selected by name: by -k or by an id.

    `-k conc16` searches within names, and would select conc160, too. So `conc16]`, the end of the id, is searched.
    """
    keyword = config.option.keyword or ""
    config.option.keyword = re.sub(r"\bconc(\d+)(?![\w\]])", r"conc\1]", keyword)
    return bool(keyword) or any("::" in argument for argument in config.args)


class Alone:
    """Collects the sweep's module and nothing else.

    :param typed: Ids of the module's tests to which the session is limited; none: all tests.
    """

    def __init__(self, typed: Sequence[str]) -> None:
        self._typed = typed

    @classmethod
    def needed(cls, config: pytest.Config) -> Alone | None:
        """The collector, if no path was typed, or only the sweep's module or tests of it."""
        ours = [word for word in config.args if word.partition("::")[0] in (SWEEP_MODULE, _PYARGS)]
        if config.args_source is config.ArgsSource.ARGS and ours != config.args:
            return None
        typed = [word.replace(_PYARGS, SWEEP_MODULE) for word in ours if "::" in word]
        # Whatever was typed: see pytest_make_collect_report.
        config.args[:] = [str(config.invocation_params.dir)]
        return cls(typed)

    @pytest.hookimpl(tryfirst=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> pytest.CollectReport | None:
        if not isinstance(collector, pytest.Session):
            return None
        path = Path(__file__).with_name("test_sweep.py")
        module = pytest_internals.sweep_module(collector, SWEEP_MODULE, path)
        return pytest.CollectReport(collector.nodeid, "passed", None, [module])

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        below = tuple(f"{word}{end}" for word in self._typed for end in ("[", "::"))
        if self._typed:
            _keep(config, items, lambda item: item.nodeid in self._typed or item.nodeid.startswith(below))


class SweepTests:
    """The hooks that shape a sweep's tests, in every process of a sweep.

    :param missing: The tests that a resumed batch still needs, as (point, name of the test); None: all.
    """

    def __init__(self, sweep: SweepConfig, missing: frozenset[tuple[Point, str]] | None) -> None:
        self._sweep = sweep
        self._missing = missing

    @pytest.hookimpl(tryfirst=True)
    def pytest_pycollect_makeitem(self, collector: pytest.Collector, name: str) -> list[pytest.Item] | None:
        unwanted = self._sweep.mode is Mode.ACC and name == "test_perf"
        return [] if unwanted and isinstance(collector, pytest_internals.SweepModule) else None

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        if (point := point_of(item)) is not None:
            # See select_by_keyword.
            item.extra_keyword_matches.add(f"conc{point.conc}]")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> Generator[None, None, None]:
        # --benchmark-only skips tests without the fixture `benchmark`. These tests request it after they have measured.
        benchmarks = [item.fixturenames for item in items if isinstance(item, pytest.Function) and _measures_load(item)]
        for names in benchmarks if config.getoption("benchmark_only", False) else ():
            names.append("benchmark")
        yield
        for names in benchmarks if config.getoption("benchmark_only", False) else ():
            names.remove("benchmark")
        if self._missing is not None:
            missing = self._missing
            _keep(config, items, lambda item: (point := point_of(item)) is None or (point, name_of(item)) in missing)
        # The sweep's tests are put into sweep order; other tests keep their places.
        place = {point: number for number, point in enumerate(self._sweep.points)}
        ours = [(number, item, point) for number, item in enumerate(items) if (point := point_of(item)) is not None]
        ordered = sorted(ours, key=lambda one: (place.get(one[2], len(place)), _measures_load(one[1])))
        for (number, _, _), (_, item, _) in zip(ours, ordered, strict=True):
            items[number] = item

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if belongs_to_sweep(item):
            # xdist sends an attribute of plain values from a worker to its controller.
            vars(report)["dsr1"] = _remarks(item, report, call)
        return report


def _keep(config: pytest.Config, items: list[pytest.Item], wanted: Callable[[pytest.Item], bool]) -> None:
    dropped = [item for item in items if not wanted(item)]
    items[:] = [item for item in items if wanted(item)]
    if dropped:
        config.hook.pytest_deselected(items=dropped)


def _measures_load(item: pytest.Item) -> bool:
    # `load` is the name in the sweep's own module.
    return bool({"load", "dsr1_load"} & set(getattr(item, "fixturenames", ())))


def _remarks(item: pytest.Item, report: pytest.TestReport, call: pytest.CallInfo[None]) -> dict[str, Any]:
    """What the session needs from a report: see `core.ledger.PointReport`."""
    if call.excinfo is None or report.passed:
        return {}
    error = call.excinfo.value
    reason = str(error).strip().partition("\n")[0].strip()
    # The text of an assertion, skip or failure is the reason; any other error needs the name of its class.
    if not (isinstance(error, AssertionError | pytest.skip.Exception | pytest.fail.Exception) and reason):
        reason = f"{type(error).__name__}: {reason}"
    return {"reason": reason, "gated": item.stash.get(GATED, False), "lost": isinstance(error, ServerLost)}
