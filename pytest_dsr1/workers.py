"""pytest-xdist: how many workers there may be, which server each has, and which tests stay together on one."""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import pytest

from pytest_dsr1.activation import selects_by_name
from pytest_dsr1.core.config import SweepConfig

if TYPE_CHECKING:
    # The plugin needs no more of this module than a number, until a sweep is asked for.
    from pytest_dsr1.session import Sweep

#: A point's part of a node id; concurrency alone would put points of different scenarios together.
_POINT = re.compile(r"isl\d+-osl\d+-conc\d+")


def worker_count(config: pytest.Config) -> int:
    """Workers that xdist will start; 0 without it, and without -n."""
    return len(getattr(config.option, "tx", None) or ())


def auto_workers(urls: int) -> int:
    """What `-n auto` means in a sweep: one worker for each server, since two would measure each other."""
    return max(urls, 1)


def refuse_surplus(config: SweepConfig, workers: int) -> None:
    """:raises pytest.UsageError: There are other than as many workers as the servers can be measured by."""
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
        option = "--preflight" if config.preflight else "--print-launch"
        raise pytest.UsageError(f"{option} runs nothing, so it needs no -n; drop it")


def make_scheduler(config: pytest.Config, log: Any) -> Any:
    """xdist's scheduling by scope, where accuracy and performance of one point are a scope."""
    from xdist.scheduler import LoadScopeScheduling

    class ByPoint(LoadScopeScheduling):  # type: ignore[misc] # xdist is untyped
        workqueue: OrderedDict[str, dict[str, bool]]

        def _split_scope(self, nodeid: str) -> str:
            match = _POINT.search(nodeid)
            return match[0] if match else str(super()._split_scope(nodeid))

        def remove_node(self, node: Any) -> str | None:
            """Take up what a worker left, but for the test that it crashed in: that one has failed."""
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
            # A worker begins a test when it knows the next one. What a crashed worker leaves may be units of one test,
            # or of none: by themselves these would keep its successor waiting for ever.
            while not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
                if not self.workqueue:
                    node.shutdown()
                    break
                self._assign_work_unit(node)

    # In the order of the sweep, not by the number of tests.
    config.option.loadscopereorder = False
    return ByPoint(config, log)


class Controller:
    """The hooks of xdist's controller: each worker gets one server, and what it may not find out by itself."""

    def __init__(self, config: pytest.Config, sweep: Sweep) -> None:
        self._pytest = config
        self._sweep = sweep

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        from pytest_dsr1.bench import served_to_json
        from pytest_dsr1.servers import ServerError
        from pytest_dsr1.session import EXIT_TERMINATED

        sweep = self._sweep
        given = node.workerinput["dsr1"] = {
            "prompt_seed": sweep.config.prompt_seed,
            "by_name": selects_by_name(self._pytest),
            "folders": {str(scenario): str(folder) for scenario, folder in sweep.folders.items()},
        }
        if not sweep.measures:
            return
        try:
            given["served"] = served_to_json(sweep.serving.bind(node, sweep.first_point))
        except ServerError as error:
            # Said by its first test, so that the batch has it too.
            given["lost"] = str(error)
        except KeyboardInterrupt:
            if sweep.terminated:
                raise pytest.exit.Exception("terminated", returncode=EXIT_TERMINATED) from None
            raise

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        if self._sweep.measures:
            self._sweep.serving.release(node)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        return make_scheduler(config, log)
