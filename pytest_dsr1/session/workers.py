"""pytest-xdist: the number of workers, their servers and their tests."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pytest_dsr1.collection import point_tests
from pytest_dsr1.core.config import Point, Scenario, SweepConfig
from pytest_dsr1.core.ledger import PointTest
from pytest_dsr1.core.server import Served
from pytest_dsr1.servers import Server, ServerError
from pytest_dsr1.servers.external import BoundServer
from pytest_dsr1.session.sweep import EXIT_TERMINATED, Sweep


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the controller tells a worker before it starts.

    :param prompt_seed: Of the session, so that no worker repeats the prompts of another.
    :param folders: The batch folder of each scenario.
    :param collected: The file into which the worker writes the tests that it collected.
    :param served: The server that it measures; None where nothing is measured, or the server is lost.
    :param lost: Why the server is lost; else empty.
    """

    prompt_seed: int
    folders: tuple[tuple[Scenario, str], ...]
    collected: str
    served: Served | None = None
    lost: str = ""

    @classmethod
    def of(cls, config: pytest.Config) -> Order | None:
        """The order of this process; None if it is not a worker, or has no order."""
        given: Mapping[str, Any] | None = getattr(config, "workerinput", None)
        return None if given is None or "dsr1" not in given else msgspec.json.decode(given["dsr1"], type=cls)


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is a worker of xdist."""
    return hasattr(config, "workerinput")


def worker_count(config: pytest.Config) -> int:
    """How many workers xdist will start; 0 without it, and without -n."""
    return len(getattr(config.option, "tx", None) or ())


def refuse_surplus(config: SweepConfig, workers: int) -> None:
    """Refuse a number of workers that does not match the number of servers.

    :raises pytest.UsageError: There are more workers than servers, or several servers and no workers.
    """
    servers = len(config.server_urls) or 1
    if workers > servers:
        several = f"there are {servers}" if servers > 1 else "there is one"
        raise pytest.UsageError(
            f"-n {workers}: two workers on one server would measure each other, and {several}; use -n auto, "
            "or name a server for each with --server-url"
        )
    if servers > 1 and not workers:
        if config.resume:
            raise pytest.UsageError(f"--resume: the batch is measured on {servers} servers; add -n auto")
        raise pytest.UsageError(
            f"--server-url was typed {servers} times, and one process measures one server; add -n auto, or drop "
            f"{servers - 1} of them"
        )
    if workers and (config.preflight or config.print_launch):
        raise pytest.UsageError("--preflight and --print-launch run no test, so they need no worker; drop -n")


class Controller:
    """The hooks of xdist's controller: each worker gets one server."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._tests: dict[str, PointTest] = {}
        self._exchange = tempfile.TemporaryDirectory(prefix="dsr1-")

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        sweep, served, lost = self._sweep, None, ""
        if sweep.measures and sweep.pool is not None:
            try:
                served = sweep.pool.bind(node, sweep.config.points[0])
            except ServerError as error:
                # The worker's first test fails with it, so that the batch has the reason.
                lost = str(error)
            except KeyboardInterrupt:
                if sweep.terminated:
                    raise pytest.exit.Exception("terminated", returncode=EXIT_TERMINATED) from None
                raise
        order = Order(
            prompt_seed=sweep.config.prompt_seed,
            folders=tuple((scenario, str(folder)) for scenario, folder in sweep.batches.folders.items()),
            collected=str(self._collected_by(node)),
            served=served,
            lost=lost,
        )
        node.workerinput["dsr1"] = msgspec.json.encode(order).decode()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        if self._sweep.pool is not None:
            self._sweep.pool.release(node)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: Sequence[str]) -> None:
        file = self._collected_by(node)
        if self._tests or not file.exists():
            return
        tests = msgspec.json.decode(file.read_bytes(), type=list[PointTest])
        # Updated in place: the scheduler uses the same mapping.
        self._tests.update({test.nodeid: test for test in tests})
        self._sweep.select(tests)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        # Points are measured in the order of the sweep, and not by their number of tests.
        config.option.loadscopereorder = False
        return make_scheduler(config, log, self._tests)

    def pytest_unconfigure(self) -> None:
        self._exchange.cleanup()

    def _collected_by(self, node: Any) -> Path:
        return Path(self._exchange.name) / f"{node.gateway.id}.json"


class Worker:
    """The session in a worker, which measures the server of its order; see `Sweep`."""

    def __init__(self, config: SweepConfig, order: Order) -> None:
        self.config = config
        self._order = order
        self._folders = {scenario: Path(folder) for scenario, folder in order.folders}
        self._told: set[tuple[str, Point]] = set()

    def serve(self) -> Served:
        if self._order.served is None:
            raise ServerError(self._order.lost)
        return self._order.served

    def server_of(self, served: Served) -> tuple[Server, Served]:
        return BoundServer(served, flush=self.config.flush_cache), served

    def folder_of(self, point: Point) -> Path:
        return self._folders[point.scenario]

    def watch(self, point: Point) -> AbstractContextManager[Callable[[str], None]]:
        # The terminal belongs to the controller.
        return nullcontext(lambda text: None)

    def join(self, nodeid: str, point: Point, test: str) -> None:
        if (nodeid, point) not in self._told:
            raise pytest.UsageError(
                f"{nodeid} measures {point.id}, which is not known before the test runs, as -n needs it; request "
                "dsr1_point, or drop -n"
            )

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Tell the controller which point each test measures; it sees only their ids."""
        tests = point_tests(session.items)
        self._told = {(test.nodeid, test.point) for test in tests}
        Path(self._order.collected).write_bytes(msgspec.json.encode(tests))


def make_scheduler(config: pytest.Config, log: Any, tests: Mapping[str, PointTest]) -> Any:
    """xdist's scheduling by scope: the tests of one point are a scope.

    :param tests: The tests of points by their ids; filled when a worker has collected.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByPoint(LoadScopeScheduling):  # type: ignore[misc] # xdist is untyped
        workqueue: OrderedDict[str, dict[str, bool]]

        def _split_scope(self, nodeid: str) -> str:
            return tests[nodeid].point.id if nodeid in tests else str(super()._split_scope(nodeid))

        def remove_node(self, node: Any) -> str | None:
            """Take back the tests of a worker that ended, except the one it crashed in."""
            workload = self.assigned_work.pop(node)
            left = [(unit, nodeid) for unit in workload.values() for nodeid, done in unit.items() if not done]
            if not left:
                return None
            unit, crashed = left[0]
            unit[crashed] = True
            waiting = {scope: unit for scope, unit in workload.items() if not all(unit.values())}
            self.workqueue = OrderedDict({**waiting, **self.workqueue})
            for other in self.assigned_work:
                self._reschedule(other)
            return str(crashed)

        def _reschedule(self, node: Any) -> None:
            super()._reschedule(node)
            # A worker begins a test only when it knows the next one. A crashed worker may leave a scope with one test
            # or none, and the worker that replaces it would wait for ever.
            while not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
                if not self.workqueue:
                    node.shutdown()
                    break
                self._assign_work_unit(node)

    return ByPoint(config, log)
